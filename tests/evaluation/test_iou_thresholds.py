"""Any ``iou_thrs`` of the COCO metric gives its numbers, or preflight names it."""

import pytest
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from deit_detr.engine.start.evaluator import _perfect, build_metrics, check_evaluator
from deit_detr.engine.start.findings import FAIL, OK, WARN
from tests.helpers.paths import REPO

COCO = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


@pytest.fixture
def cfg(mini_scannet, monkeypatch) -> Config:
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    cfg = Config.fromfile(REPO / 'projects/deit_detr/configs/detr_deit-tiny_1xb8-50e_mini-scannet.py')
    init_default_scope(cfg.default_scope)
    return cfg


@pytest.mark.parametrize(
    ('iou_thrs', 'classwise', 'status', 'text'),
    [
        (None, True, OK, ''),
        (COCO, True, OK, ''),
        ([0.5, 0.75], False, OK, ''),
        ([0.5], False, WARN, 'val_evaluator.iou_thrs is [0.5]: mAP_75 is -1'),
        (0.5, False, WARN, 'mAP_75 is -1'),
        ((0.3,), False, WARN, 'mAP_50 is -1; mAP_75 is -1'),
        ([0.3, *COCO], True, WARN, 'mAP_50 and mAP_75 in the table of classes are AP at 0.3 and 0.7'),
        ([0.5], True, FAIL, 'val_evaluator.iou_thrs is [0.5]: the table of classes takes'),
        ([], False, FAIL, 'val_evaluator.iou_thrs is []: give at least one'),
    ])
def test_thresholds(cfg, iou_thrs, classwise, status, text):
    cfg.val_evaluator.update(iou_thrs=iou_thrs, classwise=classwise)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    found, message = check_evaluator(build_metrics(cfg.val_evaluator), dataset)
    assert found == status and text in message

    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    metric.process({}, [_perfect(info) for info in infos])
    if status == FAIL:
        with pytest.raises(IndexError):
            metric.evaluate(len(infos))
    else:
        result = metric.evaluate(len(infos))
        thresholds = COCO if iou_thrs is None else [iou_thrs] if iou_thrs == 0.5 else iou_thrs
        assert [result[f'coco/bbox_mAP{part}'] for part in ('', '_50', '_75')] == [
            1, 1 if 0.5 in thresholds else -1, 1 if 0.75 in thresholds else -1]
