"""Fine-tuning from a detector of other classes: real trainings, and each preset of docs/data.md."""

import copy
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from deit_detr.checkpoints.start import prepare_start
from deit_detr.engine.start.classes import with_another_class
from deit_detr.engine.start.preflight import check_config
from deit_detr.scannet.classes import SCANNET_CLASSES
from tests.helpers.paths import REPO
from tests.helpers.small_models import build_small, noise
from tests.helpers.tiny_training import TINY, read_log, tiny_config, train

CLASSES = tuple(name for name, _, _ in SCANNET_CLASSES)
TRAINED = ('person', 'bed', 'Couch', 'dining table', 'toilet', 'sink')
KEPT = dict(bed='bed', sofa='Couch', table='dining table', toilet='toilet', sink='sink')
FAMILIES = sorted(path.stem for path in (REPO / 'projects/deit_detr/configs').glob('*_deit-tiny_*_mini-scannet.py'))
PAGE = (REPO / 'docs/data.md').read_text()
DOCUMENTED = re.findall(r'```python\n(.*?)```', PAGE, re.S)
FREEZE = {'model.backbone.frozen_stages': 2, 'model.backbone.drop_path_rate': 0.0}


def save_detector(path, nested='state_dict'):
    """Save a detector of other classes whose tensors are all different; they lie under ``nested``."""
    cfg = tiny_config(path.parent / 'source/work', {'model.bbox_head.num_classes': len(TRAINED)})
    init_default_scope(cfg.default_scope)
    torch.manual_seed(5)
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(std=0.05)
    tensors = model.state_dict()
    torch.save({nested: tensors, 'meta': dict(dataset_meta=dict(classes=TRAINED))}, path)
    return tensors


@pytest.mark.slow
def test_training_on_other_classes(tmp_path, mini_scannet, run):
    """With a learning rate of 0, the checkpoint after an epoch shows what was loaded: the moving average also."""
    saved, config = save_detector(tmp_path / 'coco.pth'), tmp_path / 'tiny.py'
    config.write_text(TINY)
    output = run(
        sys.executable, REPO / 'tools/train.py', config, '--work-dir', tmp_path / 'work', '--cfg-options',
        f'load_from={tmp_path}/coco.pth', 'custom_hooks.1.same_classes.table="dining table"', 'train_cfg.max_epochs=1',
        'optim_wrapper.optimizer.lr=0.0', MINI_SCANNET_ROOT=f'{mini_scannet}/', OMP_NUM_THREADS=1)
    number, new = len(saved), [name for name in CLASSES if name not in KEPT]
    said = (
        f'{tmp_path}/coco.pth: {number} of {number} tensors of the model are loaded, 4 of them by the names of the '
        'classes. 5 of 20 classes keep their rows: bed, sofa (there Couch), table (there dining table), toilet, sink. '
        f'15 of 20 start fresh: {", ".join(new)}. Not used from the checkpoint: 1 (person)\n')
    log = read_log(tmp_path / 'work')
    assert re.search(f'\nload_from +ok +{re.escape(said)}', log) and f'INFO - {said}' in log
    assert re.search('\npretrained +ok +no part of the model has pretrained weights besides load_from', log)
    assert log.rindex(said) < log.index('Epoch(train)') and 'from scratch' not in output
    trained = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=True)
    average = {
        key.removeprefix('module.'): value for key, value in trained['ema_state_dict'].items() if key != 'steps'}
    for tensors in (trained['state_dict'], average):
        for name, tensor in tensors.items():
            if tensor.shape == saved[name].shape:
                torch.testing.assert_close(tensor, saved[name], msg=name)
                continue
            dim = next(dim for dim, size in enumerate(tensor.shape) if size != saved[name].shape[dim])
            rows, there = tensor.movedim(dim, 0), saved[name].movedim(dim, 0)
            for index, cls in enumerate(CLASSES):
                if cls in KEPT:
                    torch.testing.assert_close(rows[index], there[TRAINED.index(KEPT[cls])], msg=f'{name} {cls}')
                elif 'bias' in name:  # as LW-DETR initializes it: a score of 0.01
                    assert torch.allclose(rows[index], torch.tensor(-4.595), atol=1e-3), f'{name} {cls}'


@pytest.mark.slow
def test_training_with_a_frozen_backbone(tmp_path, mini_scannet, monkeypatch):
    """From a file of another layout, which the hook of the moving average reads also."""
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    saved = save_detector(tmp_path / 'coco.pth', nested='model')
    cfg = tiny_config(tmp_path / 'work', {'train_cfg.max_epochs': 1} | FREEZE)
    cfg.load_from = str(tmp_path / 'coco.pth')
    train(cfg)
    trained = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=True)['state_dict']
    for name, tensor in trained.items():
        if tensor.shape == saved[name].shape:
            assert torch.equal(tensor, saved[name]) == name.startswith('backbone.'), name
    log, frozen = read_log(tmp_path / 'work'), [name for name in saved if name.startswith('backbone.')]
    assert re.search('\ngradients +ok +a step on .* gives every parameter a gradient', log)
    assert re.search(f'optimizer: {len(frozen)} tensors, [0-9,]+ parameters, are frozen\n', log)
    assert 'is skipped since' not in log


