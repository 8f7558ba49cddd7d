"""Broken configs and data are refused before training, each with what is wrong and all of it at once."""

import copy
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import mmdet
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from deit_detr.datasets.scannet import ScanNetDataset
from deit_detr.engine.start import data, preflight, resources, trial_step
from deit_detr.engine.start.evaluator import build_metrics, check_evaluator
from deit_detr.engine.start.fields import check_fields
from deit_detr.engine.start.findings import FAIL, OK, UNKNOWN, WARN, run_check
from deit_detr.engine.start.preflight import build_runner, check_config
from deit_detr.errors import UserError
from tests.helpers.fork_server import SERVER
from tests.helpers.paths import REPO, TINY_RUN

CONFIGS = REPO / 'projects/deit_detr/configs'
DETR, DINO, LW_DETR = (
    CONFIGS / f'{name}_mini-scannet.py'
    for name in ('detr_deit-tiny_1xb8-50e', 'dino_deit-tiny_1xb4-8e', 'lw-detr_deit-tiny_1xb4-16e'))


@pytest.fixture
def frames(tmp_path, mini_scannet, monkeypatch) -> Path:
    """A copy of the rooms that may be broken, where the recipes look for theirs."""
    root = tmp_path / 'frames'
    for split in ('train', 'val'):
        shutil.copytree(mini_scannet / split, root / split)
        shutil.copy(mini_scannet / f'scannet_objdet_{split}.json', root)
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{root}/')
    return root


def load(recipe: Path, **changes) -> Config:
    cfg = Config.fromfile(recipe)
    init_default_scope(cfg.default_scope)
    cfg.merge_from_dict({'model.backbone.init_cfg': None, **changes})
    return cfg


def edit(root: Path, split: str, change) -> None:
    path = root / f'scannet_objdet_{split}.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def check_frames(recipe: Path = DETR) -> dict[str, tuple[str, str]]:
    cfg = load(recipe)
    datasets = {
        split: DATASETS.build(copy.deepcopy(cfg[f'{split}_dataloader'].dataset)) for split in ('train', 'val')}
    return {finding.check: (finding.status, finding.message) for finding in data.check_data(datasets)}


# ---- the whole


