"""Check that the evaluator gives AP 1 to the ground truth."""

from collections import Counter

import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmdet.registry import METRICS
from mmengine.config import ConfigDict

from deit_detr.datasets.coco_file import why_unused
from deit_detr.engine.start.data import sample
from deit_detr.engine.start.findings import FAIL, OK, UNKNOWN, WARN
from deit_detr.evaluation.coco_metric import AP_DETECTIONS, CocoMetric, gives_ap

SAMPLE = 64  # images


def build_metrics(evaluator: ConfigDict | list | None) -> list[MMDetCocoMetric]:
    """Build the COCO metrics of an evaluator; one for a part of a ``ConcatDataset`` has its index as ``part``."""
    several = isinstance(evaluator, dict) and 'metrics' in evaluator
    configs = evaluator['metrics'] if several else evaluator or []
    metrics = [METRICS.build(cfg) for cfg in (configs if isinstance(configs, (list, tuple)) else [configs])]
    if several and 'dataset_prefixes' in evaluator:  # mmdet's MultiDatasetsEvaluator
        for part, metric in enumerate(metrics):
            metric.part = part
    return [metric for metric in metrics if isinstance(metric, MMDetCocoMetric)]


def check_evaluator(metrics: list[MMDetCocoMetric], dataset: CocoDataset) -> tuple[str, str]:
    """Evaluate the ground truth of a sample of images as if it were detected: AP has to be 1, or as low as explained.

    Args:
        metrics: From :func:`build_metrics`; changed so that they report the AP of boxes.
        dataset: The validation data.
    """
    if not metrics:
        return UNKNOWN, 'no COCO metric in val_evaluator'
    findings, number = [], 0
    for metric in metrics:
        part = dataset.datasets[metric.part] if hasattr(metric, 'part') else dataset
        infos = [part.get_data_info(index) for index in sample(len(part), SAMPLE)]
        infos = [info for info in infos if info.get('instances')]
        number = max(number, len(infos))
        findings.append(_check(metric, part, infos) if infos else (UNKNOWN, 'no boxes to evaluate'))
    return next((finding for status in (FAIL, WARN, UNKNOWN) for finding in findings if finding[0] == status),
                (OK, f'AP 1.0 for the ground truth of {number} images'))


def _check(metric: MMDetCocoMetric, dataset: CocoDataset, infos: list[dict]) -> tuple[str, str]:
    name = type(metric).__name__
    images = metric._coco_api.imgs if metric._coco_api else {}
    unknown = [info['img_id'] for info in infos if images and info['img_id'] not in images]
    if unknown:
        return FAIL, f'val_evaluator.ann_file has no image {unknown[0]}, which val_dataloader.dataset has: name ' \
                     'the same file in both'
    if len({info['img_id'] for info in infos}) < len(infos) or images and len(dataset) > len(images):
        return FAIL, 'val_dataloader.dataset has several images of one id, by RepeatDataset or by files that are ' \
                     'joined: their boxes count together. Use each image once, and MultiDatasetsEvaluator for ' \
                     'several files'
    pack = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])[-1:]
    if not metric._coco_api and pack and 'instances' not in getattr(pack[0], 'meta_keys', 'instances'):
        return FAIL, 'val_evaluator has no ann_file: set it, or add "instances" to the meta_keys of PackDetInputs in ' \
                     'the pipeline of val_dataloader'
    found = _check_thresholds(metric)
    if found and found[0] == FAIL:
        return found
    if not gives_ap(metric):
        return FAIL, f'val_evaluator.proposal_nums is {metric.proposal_nums}: AP is that of the best ' \
                     f'{AP_DETECTIONS} detections, so it has to hold three numbers with {AP_DETECTIONS} among them'
    if AP_DETECTIONS not in metric.proposal_nums or len(metric.proposal_nums) < 3:
        metric.proposal_nums = [AP_DETECTIONS, 300, 1000]  # the config does not ask for AP
    metric.metrics, metric.metric_items, metric.format_only, metric.outfile_prefix = ['bbox'], None, False, None
    metric.classwise = False
    metric.dataset_meta = dataset.metainfo
    metric.img_ids = [info['img_id'] for info in infos]
    highest, reasons = _highest_ap(metric, dataset.metainfo['classes'], infos)  # pycocotools overwrites "ignore"
    metric.process({}, [_perfect(info) for info in infos])
    values = metric.compute_metrics(metric.results)
    metric.results.clear()
    value = values.get('bbox_mAP', values.get('bbox_AP'))
    if value is None:
        return UNKNOWN, f'{name} reports no AP of boxes'
    if abs(value - highest) > 0.001:  # values have three decimals
        differ = 'val_evaluator.ann_file and val_dataloader.dataset differ in boxes, classes or ids'
        # a value just below: the data set filters some boxes; a low one: the files differ
        return WARN if value > highest - 0.1 else FAIL, \
            f'{name} gives AP {value} to the ground truth of {len(infos)} images: {"; ".join([*reasons, differ])}'
    if reasons:
        return WARN, f'{name} gives AP {value} to the ground truth of {len(infos)} images: {"; ".join(reasons)}'
    if not isinstance(metric, CocoMetric) and len(dataset) < len(images):
        return WARN, f'{name} of {type(metric).__module__} may count the boxes of all {len(images)} images of ' \
                     f'val_evaluator.ann_file, while val_dataloader.dataset has {len(dataset)} of them'
    return found or (OK, '')


