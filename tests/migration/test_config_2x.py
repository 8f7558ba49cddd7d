"""2.x configs: what is translated, and that nothing is dropped silently."""

import re
import shutil
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.models import ResNet
from mmdet.registry import MODELS, PARAM_SCHEDULERS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from deit_detr.engine.start.trial_step import check_weights
from deit_detr.errors import UserError
from deit_detr.migration.config_2x import convert_config_2x
from deit_detr.migration.config_text import config_text
from deit_detr.migration.data_2x import root_from_environment
from deit_detr.migration.read_2x import read_config_2x
from tests.helpers.fork_server import start
from tests.helpers.paths import REPO

DATA_2X = REPO / 'tests/data/legacy_2x'
TOOL = REPO / 'tools/misc/convert_config_2x.py'
R50 = DATA_2X / 'detr_r50_8x2_150e_coco.py'


def child(tmp_path: Path, text: str) -> Path:
    """A 2.x config that inherits from DETR-R50 and changes something."""
    path = tmp_path / 'child.py'
    path.write_text(f"_base_ = '{R50}'\n{text}\n")
    return path


def convert(path: Path) -> tuple[Config, list[str]]:
    converted = convert_config_2x(path)
    return Config.fromstring(converted.text, '.py'), converted.by_hand


def without_empty(value):
    """Drop settings that are None, which only one of the two configs may spell out."""
    if isinstance(value, dict):
        return {key: without_empty(item) for key, item in value.items() if item is not None}
    return [without_empty(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_r50_equals_the_3x_config_of_mmdet(monkeypatch):
    for name in ('DEIT_DATASETS', 'MMDET_DATASETS'):
        monkeypatch.delenv(name, raising=False)
    official = Path(mmdet.__file__).parent / '.mim/configs/detr/detr_r50_8xb2-150e_coco.py'
    if not official.is_file():
        pytest.skip('this mmdet comes without its configs')
    converted, by_hand = convert(R50)
    assert by_hand == []
    official, ours = Config.fromfile(official), Config.fromfile(REPO / 'configs/_base_/default_runtime.py')
    # parts that the recipes replace: exact resuming, safe checkpoints, one folder of pictures per scene
    official.train_cfg.type = 'ResumableTrainLoop'
    official.default_hooks.checkpoint.type = 'SafeCheckpointHook'
    official.env_cfg.dist_cfg.timeout = ours.env_cfg.dist_cfg.timeout
    for name in ('preemption', 'record', 'visualization'):
        official.default_hooks[name] = ours.default_hooks[name]
    assert converted.custom_hooks == ours.custom_hooks
    assert converted.optim_wrapper.pop('constructor') == 'GroupedOptimWrapperConstructor'
    for name in ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'optim_wrapper', 'param_scheduler',
                 'train_cfg', 'val_cfg', 'test_cfg', 'default_hooks', 'env_cfg', 'log_processor'):
        assert without_empty(converted[name]) == without_empty(official[name]), name
    assert Path(converted.val_evaluator.ann_file) == Path(official.val_evaluator.ann_file)


@pytest.mark.parametrize('name', ['DEIT_DATASETS', 'MMDET_DATASETS'])
def test_data_root_follows_the_environment(name, monkeypatch):
    monkeypatch.setenv('MMDET_DATASETS', '/replaced')
    monkeypatch.setenv(name, '/elsewhere')  # without a slash at its end
    converted, _ = convert(R50)
    assert converted.train_dataloader.dataset.data_root == '/elsewhere'
    assert converted.val_evaluator.ann_file == '/elsewhere/annotations/instances_val2017.json'


@pytest.mark.parametrize(
    'root', ['data/coco/', 's3://a-b/c_d.e/', 'données/', 'my data/', "it's/", 'c++/', '(a)/', 'b\\c/', '$a/'])
def test_any_data_root_is_kept(root, monkeypatch):
    for name in ('DEIT_DATASETS', 'MMDET_DATASETS'):
        monkeypatch.delenv(name, raising=False)
    assert Config.fromstring(f'root = {root_from_environment(root)!r}', '.py').root == root


def test_every_unknown_field_is_listed_by_path(tmp_path):
    path = child(tmp_path, '''
model = dict(
    backbone=dict(init_cfg=None),
    bbox_head=dict(
        transformer=dict(encoder=dict(transformerlayers=dict(operation_order=('norm', 'self_attn', 'norm', 'ffn')))),
        strange=1))
data = dict(train=dict(proposal_file='p.pkl'), val=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=[(1333, 800), (666, 400)], flip=True, transforms=[
        dict(type='Resize', keep_ratio=True, interpolation='area'), dict(type='Pad', size_divisor=32),
        dict(type='Rotate', level=3), dict(type='Collect', keys=['img', 'proposals'])])]))
optimizer = dict(constructor='LayerDecayOptimizerConstructor')
optimizer_config = dict(type='GradientCumulativeOptimizerHook', cumulative_iters=4)
lr_config = dict(_delete_=True, policy='poly', power=0.9)
custom_hooks = [dict(type='NumClassCheckHook'), dict(type='EMAHook', momentum=0.1)]
log_config = dict(hooks=[dict(type='TextLoggerHook'), dict(type='WandbLoggerHook')])
workflow = [('train', 1), ('val', 1)]
evaluation = dict(iou_thrs=[0.5])
my_own_switch = True
''')
    converted, by_hand = convert(path)
    assert {item.partition(' = ')[0] for item in by_hand} == {
        'model.bbox_head.transformer.encoder.transformerlayers.operation_order',
        'model.bbox_head.strange',
        'data.train.proposal_file',
        'data.val.pipeline[1].type',
        'data.val.pipeline[1].img_scale',
        'data.val.pipeline[1].flip',
        'data.val.pipeline[1].transforms[0].type',
        'data.val.pipeline[1].transforms[0].interpolation',
        'data.val.pipeline[1].transforms[1].type',
        'data.val.pipeline[1].transforms[1].size_divisor',
        'data.val.pipeline[1].transforms[2].type',
        'data.val.pipeline[1].transforms[2].level',
        'data.val.pipeline[1].transforms[3].type',
        'data.val.pipeline[1].transforms[3].keys',
        'optimizer.constructor',
        'optimizer_config.type',
        'optimizer_config.cumulative_iters',
        'lr_config.policy',
        'lr_config.power',
        'custom_hooks[1].type',
        'custom_hooks[1].momentum',
        'log_config.hooks[1].type',
        'workflow',
        'evaluation.iou_thrs',
        'my_own_switch',
    }
    assert converted.model.type == 'DETR'


def test_config_written_into_a_2x_work_folder(tmp_path):
    """Its variables are plain settings that nothing reads."""
    recipe = DATA_2X / 'detr_deit_tiny_8x1_150e_scannet.py'
    flat = tmp_path / recipe.name
    flat.write_text('\n'.join(f'{name} = {value!r}' for name, value in read_config_2x(recipe).settings.items()))
    converted, original = convert_config_2x(flat), convert_config_2x(recipe)
    assert converted.by_hand == []
    values, expected = (Config.fromstring(config.text, '.py') for config in (converted, original))
    assert values._cfg_dict == expected._cfg_dict


def test_every_number_of_the_recipe_matters(tmp_path):
    """Each change of a number in the 2.x recipe changes the result."""
    shutil.copy(DATA_2X / 'scannet_detection.py', tmp_path)
    recipe = tmp_path / 'detr_deit_tiny_8x1_150e_scannet.py'
    lines = (DATA_2X / recipe.name).read_text().splitlines()

    def converted(changed: list[str]) -> tuple:
        recipe.write_text('\n'.join(changed))
        result = convert_config_2x(recipe)
        return result.text, result.by_hand

    original = converted(lines)
    numbers = [
        (row, match) for row, line in enumerate(lines)
        for match in re.finditer(r'(?<=[=(\[ ])\d+\.?\d*(?=[,)\]])', line.partition('#')[0])]
    assert len(numbers) > 100
    for row, match in numbers:
        line = lines[row][:match.end()] + '7' + lines[row][match.end():]
        assert converted([*lines[:row], line, *lines[row + 1:]]) != original, lines[row]


@pytest.mark.parametrize('resize, expected', [
    ("img_scale=(640, 480)", dict(type='Resize', scale=(640, 480), keep_ratio=True)),
    ("img_scale=[(640, 480)], keep_ratio=False", dict(type='Resize', scale=(640, 480), keep_ratio=False)),
    ("img_scale=[(480, 1333), (1333, 800)]",
     dict(type='RandomResize', scale=[(1333, 480), (1333, 800)], keep_ratio=True)),
    ("img_scale=(640, 480), ratio_range=(0.5, 2.0)",
     dict(type='RandomResize', scale=(640, 480), ratio_range=(0.5, 2.0), keep_ratio=True)),
])
def test_resize(tmp_path, resize, expected):
    converted, _ = convert(child(tmp_path, f'''
data = dict(train=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', {resize}),
    dict(type='Normalize', mean=[0, 0, 0], std=[1, 1, 1]), dict(type='Collect', keys=['img'])]))'''))
    assert converted.train_dataloader.dataset.pipeline[1] == expected


@pytest.mark.parametrize('crop_type, expected', [
    ('absolute', (600, 384)), ('absolute_range', (384, 600))])
def test_crop_size_is_height_width_in_2x_and_width_height_in_3x(tmp_path, crop_type, expected):
    converted, _ = convert(child(tmp_path, f'''
data = dict(train=dict(pipeline=[dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_type='{crop_type}', crop_size=(384, 600)),
    dict(type='Normalize', mean=[0, 0, 0], std=[1, 1, 1]), dict(type='Collect', keys=['img'])]))'''))
    assert converted.train_dataloader.dataset.pipeline[1].crop_size == expected


def test_schedule_and_runtime(tmp_path):
    converted, by_hand = convert(child(tmp_path, '''
fp16 = dict(loss_scale=512.0)
lr_config = dict(step=40, gamma=0.5, warmup='linear', warmup_iters=500, warmup_ratio=0.001)
runner = dict(max_epochs=50)
evaluation = dict(interval=5, save_best='bbox_mAP', classwise=True)
checkpoint_config = dict(interval=10, max_keep_ckpts=2)
log_config = dict(interval=7, hooks=[dict(type='TextLoggerHook'), dict(type='TensorboardLoggerHook')])
resume_from = 'latest.pth'
find_unused_parameters = True
seed = 3
data = dict(samples_per_gpu=4, workers_per_gpu=0, train=dict(filter_empty_gt=False))
'''))
    assert by_hand == []
    assert converted.optim_wrapper.type == 'AmpOptimWrapper' and converted.optim_wrapper.loss_scale == 512
    assert converted.param_scheduler == [
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=501),
        dict(type='StepLR', begin=0, end=50, by_epoch=True, step_size=40, gamma=0.5)]
    assert converted.train_cfg == dict(type='ResumableTrainLoop', max_epochs=50, val_interval=5)
    assert converted.default_hooks.checkpoint == dict(
        type='SafeCheckpointHook', interval=10, max_keep_ckpts=2, save_best='coco/bbox_mAP')
    assert converted.default_hooks.logger.interval == 7
    assert [backend.type for backend in converted.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']
    assert (converted.load_from, converted.resume) == ('latest.pth', True)
    assert converted.find_unused_parameters and converted.randomness.seed == 3
    assert converted.val_evaluator.classwise
    loader = converted.train_dataloader
    assert (loader.batch_size, loader.num_workers, loader.persistent_workers) == (4, 0, False)
    assert not loader.dataset.filter_cfg.filter_empty_gt
    assert converted.val_dataloader.batch_size == 1


def rates_2x(kind: str, iters: int, ratio: float, epochs: int, length: int, step: int) -> list[float]:
    """The rate of each iteration by the formulas of mmcv 1.7's ``LrUpdaterHook``, for a base rate of 1."""
    rates = []
    for now in range(epochs * length):
        regular = 0.1 ** (now // length >= step)
        factor = {
            'constant': ratio,
            'linear': 1 - (1 - now / iters) * (1 - ratio),
            'exp': ratio ** (1 - now / iters)}[kind]
        rates.append(regular * (factor if now < iters else 1))
    return rates


@pytest.mark.parametrize('iters', [1, 5, 9])
@pytest.mark.parametrize('kind', ['linear', 'constant', 'exp'])
def test_warm_up_has_the_rates_of_2x(tmp_path, kind, iters):
    """Also if it lasts until after the first decay."""
    epochs, length, step = 4, 4, 2
    converted, by_hand = convert(child(tmp_path, f'''
lr_config = dict(policy='step', step=[{step}], warmup='{kind}', warmup_iters={iters}, warmup_ratio=0.1,
                 warmup_by_epoch=False)
runner = dict(max_epochs={epochs})'''))
    assert by_hand == []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(cfg), default_args=dict(optimizer=optimizer)) for cfg in converted.param_scheduler]
    rates = []
    for now in range(1, epochs * length + 1):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or now % length == 0:
                scheduler.step()
    assert rates == pytest.approx(rates_2x(kind, iters, 0.1, epochs, length, step))