def test_sound_recipe_passes(frames, deit_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv('DEIT_CHECKPOINT', str(deit_checkpoint))
    cfg = Config.fromfile(DETR)
    cfg.work_dir = str(tmp_path)
    before = cfg.pretty_text
    findings = {finding.check: finding for finding in check_config(cfg)}
    # versions other than those in requirements/ are worth a word
    assert findings.pop('versions').status in (OK, WARN)
    assert {finding.status for finding in findings.values()} == {OK}, findings
    assert 'backbone: ' in findings['pretrained'].message and ' tensors' in findings['pretrained'].message
    assert cfg.pretty_text == before


@pytest.mark.slow
def test_everything_wrong_is_said_at_once(frames, run):
    """One run of the tool, one line each; a runner, whose data cannot even be built, stops with the same."""
    edit(frames, 'train', lambda content: content['annotations'][0].update(id=content['annotations'][1]['id']))
    (next((frames / 'val').glob('**/*.jpg'))).write_bytes(b'no image')
    broken = ['--cfg-options', 'model.bbox_head.num_classes=21', 'model.neck.out_channels=256',
              'model.backbone.init_cfg=None']
    output = run(sys.executable, REPO / 'tools/preflight.py', DETR, *broken, status=1)
    lines = {line.split('  ')[0]: line for line in output.splitlines() if 'FAIL' in line}
    assert set(lines) == {'model fields', 'train annotations', 'val images', 'classes'}
    assert 'model.neck.out_channels says 256' in lines['model fields']
    assert 'ids of annotations have to differ' in lines['train annotations']
    assert 'cannot be decoded' in lines['val images']
    assert 'model.bbox_head.num_classes is 21' in lines['classes']

    cfg = load(DETR, **{'model.bbox_head.num_classes': 21, 'model.neck.out_channels': 256, 'launcher': 'none'})
    cfg.work_dir = str(frames / 'work')
    with pytest.raises(UserError, match='^4 of ') as caught:
        build_runner(cfg)
    assert all(line.split('FAIL', 1)[1].strip() in str(caught.value) for line in lines.values())


@pytest.mark.slow
def test_hook_stops_all_processes(frames, run, tmp_path):
    """The data is looked at by one of two; both end, long before the timeout of their group."""
    (next((frames / 'train').glob('**/*.jpg'))).unlink()
    options = [option for option in TINY_RUN if 'init_cfg' not in option]
    output = run(
        'python', '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2,
        REPO / 'tools/train.py', DETR, '--work-dir', tmp_path, '--launcher', 'pytorch', *options,
        'model.backbone.init_cfg.checkpoint=missing.pth', status=1, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS=1,
        timeout=300, **SERVER.shell())
    assert output.count('error: 3 of 17 checks before training failed:') == 2
    assert output.count('train images: 1 of 16 images missing or empty') == 2, 'an error in each process'
    assert 'pretrained: missing.pth: no such checkpoint file' in output


def test_classes_are_compared_without_preflight_hook(frames):
    """As a config of version 0.1 may be: its ``ClassCheckHook`` compares them itself."""
    cfg = load(DETR, **{'model.bbox_head.num_classes': 21, 'launcher': 'none'})
    cfg.work_dir, cfg.custom_hooks = str(frames / 'work'), [dict(type='ClassCheckHook')]
    with pytest.raises(UserError, match='classes: train_dataloader.* but model.bbox_head.num_classes is 21. Make them'):
        build_runner(cfg).train()


# ---- fields of the config

@pytest.mark.parametrize('recipe, changes, expected', [
    (DETR, {'model.bbox_head.embed_dims': 256, 'model.positional_encoding.num_feats': 64},
     ['model.bbox_head.embed_dims says 256', 'model.positional_encoding.num_feats (64, counts twice) says 128',
      'other fields say 192']),
    (DETR, {'model.encoder.layer_cfg.ffn_cfg': dict(_delete_=True), 'model.backbone.arch': 'deit-small'},
     ['model.encoder.layer_cfg.ffn_cfg.embed_dims says 256',
      'model.neck.in_channels is [192]; the maps of model.backbone have [384] channels']),
    (DETR, {'model.decoder.layer_cfg.cross_attn_cfg.num_heads': 7, 'model.test_cfg.max_per_img': 300},
     ['model.decoder.layer_cfg.cross_attn_cfg.num_heads is 7, which does not divide embed_dims, 192',
      'model.test_cfg.max_per_img is 300; model.num_queries, 100, gives 100 boxes']),
    (DINO, {'model.num_feature_levels': 4, 'model.neck.num_outs': 3},
     ['model.num_feature_levels says 4', 'model.neck.num_outs says 3', '2 other fields say 2']),
    (LW_DETR, {'model.decoder.layer_cfg.cross_attn_cfg.num_levels': 2, 'model.neck.scales': [2, 1, 0.5]},
     ['model.decoder.layer_cfg.cross_attn_cfg.num_levels says 2', 'model.neck.scales says 3']),
])
def test_all_fields_that_disagree_are_named(recipe, changes, expected):
    status, message = check_fields(load(recipe, **changes).model)
    assert status == FAIL
    assert all(text in message for text in expected), message


def test_dimensions_that_mmdet_has_written_into_its_code():
    cfg = load(DINO)
    text = json.dumps(cfg.model.to_dict()).replace('256', '192').replace('"num_feats": 128', '"num_feats": 96')
    status, message = check_fields(Config(json.loads(text)))
    assert (status, message.split(':')[0]) == (FAIL, 'embed_dims has to be 256')


def test_configs_of_mmdet_have_consistent_fields():
    """No false alarm on any of mmdet's own recipes."""
    folder = Path(mmdet.__file__).parent / '.mim/configs'
    if not folder.is_dir():
        pytest.skip('this mmdet comes without its configs')
    init_default_scope('mmdet')
    paths = [path for family in ('detr', 'conditional_detr', 'dab_detr', 'deformable_detr', 'dino', 'ddq')
             for path in (folder / family).glob('*.py')]
    wrong = {path.name: message for path in paths
             if (message := check_fields(Config.fromfile(path).model))[0] not in (OK, UNKNOWN)}
    assert len(paths) > 15 and not wrong


# ---- data

def test_missing_resized_and_broken_images(frames):
    first, second, *_ = sorted((frames / 'train').glob('*/color/*.jpg'))
    image = Image.open(first)
    image.resize((80, 60)).save(first)
    second.write_bytes(second.read_bytes()[:200])
    status, message = check_frames()['train images']
    assert status == FAIL and '2 of a sample of 16' in message
    assert f'{first} has 80x60 pixels, its annotation says 160x120' in message
    assert f'{second} cannot be decoded' in message


@pytest.mark.parametrize('bbox, status, text', [
    ([0, 0, 0.5, 20], WARN, '1 thinner than a pixel'),
    ([100, 20, 90, 30], WARN, '1 more than a pixel beyond the image'),
    ([500, 20, 10, 30], WARN, '1 outside the image'),
    ('again', WARN, '1 duplicated'),
])
def test_odd_boxes_are_counted(frames, bbox, status, text):
    def change(content):
        first, second = content['annotations'][:2]
        if bbox == 'again':
            second.update(first, id=second['id'])
        else:
            first['bbox'] = bbox

    edit(frames, 'train', change)
    found, message = check_frames()['train boxes']
    assert found == status and text in message and '(annotation ' in message


def test_box_that_is_no_number_is_named(frames, monkeypatch):
    edit(frames, 'train', lambda content: content['annotations'][0].update(bbox=[float('nan'), 0, 10, 10]))
    with pytest.raises(UserError, match='field "bbox" of annotations has to be four numbers'):
        check_frames()
    monkeypatch.setattr(ScanNetDataset, 'COCOAPI', CocoDataset.COCOAPI)  # mmdet's own reads it
    found, message = check_frames()['train boxes']
    assert found == FAIL and '1 not finite' in message


def test_pipeline_that_fails(frames):
    cfg = load(DETR)
    cfg.train_dataloader.dataset.pipeline.insert(0, dict(type='Resize', scale=(64, 64)))  # before the image is loaded
    findings = {finding.check: finding for finding in check_config(cfg)}
    assert findings['train pipeline'].status == FAIL and findings['memory'].status == UNKNOWN
    assert 'the training pipeline fails on image 0: KeyError' in findings['train pipeline'].message


def test_many_odd_boxes_are_a_mistake(frames):
    def corners(content):
        for row in content['annotations']:
            row['bbox'] = [row['bbox'][0] + 40, row['bbox'][1] + 40, *row['bbox'][2:]]

    edit(frames, 'train', corners)
    assert check_frames()['train boxes'][0] == FAIL


def test_overlap_by_room_by_image_and_by_file(frames):
    def other_scan(content):
        for image in content['images']:
            image['file_name'] = image['file_name'].replace(content['images'][0]['file_name'][:12], moved)

    (first, *_), (image, *_) = sorted((frames / 'train').iterdir()), sorted((frames / 'val').glob('*/color/*.jpg'))
    moved = f'{first.name[:9]}_77'
    # the same pixels under another name, of one scene that stays
    copied = sorted(first.glob('color/*.jpg'))[0]
    shutil.copy(copied, image)
    status, message = check_frames()['train/val overlap']
    assert status == FAIL and f'1 images are in both, e.g. {copied} and {image}' in message

    scene = json.loads((frames / 'scannet_objdet_val.json').read_text())['images'][0]['file_name'][:12]
    (frames / 'val' / scene).rename(frames / 'val' / moved)
    edit(frames, 'val', other_scan)
    status, message = check_frames()['train/val overlap']
    assert status == FAIL and f'1 rooms are in both, e.g. {first.name[:9]}' in message


def test_evaluator_with_another_file(frames):
    cfg = load(DETR)
    dataset = DATASETS.build(copy.deepcopy(cfg.val_dataloader.dataset))
    assert check_evaluator(build_metrics(cfg.val_evaluator), dataset)[0] == OK

    def mirror(content):
        for row in content['annotations']:
            row['bbox'][0] = 160 - row['bbox'][0] - row['bbox'][2]

    edit(frames, 'val', mirror)
    status, message = check_evaluator(build_metrics(cfg.val_evaluator), dataset)
    assert status == FAIL and 'AP 0.' in message
    cfg.val_evaluator.ann_file = cfg.train_dataloader.dataset.data_root + cfg.train_dataloader.dataset.ann_file
    edit(frames, 'train', lambda content: [image.update(id=image['id'] + 10**6) for image in content['images']])
    edit(frames, 'train', lambda content: [row.update(image_id=row['image_id'] + 10**6)
                                           for row in content['annotations']])
    status, message = check_evaluator(build_metrics(cfg.val_evaluator), dataset)
    assert status == FAIL and 'val_evaluator.ann_file has no image' in message


# ---- model and machine

@pytest.fixture(scope='module')
def small():
    cfg = load(DETR, **{
        'model.backbone.arch': dict(
            _delete_=True, embed_dims=192, num_layers=1, num_heads=3, feedforward_channels=64),
        'model.encoder.num_layers': 1, 'model.decoder.num_layers': 1})
    return MODELS.build(copy.deepcopy(cfg.model)), cfg


def test_step_leaves_no_trace(small):
    detector, cfg = small
    weights = copy.deepcopy(detector.state_dict())
    torch.manual_seed(3)
    np.random.seed(3)
    trial_step.take_step(detector, cfg)
    drawn = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3)
    np.random.seed(3)
    assert torch.equal(drawn[0], torch.rand(3)) and np.array_equal(drawn[1], np.random.rand(3))
    assert all(torch.equal(weights[name], value) for name, value in detector.state_dict().items())
    assert all(param.grad is None for param in detector.parameters())


