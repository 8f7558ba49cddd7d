"""The migration is exact: a 2.x config and checkpoint, through both tools, give the golden values of mmdet 2.28.

The largest differences are printed: `pytest tests/migration/test_golden_2x.py -s`.
"""

import json
import sys

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment

from tests.data.legacy_2x.inputs import CASES, boxes, image, weight
from tests.helpers.fork_server import start
from tests.helpers.paths import REPO

DATA_2X = REPO / 'tests/data/legacy_2x'
SEED_RECIPE = REPO / 'projects/deit_detr/configs/detr_deit-tiny_8xb1-150e_scannet.py'
CLASSES = ('wall', 'floor', 'cabinet', 'bed', 'chair', 'sofa', 'table', 'door', 'window', 'bookshelf', 'picture',
           'counter', 'desk', 'curtain', 'refrigerator', 'shower curtain', 'toilet', 'sink', 'bathtub',
           'otherfurniture')


def run_tool(tool: str, *args) -> None:
    result = start(sys.executable, REPO / 'tools' / tool, *args, cwd=REPO)
    assert result.returncode == 0, result.stdout


def build_model(config: Config) -> torch.nn.Module:
    init_default_scope('mmdet')
    model_cfg = config.model.to_dict()  # a copy: building changes it
    model_cfg['backbone']['init_cfg'] = None
    return MODELS.build(model_cfg)


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Config:
    """The verbatim 2.x config, converted."""
    new = tmp_path_factory.mktemp('config') / 'converted.py'
    run_tool('misc/convert_config_2x.py', DATA_2X / 'detr_deit_tiny_8x1_150e_scannet.py', new)
    with pytest.MonkeyPatch.context() as environment:
        for name in ('DEIT_DATASETS', 'MMDET_DATASETS'):
            environment.delenv(name, raising=False)
        return Config.fromfile(new)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> dict:
    """A 2.x checkpoint as mmcv writes it, converted."""
    folder = tmp_path_factory.mktemp('checkpoint')
    shapes = json.loads((DATA_2X / 'state_dict_keys.json').read_text())
    state_dict = {key: torch.from_numpy(weight(key, tuple(shape))) for key, shape in shapes.items()}
    moments = dict(step=7, exp_avg=torch.zeros(2), exp_avg_sq=torch.zeros(2))
    torch.save(
        dict(
            meta=dict(
                epoch=150, iter=123, CLASSES=CLASSES, seed=0, hook_msgs=dict(best=np.float64(1)),
                config='model = dict(backbone=dict(with_cls_token=False))'),
            state_dict=state_dict,
            optimizer=dict(state={0: moments}, param_groups=[dict(lr=1e-4, params=[0])])),
        folder / '2x.pth')
    run_tool('model_converters/mmdet2x_to_3x.py', folder / '2x.pth', folder / '3x.pth')
    return torch.load(folder / '3x.pth', weights_only=True)


@pytest.fixture(scope='module')
def model(config, checkpoint) -> torch.nn.Module:
    model = build_model(config)
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    return model.eval()


def largest(actual, golden) -> float:
    return float(np.abs(np.asarray(actual, np.float64) - golden).max())


@pytest.mark.parametrize('case', CASES)
def test_forward_equals_2x(case, model):
    golden = np.load(DATA_2X / 'golden_forward.npz')
    sizes = CASES[case]
    height, width = max(size[1] for size in sizes), max(size[2] for size in sizes)
    images = torch.zeros(len(sizes), 3, height, width)
    samples = []
    for index, (seed, h, w) in enumerate(sizes):
        images[index, :, :h, :w] = torch.from_numpy(image(seed, h, w))
        xyxy, labels = boxes(seed, 3 + 4 * index, h, w)
        sample = DetDataSample(metainfo=dict(img_shape=(h, w), batch_input_shape=(height, width)))
        sample.gt_instances = InstanceData(bboxes=torch.from_numpy(xyxy), labels=torch.from_numpy(labels))
        samples.append(sample)

    with torch.no_grad():
        features = model.backbone(images)
        hidden = model.forward_transformer(model.neck(features), samples)['hidden_states']
        logits, cxcywh = model.bbox_head(hidden)
        losses = model.bbox_head.loss(hidden, samples)
        detections = model.bbox_head.predict(hidden, samples, rescale=False)

    differences = {
        'features': largest(features[0][:, ::8], golden[f'{case}/feat']),
        'logits': largest(logits, golden[f'{case}/cls']),
        'boxes': largest(cxcywh, golden[f'{case}/box']),
    }
    golden_losses = {key.removeprefix(f'{case}/loss/') for key in golden if key.startswith(f'{case}/loss/')}
    assert losses.keys() == golden_losses and len(golden_losses) == 18
    differences['losses'] = max(largest(losses[name], golden[f'{case}/loss/{name}']) for name in golden_losses)
    for index, (_, h, w) in enumerate(sizes):
        # sides as shares of the image's; queries whose scores tie in the sixth decimal may swap their places
        scale = np.array([w, h, w, h, 1])
        found = torch.cat([detections[index].bboxes, detections[index].scores[:, None]], 1).numpy() / scale
        expected = golden[f'{case}/det{index}'] / scale
        distance = np.abs(found[:, None] - expected[None]).max(-1)
        distance += detections[index].labels.numpy()[:, None] != golden[f'{case}/lab{index}'][None]
        differences[f'detections {index}'] = distance[linear_sum_assignment(distance)].max()
    print(f'\n{case}: ' + ', '.join(f'{name} {value:.1e}' for name, value in differences.items()))
    assert max(differences.values()) < 1e-4