def test_preflight_says_what_load_from_gives(tmp_path, mini_scannet, monkeypatch):
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    cfg = tiny_config(tmp_path / 'work')
    save_detector(tmp_path / 'coco.pth')

    def row(**settings):
        cfg.merge_from_dict(settings)
        return next(((row.status, row.message) for row in check_config(cfg) if row.check == 'load_from'), None)

    status, message = row(load_from=str(tmp_path / 'coco.pth'))
    assert status == 'ok' and '4 of 20 classes keep their rows: bed, sofa (there Couch), toilet, sink. 16' in message
    assert row(load_from='missing.pth') == ('FAIL', 'missing.pth: no such checkpoint file')
    assert row(resume='auto') is None  # it may be gone when a training is resumed
    status, message = row(resume=False, custom_hooks=[])
    assert status == 'warn' and 'no PretrainedCheckHook, so classes of other names get the rows' in message


@pytest.mark.parametrize('recipe, options', [
    ('detr-fast_deit-tiny_1xb8-50e_mini-scannet', {}),
    ('lw-detr_deit-tiny_1xb4-16e_mini-scannet', {
        'model.num_groups': 2, 'model.backbone.window_size': 3, 'model.backbone.global_layers': [1],
        'model.backbone.out_indices': [0, 1], 'model.neck.in_channels': [192, 192]}),
])
def test_frozen_backbones_in_data_parallel_training(recipe, options, tmp_path):
    """mmpretrain's ``VisionTransformer`` and ``WindowedViT``: same features twice, no weight moves, DDP goes on."""
    model = build_small(recipe, options | FREEZE)
    assert not any(param.requires_grad for param in model.backbone.parameters())
    model.train()
    image = torch.randn(1, 3, 64, 96)
    for one, two in zip(model.backbone(image), model.backbone(image), strict=True):
        assert torch.equal(one, two)
    before = copy.deepcopy(model.state_dict())
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    try:
        parallel = MMDistributedDataParallel(model, broadcast_buffers=False)
        optimizer = build_optim_wrapper(parallel, dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1)))
        for _ in range(3):  # DDP notices in the second that a parameter had no gradient
            parallel.train_step(noise((64, 96, 3)), optimizer)
    finally:
        torch.distributed.destroy_process_group()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith('backbone.'), name


def preset(kind: str) -> dict:
    """Return what a block of docs/data.md sets."""
    found = {}
    exec(textwrap.dedent(next(block for block in DOCUMENTED if kind in block)), {}, found)
    return found


def test_documented_start(tmp_path):
    """The config of docs/data.md, and what it says of the log, with COCO's classes and ScanNet's."""
    path = tmp_path / 'fine_tune.py'
    path.write_text(next(block for block in DOCUMENTED if 'load_from' in block).replace("'../", f"'{REPO}/"))
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    coco = Config.fromfile(REPO / 'projects/deit_detr/configs' / f'{Path(cfg.load_from).parent.name}.py')
    with torch.device('meta'):
        larger = MODELS.build(with_another_class(cfg.model)).state_dict()
    checkpoint = dict(state_dict=MODELS.build(coco.model).state_dict())
    checkpoint['meta'] = dict(dataset_meta=dict(classes=CocoDataset.METAINFO['classes']))
    loaded, left_out = prepare_start(MODELS.build(cfg.model), checkpoint, '...', CLASSES, lambda: larger)
    shown = ' '.join(re.search(r'```\n(\.\.\.: .*?)\n```', PAGE, re.S)[1].split())
    assert re.fullmatch(re.escape(shown).replace(re.escape('...'), '.*'), loaded) and not left_out


@pytest.mark.parametrize('recipe', FAMILIES)
def test_documented_presets(recipe):
    """Frozen is the whole backbone; the rate of what depends on the classes is 10 times that of the rest."""
    cfg = Config.fromfile(REPO / f'projects/deit_detr/configs/{recipe}.py')
    init_default_scope(cfg.default_scope)
    cfg.merge_from_dict(preset('frozen_stages'))
    with torch.device('meta'):
        frozen = MODELS.build(cfg.model)
    assert not any(param.requires_grad for param in frozen.backbone.parameters())
    assert any(param.requires_grad for param in frozen.parameters())

    cfg = Config.fromfile(REPO / f'projects/deit_detr/configs/{recipe}.py')
    cfg.merge_from_dict(preset('lr_mult') | {'optim_wrapper.optimizer.fused': False})
    with torch.device('meta'):
        model, larger = (MODELS.build(copy.deepcopy(part)) for part in (cfg.model, with_another_class(cfg.model)))
    names = {param: name for name, param in model.named_parameters()}
    shapes = {name: param.shape for name, param in larger.named_parameters()}
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    base = cfg.optim_wrapper.optimizer.lr
    assert any(param.shape != shapes[name] for param, name in names.items())
    for group in optimizer.param_groups:
        for param in group['params']:
            depends = param.shape != shapes[names[param]]
            assert (group['lr'] > 1.1 * base) == depends, names[param]
            assert not depends or group['lr'] == pytest.approx(10 * base), names[param]