def _check_thresholds(metric: MMDetCocoMetric) -> tuple[str, str] | None:
    """Return what ``iou_thrs`` does to the results besides AP; None for COCO's thresholds."""
    thresholds = np.atleast_1d(metric.iou_thrs).tolist()
    table = metric.classwise and not metric.format_only and {'bbox', 'segm'} & set(metric.metrics)
    text = f'val_evaluator.iou_thrs is {thresholds}: '
    if not thresholds:
        return FAIL, f'{text}give at least one threshold, or leave the field out'
    if table and len(thresholds) < 6:
        return FAIL, f'{text}the table of classes takes the first and the sixth for 0.5 and 0.75: ' \
                     'set val_evaluator.classwise=False, or leave iou_thrs out'
    odd = [f'mAP_{percent} is -1' for percent in (50, 75) if percent / 100 not in thresholds]
    if table and (thresholds[0], thresholds[5]) != (0.5, 0.75):
        odd.append(f'mAP_50 and mAP_75 in the table of classes are AP at {thresholds[0]:g} and {thresholds[5]:g}')
    return (WARN, text + '; '.join(odd)) if odd else None


def _highest_ap(metric: MMDetCocoMetric, classes: tuple[str, ...], infos: list[dict]) -> tuple[float, list[str]]:
    """Return the AP of the ground truth of some images by COCO's rules, and why it is below 1."""
    api = metric._coco_api  # None: made of the data set
    total, found, most, unused = Counter(), Counter(), [], Counter()
    for info in infos:
        boxes = Counter(classes[box['bbox_label']] for box in info['instances'] if not box['ignore_flag'])
        total += boxes
        found += Counter({name: min(number, AP_DETECTIONS) for name, number in boxes.items()})
        most.append(max(boxes.values(), default=0))
        for row in api.imgToAnns.get(info['img_id'], ()) if api else ():
            reason = why_unused(row, api.imgs[info['img_id']])
            if reason and not row.get('iscrowd'):
                total[api.cats[row['category_id']]['name']] += 1
                unused[reason] += 1
    evaluated = {category['name'] for category in api.cats.values()} if api else set(classes)
    levels = np.linspace(0, 1, 101)  # of recall
    reached = [np.mean(levels <= found[name] / total[name]) for name in total if name in evaluated]
    dense = [number for number in most if number > AP_DETECTIONS]
    reasons = [f'the data set leaves out {number} boxes {reason}, which count as missed'
               for reason, number in unused.items()]
    if dense:
        reasons.append(
            f'{len(dense)} images have more boxes of a class than the {AP_DETECTIONS} detections that AP counts (up to '
            f'{max(dense)}); ' + ('set val_evaluator.proposal_nums=(100,300,1000) for a bbox_mAP_50 that counts more'
                                  if (last := sorted(metric.proposal_nums)[2]) == AP_DETECTIONS else
                                  f'compare bbox_mAP_50, which counts {last}'))
    return float(np.mean(reached)), reasons


def _perfect(info: dict) -> dict:
    boxes = [instance for instance in info['instances'] if not instance['ignore_flag']]
    return dict(
        img_id=info['img_id'], ori_shape=(info['height'], info['width']), instances=info['instances'],
        pred_instances=dict(
            bboxes=torch.tensor([instance['bbox'] for instance in boxes]).reshape(-1, 4).double(),
            scores=torch.ones(len(boxes)),
            labels=torch.tensor([instance['bbox_label'] for instance in boxes], dtype=torch.long)))