def test_pipeline_equals_2x(config, indoor_photos):
    golden = np.load(DATA_2X / 'golden_pipeline.npz')
    init_default_scope('mmdet')
    steps = [step for step in config.test_dataloader.dataset.pipeline if step['type'] != 'LoadAnnotations']
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    preprocessor = MODELS.build(config.model.data_preprocessor)
    names = sorted({key.partition('|')[0] for key in golden})
    assert len(names) == 3
    for name in names:
        sample = pipeline(dict(img_path=str(indoor_photos / name), img_id=0))
        batch = preprocessor(dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']]))
        assert tuple(batch['inputs'].shape[2:]) == tuple(golden[f'{name}|shape'][:2])
        np.testing.assert_array_equal(batch['inputs'][0, :, ::16, ::16].numpy(), golden[f'{name}|img'])
        np.testing.assert_allclose(batch['data_samples'][0].scale_factor, golden[f'{name}|scale'][:2], rtol=1e-7)


def test_class_names_come_along(checkpoint):
    assert checkpoint['meta'] == dict(epoch=150, iter=123, dataset_meta=dict(classes=CLASSES))


def leaves(value, path=''):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f'{path}.{key}' if path else key)
    elif isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from leaves(item, f'{path}[{index}]')
    elif value is not None:
        yield path, value


def test_converted_config_is_the_seed_recipe(config, monkeypatch):
    """What differs is named here, field for field."""
    for name in ('DEIT_DATASETS', 'MMDET_DATASETS', 'DEIT_CHECKPOINT'):
        monkeypatch.delenv(name, raising=False)
    seed = Config.fromfile(SEED_RECIPE)
    settings = [
        'model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator',
        'train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper', 'param_scheduler', 'default_hooks', 'custom_hooks',
        'env_cfg', 'log_processor', 'visualizer', 'log_level', 'load_from', 'resume', 'auto_scale_lr', 'custom_imports',
        'default_scope']
    converted = dict(leaves({name: config[name] for name in settings}))
    recipe = dict(leaves({name: seed[name] for name in settings}))
    differing = {
        path for path in converted.keys() | recipe.keys()
        if str(converted.get(path)).replace('//', '/') != str(recipe.get(path)).replace('//', '/')}
    loaders = ('train', 'val', 'test')
    assert differing == {
        # the recipe's data set checks the class table; CocoDataset takes the names from the config
        *(f'{split}_dataloader.dataset.type' for split in loaders),
        *(f'{split}_dataloader.dataset.metainfo.classes[{index}]' for split in loaders for index in range(20)),
        # the recipe reports more and keeps fewer checkpoints
        'val_evaluator.classwise', 'test_evaluator.classwise',
        'default_hooks.checkpoint.max_keep_ckpts', 'default_hooks.checkpoint.save_best',
        'default_hooks.checkpoint.rule', 'visualizer.vis_backends[1].type',
        # of mmdet 2.x' default_runtime.py
        'auto_scale_lr.base_batch_size',
    }
    assert config.train_dataloader.dataset.metainfo.classes == CLASSES


def test_converted_config_builds_the_model_of_the_seed_recipe(model):
    recipe = build_model(Config.fromfile(SEED_RECIPE)).state_dict()
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in recipe.items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == 17_803_225
