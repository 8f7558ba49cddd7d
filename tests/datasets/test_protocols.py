"""The protocols of docs/data.md: COCO's as in mmdet, and Pri3D's against a plain version of its rules."""

import copy
import json
import re
import shlex
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from deit_detr.errors import UserError
from deit_detr.evaluation.pri3d import Pri3DMetric
from deit_detr.scannet.classes import scannet_metainfo
from tests.helpers.paths import REPO

CONFIGS = REPO / 'projects/deit_detr/configs'
ALL, KEPT = scannet_metainfo(20), scannet_metainfo(18)


def evaluate(metric: CocoMetric, predictions: dict[int, tuple], classes: tuple[str, ...]) -> dict:
    """Return the AP of predictions: image id -> boxes (n, 4, corners), scores (n,) and labels (n,)."""
    metric.dataset_meta = dict(classes=classes)
    for img_id, (boxes, scores, labels) in predictions.items():
        instances = dict(
            bboxes=torch.as_tensor(boxes), scores=torch.as_tensor(scores), labels=torch.as_tensor(labels))
        metric.process({}, [dict(img_id=img_id, ori_shape=(120, 160), pred_instances=instances)])
    return metric.evaluate(len(predictions))


@pytest.fixture
def frames(mini_scannet18, tmp_path) -> Path:
    """The 18-class validation file with one frame without boxes."""
    content = json.loads((mini_scannet18 / 'scannet_objdet_val.json').read_text())
    emptied = content['images'][1]['id']
    content['annotations'] = [row for row in content['annotations'] if row['image_id'] != emptied]
    path = tmp_path / 'val.json'
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def predictions(frames) -> dict[int, tuple]:
    """Return the boxes of the file, slightly shifted, with random scores and false boxes; labels of 18 classes."""
    generator = np.random.default_rng(0)
    content = json.loads(frames.read_text())
    result = {}
    for image in content['images']:
        rows = [row for row in content['annotations'] if row['image_id'] == image['id']]
        boxes = np.array([row['bbox'] for row in rows], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [KEPT['category_ids'].index(row['category_id']) for row in rows]
        false = generator.uniform(0, 60, (6, 4)) + [0, 0, 60, 60]
        boxes = np.concatenate([boxes + generator.normal(0, 3, boxes.shape), false])
        labels = np.concatenate([labels, generator.choice(labels or [0], 6)]).astype(int)
        result[image['id']] = boxes, generator.uniform(0.2, 1, len(boxes)), labels
    return result


def keep(predictions: dict, select) -> dict:
    return {key: tuple(part[select(*row)] for part in row) for key, row in predictions.items()}


def test_pri3d_ap_is_that_of_the_confident_boxes_on_frames_with_boxes(frames, predictions, tmp_path):
    found = evaluate(Pri3DMetric(str(frames)), predictions, KEPT['classes'])

    content = json.loads(frames.read_text())
    with_boxes = {row['image_id'] for row in content['annotations']}
    assert len(with_boxes) == len(content['images']) - 1
    content['images'] = [image for image in content['images'] if image['id'] in with_boxes]
    (tmp_path / 'rules.json').write_text(json.dumps(content))
    confident = keep(predictions, lambda boxes, scores, labels: scores > 0.5)
    expected = evaluate(
        CocoMetric(str(tmp_path / 'rules.json')), {key: confident[key] for key in with_boxes}, KEPT['classes'])

    assert found == {key.replace('coco/', 'pri3d/'): value for key, value in expected.items()}
    usual = evaluate(CocoMetric(str(frames)), predictions, KEPT['classes'])
    assert 0 < found['pri3d/bbox_mAP_50'] < 1 and found['pri3d/bbox_mAP_50'] != usual['coco/bbox_mAP_50']


def test_each_rule_changes_the_ap(frames, predictions):
    usual = evaluate(CocoMetric(str(frames)), predictions, KEPT['classes'])['coco/bbox_mAP_50']
    only_empty_frames = evaluate(Pri3DMetric(str(frames), score_thr=0), predictions, KEPT['classes'])
    assert only_empty_frames['pri3d/bbox_mAP_50'] > usual, 'false boxes on the empty frame no longer count'
    threshold = evaluate(Pri3DMetric(str(frames)), predictions, KEPT['classes'])
    assert threshold['pri3d/bbox_mAP_50'] < only_empty_frames['pri3d/bbox_mAP_50']


def test_model_of_20_classes_by_names(frames, predictions):
    """Its labels differ, and its walls and floors do not count."""
    of_20 = {
        key: (np.concatenate([boxes, boxes]), np.concatenate([scores, scores + 1]), np.concatenate([
            [ALL['classes'].index(KEPT['classes'][label]) for label in labels], labels % 2]).astype(int))
        for key, (boxes, scores, labels) in predictions.items()}
    assert (evaluate(Pri3DMetric(str(frames)), of_20, ALL['classes'])
            == evaluate(Pri3DMetric(str(frames)), predictions, KEPT['classes']))


def test_file_with_classes_that_the_model_has_not(mini_scannet, predictions):
    with pytest.raises(UserError, match=r"has the classes \['wall', 'floor'\], which the data set does not have"):
        evaluate(Pri3DMetric(f'{mini_scannet}/scannet_objdet_val.json'), predictions, KEPT['classes'])


def test_coco_is_evaluated_as_mmdet_does(monkeypatch):
    base = Path(mmdet.__file__).parent / '.mim/configs/_base_/datasets/coco_detection.py'
    if not base.is_file():
        pytest.skip('this mmdet comes without its configs')
    monkeypatch.delenv('COCO_ROOT', raising=False)
    ours, theirs = Config.fromfile(CONFIGS / 'dino_deit-tiny_8xb2-12e_coco.py'), Config.fromfile(base)
    metric, reference = (copy.deepcopy(cfg.test_evaluator) for cfg in (ours, theirs))
    assert ours.val_evaluator == ours.test_evaluator
    assert metric.pop('classwise') is True  # a table besides
    assert reference.pop('format_only') is False  # the default
    assert metric == reference
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader, reference = (copy.deepcopy(cfg[name]) for cfg in (ours, theirs))
        assert (loader.dataset.pop('type'), reference.dataset.pop('type')) == ('CheckedCocoDataset', 'CocoDataset')
        pipelines = loader.dataset.pop('pipeline'), reference.dataset.pop('pipeline')
        assert loader == reference
        if name != 'train_dataloader':
            assert pipelines[0] == pipelines[1]


def test_recipe_of_18_classes_reports_both_protocols(data_roots):
    """Run the test evaluators of the recipe on perfect boxes, half of them with low scores."""
    cfg = Config.fromfile(CONFIGS / 'detr_deit-tiny_8xb1-150e_scannet18.py')
    coco, pri3d = (METRICS.build(copy.deepcopy(metric)) for metric in cfg.test_evaluator)
    content = json.loads(Path(cfg.val_evaluator.ann_file).read_text())
    perfect = {}
    for image in content['images']:
        rows = [row for row in content['annotations'] if row['image_id'] == image['id']]
        boxes = np.array([row['bbox'] for row in rows], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.where(np.arange(len(rows)) % 2, 0.4, 0.9)
        perfect[image['id']] = boxes, scores, [KEPT['category_ids'].index(row['category_id']) for row in rows]
    assert evaluate(coco, perfect, KEPT['classes'])['coco/bbox_mAP_50'] == 1
    assert 0 < evaluate(pri3d, perfect, KEPT['classes'])['pri3d/bbox_mAP_50'] < 1


@pytest.mark.parametrize('recipe, expected', [
    ('detr_deit-tiny_8xb1-150e_scannet18', {'coco', 'pri3d'}), ('detr_deit-tiny_8xb1-150e_scannet', {'pri3d'})])
def test_documented_commands_evaluate(recipe, expected, mini_scannet, mini_scannet18, tmp_path, run):
    page = (REPO / 'docs/data.md').read_text().replace('\\\n', ' ')
    (command,) = re.findall(rf'^python tools/test.py \S+/{recipe}.py .*', page, flags=re.M)

    for name in ('projects', 'tools', 'configs'):
        (tmp_path / name).symlink_to(REPO / name)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/scannet-frames').symlink_to(mini_scannet)
    (tmp_path / 'data/scannet-frames-18').symlink_to(mini_scannet18)
    checkpoint = tmp_path / f'work_dirs/{recipe}/epoch_150.pth'
    checkpoint.parent.mkdir(parents=True)
    small_model = {'model.backbone.init_cfg': None, 'model.encoder.num_layers': 1, 'model.decoder.num_layers': 1}
    cfg = Config.fromfile(CONFIGS / f'{recipe}.py')
    cfg.merge_from_dict(small_model)
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=150)), checkpoint)  # random weights are enough

    small = {
        **small_model, 'test_dataloader.dataset.pipeline.1.scale': '(192,128)', 'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
        'test_evaluator.1.score_thr' if 'coco' in expected else 'test_evaluator.score_thr': 0.0}
    begin = [] if '--cfg-options' in command else ['--cfg-options']
    options = [f'{key}={value}' for key, value in small.items()]
    output = run(*shlex.split(command), *begin, *options, cwd=tmp_path)
    assert set(re.findall(r'(\w+)/bbox_mAP_50: ', output)) == expected