def test_weights_that_are_yet_to_be_drawn_fail_no_step(small):
    detector, cfg = copy.deepcopy(small)
    assert not detector.is_init
    torch.nn.init.constant_(detector.query_embedding.weight, torch.nan)  # as --deterministic fills what is not drawn
    assert trial_step.take_step(detector, cfg).without_gradient == []
    detector._is_init = True
    # mmdet's matching fails, or the loss is not finite if NonFiniteHook has trained in this process before
    with pytest.raises(UserError, match='the model fails on an image|the loss of an image of noise is not finite'):
        trial_step.take_step(detector, cfg)


def test_a_step_that_does_not_fit_is_told_from_others(small, monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(trial_step, '_loss', out_of_memory)
    with pytest.raises(trial_step.TooLarge, match='does not fit into the free memory'):
        trial_step.take_step(*small)


@pytest.mark.parametrize('free, status', [(0.79, FAIL), (0.81, WARN), (1.39, WARN), (1.41, OK)])
def test_bounds_of_the_estimate(free, status, small, monkeypatch):
    detector, cfg = small
    step = trial_step.take_step(detector, cfg)
    need = resources.estimate(detector, cfg, step, cfg.train_dataloader.batch_size, (144, 192))
    monkeypatch.setattr(resources, 'free_memory', lambda _: free * need)
    assert resources.check_memory(detector, cfg, step, (144, 192))[0] == status


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_memory_of_a_gpu_is_measured(small):
    detector, cfg = copy.deepcopy(small)
    detector.cuda()
    few, many = (resources.needed_memory(detector, cfg, batch, (320, 320)) for batch in (1, 4))
    assert 0 < few < many < 4 * few
    status, message = resources.check_memory(detector, cfg, trial_step.take_step(detector, cfg), (320, 320))
    assert status == OK and 'measured' in message
    step = trial_step.take_step(detector, cfg)
    torch.cuda.set_per_process_memory_fraction(2e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(trial_step.TooLarge, match='8 images of 1600x1600 does not fit'):
            resources.check_memory(detector, cfg, step, (1600, 1600))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_allocated() < 1e9


def test_parameter_without_gradient_is_named(small):
    detector, cfg = copy.deepcopy(small)
    detector.forgotten = torch.nn.Linear(2, 2)
    step = trial_step.take_step(detector, cfg)
    status, message = trial_step.check_gradients(step, cfg)
    assert status == WARN and '2 parameters get no gradient, e.g. forgotten.weight' in message
    cfg.launcher = 'pytorch'
    assert trial_step.check_gradients(step, cfg)[0] == FAIL


def test_shape_error_becomes_a_finding(small):
    detector, cfg = copy.deepcopy(small)
    detector.neck.convs[0].conv = torch.nn.Conv2d(100, 192, 1)
    finding = run_check('gradients', trial_step.take_step, detector, cfg)
    assert finding.status == FAIL and 'the model fails on an image of 192x192: RuntimeError' in finding.message


def test_memory_and_disk(small, tmp_path):
    detector, cfg = small
    step = trial_step.take_step(detector, cfg)
    assert resources.check_memory(detector, cfg, step, (144, 192))[0] == OK
    status, message = resources.check_memory(detector, cfg, step, (10**5, 10**5))
    assert status == FAIL and 'lower train_dataloader.batch_size' in message
    assert resources.check_memory(detector, cfg, None, None)[0] == UNKNOWN
    kept = copy.deepcopy(cfg)
    kept.work_dir = str(tmp_path / 'new')
    assert resources.check_disk(detector, kept)[0] == OK
    kept.default_hooks.checkpoint.max_keep_ckpts = 10**9
    status, message = resources.check_disk(detector, kept)
    assert status == FAIL and 'max_keep_ckpts' in message


def test_batch_norm_is_not_synchronized_on_a_cpu(monkeypatch):
    """SyncBatchNorm raises an error there as soon as several processes train."""
    built = []
    monkeypatch.setattr(preflight, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(
        preflight.Runner, 'from_cfg', lambda cfg: built.append(cfg) or SimpleNamespace(train_loop=None, val_loop=None))
    cfg = Config(dict(sync_bn='torch', seed=0))
    build_runner(cfg)
    assert built[0].to_dict() == dict(seed=0) and cfg.sync_bn == 'torch'
