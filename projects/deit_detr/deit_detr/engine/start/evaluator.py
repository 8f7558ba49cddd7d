"""Check that the evaluator gives AP 1 to the ground truth."""

import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import ConfigDict

from deit_detr.engine.start.data import sample
from deit_detr.engine.start.findings import FAIL, OK, UNKNOWN, WARN

SAMPLE = 64  # images


def build_metrics(evaluator: ConfigDict | list | None) -> list[CocoMetric]:
    """Build the COCO metrics of a config's evaluator."""
    configs = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator] if evaluator else []
    metrics = [METRICS.build(cfg) for cfg in configs]
    return [metric for metric in metrics if isinstance(metric, CocoMetric)]


def check_evaluator(metrics: list[CocoMetric], dataset: CocoDataset) -> tuple[str, str]:
    """Evaluate the ground truth of a sample of images as if it were detected: AP has to be 1.

    Args:
        metrics: From :func:`build_metrics`; their results are cleared afterwards.
        dataset: The validation data.
    """
    infos = [dataset.get_data_info(index) for index in sample(len(dataset), SAMPLE)]
    infos = [info for info in infos if info.get('instances')]
    if not metrics or not infos:
        return UNKNOWN, 'no COCO metric in val_evaluator' if not metrics else 'no boxes to evaluate'
    for metric in metrics:
        unknown = [info['img_id'] for info in infos if info['img_id'] not in metric._coco_api.imgs] \
            if metric._coco_api else []
        if unknown:
            return FAIL, f'val_evaluator.ann_file has no image {unknown[0]}, which val_dataloader.dataset has: name ' \
                         'the same file in both'
        metric.dataset_meta = dataset.metainfo
        metric.img_ids = [info['img_id'] for info in infos]
        metric.process({}, [_perfect(info) for info in infos])
        value = metric.compute_metrics(metric.results).get(f'{metric.metrics[0]}_mAP')
        metric.results.clear()
        if value != 1:
            # a value just below 1: the data set filters some boxes; a low one: the files differ
            return WARN if value and value > 0.9 else FAIL, \
                f'{type(metric).__name__} gives AP {value} to the ground truth of {len(infos)} images: ' \
                'val_evaluator.ann_file and val_dataloader.dataset differ in boxes, classes or ids'
    return OK, f'AP 1.0 for the ground truth of {len(infos)} images'


def _perfect(info: dict) -> dict:
    boxes = [instance for instance in info['instances'] if not instance['ignore_flag']]
    return dict(
        img_id=info['img_id'], ori_shape=(info['height'], info['width']), instances=info['instances'],
        pred_instances=dict(
            bboxes=torch.tensor([instance['bbox'] for instance in boxes]).reshape(-1, 4).double(),
            scores=torch.ones(len(boxes)),
            labels=torch.tensor([instance['bbox_label'] for instance in boxes], dtype=torch.long)))