@pytest.mark.parametrize('kind', ['linear', 'constant', 'exp'])
def test_warm_up_by_epochs_is_listed(tmp_path, kind):
    """It takes as many iterations as the data makes of its epochs."""
    converted, by_hand = convert(child(
        tmp_path, f"lr_config = dict(warmup='{kind}', warmup_iters=1, warmup_ratio=0.1, warmup_by_epoch=True)"))
    assert [item.partition(' = ')[0] for item in by_hand] == [
        f'lr_config.{name}' for name in ('warmup', 'warmup_iters', 'warmup_ratio', 'warmup_by_epoch')]
    assert [scheduler.type for scheduler in converted.param_scheduler] == ['MultiStepLR']


@pytest.mark.parametrize('init_cfg', [
    'None', "[dict(type='Kaiming', layer='Conv2d'), dict(type='Pretrained', checkpoint='resnet.pth')]"])
def test_initializers_may_be_none_or_a_list(tmp_path, init_cfg):
    """What the converted config builds is checked as any other model; mmdet's ResNet makes a list of None."""
    torch.save(ResNet(18).state_dict(), tmp_path / 'resnet.pth')
    init_cfg = init_cfg.replace('resnet.pth', str(tmp_path / 'resnet.pth'))
    converted, by_hand = convert(child(tmp_path, f'model = dict(backbone=dict(depth=18, init_cfg={init_cfg}))'))
    assert by_hand == []
    init_default_scope('mmdet')
    model = MODELS.build(converted.model)
    status, message = check_weights(model)
    assert (status, message) == (
        ('ok', 'the checkpoint of backbone fits') if 'Pretrained' in init_cfg else ('warn', message))


@pytest.mark.parametrize('text, message', [
    ("model = dict(type='FasterRCNN')", 'only DETR'),
    ("default_hooks = dict()", '3.x already'),
    ("runner = dict(_delete_=True, type='IterBasedRunner', max_iters=9)", 'runner.max_epochs'),
    ("data = dict(train=dict(_delete_=True, type='RepeatDataset', times=2))", 'data.train: has no ann_file'),
    ("model = dict(bbox_head=dict(transformer=dict(_delete_=True, type='Transformer')))", "field 'encoder' is missing"),
    ('x = 1 / 0', 'line 2: ZeroDivisionError'),
    ('print(1)', 'line 2: this is code'),
    ('(', 'line 2: not valid Python'),
])
def test_what_cannot_be_converted_is_one_sentence(tmp_path, text, message):
    path = child(tmp_path, text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        convert_config_2x(path)
    assert str(path) in str(caught.value)


def test_missing_base_file(tmp_path):
    path = tmp_path / 'lonely.py'
    path.write_text("_base_ = '../nowhere/detr.py'")
    with pytest.raises(UserError, match='`_base_`: ../nowhere/detr.py'):
        convert_config_2x(path)


def test_command_line(tmp_path):
    def run(*args):
        return start(sys.executable, TOOL, *args, cwd=tmp_path, merged=False)

    done = run(R50, tmp_path / 'new.py')
    assert (done.returncode, done.stdout) == (0, '')
    assert run(R50).stdout == (tmp_path / 'new.py').read_text()
    left = run(child(tmp_path, 'my_own_switch = True'), tmp_path / 'left.py')
    assert left.returncode == 1 and 'my_own_switch = True' in left.stderr
    assert '# - my_own_switch = True' in (tmp_path / 'left.py').read_text()
    refused = run(child(tmp_path, "model = dict(type='SOLO')"), tmp_path / 'refused.py')
    assert refused.returncode == 2 and 'Traceback' not in refused.stderr
    assert {path.name for path in tmp_path.iterdir()} == {'child.py', 'new.py', 'left.py'}


def test_config_text_gives_the_values_back():
    variables = dict(root='data/', steps=[dict(type='A', scales=[(index, 1333) for index in range(40)])])
    settings = dict(
        one=dict(path='data/x.json', steps=variables['steps'], keys={'a.b': 1, 'c': None}, single=(1,), empty=dict()),
        two=dict(path='data/x.json', steps=variables['steps'], keys={'a.b': 1, 'c': None}, single=(1,), empty=dict()))
    text = config_text(['made for a test'], variables, settings)
    values = {}
    exec(text, values)
    assert {name: values[name] for name in (*variables, *settings)} == variables | settings
    assert "root + 'x.json'" in text and 'two = one' in text
    assert max(map(len, text.splitlines())) <= 110
