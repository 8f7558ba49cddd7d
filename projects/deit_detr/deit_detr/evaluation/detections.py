"""Detections of a run on its validation data and their evaluation by pycocotools, for reports."""

import contextlib
import copy
import io
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmdet.registry import DATASETS, METRICS
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from deit_detr.checkpoints.fit import check_trained_classes, load_weights
from deit_detr.checkpoints.safe_loading import load_checkpoint_file
from deit_detr.datasets.checked_coco import IndexedCoco
from deit_detr.datasets.coco_file import is_number, parse_annotations
from deit_detr.datasets.wrappers import unwrap
from deit_detr.errors import UserError
from deit_detr.evaluation.coco_metric import PROPOSAL_NUMS, limits_note
from deit_detr.evaluation.error_breakdown import Matches, match_boxes
from deit_detr.files import replacing


@dataclass
class DatasetSummary:
    """Contents of a data set of a config.

    Attributes:
        num_images, num_boxes: Number of images that the config uses, and of their boxes.
        boxes: Number of boxes by class name.
        paths: File by image id.
        ann_file: The annotation file; ``None`` if the data set is not in COCO format.
        category_ids: Category ids of the config's classes.
    """

    num_images: int
    num_boxes: int
    boxes: Counter
    paths: dict[int, str]
    ann_file: str | None
    category_ids: list[int]


@dataclass
class Evaluation:
    """The evaluation of detections by ``COCOeval``.

    Attributes:
        classes: Names in the order of the category ids: label k is category ``coco_eval.params.catIds[k]``.
        coco_eval: The evaluation, after ``summarize()``.
        matches: Detections and boxes matched at IoU 0.5.
        paths: File by image id.
        limits: Which AP counts how many detections, see :func:`~deit_detr.evaluation.coco_metric.limits_note`.
    """

    classes: list[str]
    coco_eval: COCOeval
    matches: Matches
    paths: dict[int, str]
    limits: str

    def precision(self, iou: float) -> np.ndarray:
        """Return the precision (R, K) at COCOeval's R recall levels, over all areas; NaN for classes without boxes."""
        (index,) = np.flatnonzero(np.isclose(self.coco_eval.params.iouThrs, iou))
        precision = self.coco_eval.eval['precision'][index, :, :, 0, -1]
        return np.where(precision < 0, np.nan, precision)

    def class_ap(self) -> np.ndarray:
        """Return AP, AP50, AP75 and mean recall over the IoU thresholds of each class, (K, 4) in 0..1."""
        precision = np.stack([self.precision(iou) for iou in self.coco_eval.params.iouThrs])
        recall = self.coco_eval.eval['recall'][:, :, 0, -1].mean(0)
        columns = precision.mean((0, 1)), precision[0].mean(0), precision[5].mean(0), recall
        return np.where(np.isnan(columns[0]), np.nan, columns).T

    def summary(self) -> dict[str, float]:
        """Return COCO's six AP values in 0..1; NaN if there are no boxes of a size."""
        names = ('AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large')
        return {name: value if value >= 0 else math.nan
                for name, value in zip(names, self.coco_eval.stats[:6].tolist(), strict=True)}


class _ProgressHook(Hook):
    """Show a progress bar for a test whose log is off."""

    def before_test_epoch(self, runner: Runner) -> None:
        self.bar = tqdm(total=len(runner.test_dataloader), desc='predicting', unit='batch')

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.bar.update()

    def after_test_epoch(self, runner: Runner, metrics=None) -> None:
        self.bar.close()


def read_data(cfg: Config, split: str) -> DatasetSummary:
    """Read the annotations of a data set of a config.

    Args:
        cfg: Config of a run.
        split: 'train' or 'val'.

    Returns:
        DatasetSummary: The data set as the run used it, filters included. Repeated images count once.

    Raises:
        UserError: If the config has no such data set, or its annotation file is missing or has other classes.
    """
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise UserError(f'the config has no {split}_dataloader')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            datasets = [part for _, part in unwrap(DATASETS.build(copy.deepcopy(loader.dataset)))]
            for dataset in datasets:
                dataset.full_init()
    except FileNotFoundError as error:
        raise UserError(f'{error.filename or error}: no such file; the config names it in {split}_dataloader') from None
    infos = [dataset.get_data_info(index) for dataset in datasets for index in range(len(dataset))]
    labels = Counter(box['bbox_label'] for info in infos for box in info['instances'])
    names = dataset.metainfo['classes']
    is_coco = isinstance(dataset, CocoDataset) and len(datasets) == 1
    return DatasetSummary(
        len(infos), labels.total(), Counter({names[label]: count for label, count in labels.items()}),
        {info['img_id']: info['img_path'] for info in infos},
        dataset.ann_file if is_coco else None, list(getattr(dataset, 'cat_ids', ())))


def predict(cfg: Config, checkpoint: Path, ann_file: str, out: Path) -> None:
    """Run the detector of a config on its validation data, as mmdet's test does.

    Args:
        cfg: Config of a run.
        checkpoint: Its checkpoint.
        ann_file: COCO annotations of the validation data.
        out: COCO results file to write, whole or not at all.

    Raises:
        UserError: If the checkpoint cannot be read, or does not fit the config.
    """
    content = load_checkpoint_file(checkpoint, again=True)  # a report draws its attention next
    with replacing(out) as part:
        cfg = copy.deepcopy(cfg)
        prefix = part.with_name('results')
        cfg.update(
            work_dir=str(part.parent), launcher='none', load_from=None, resume=False, log_level='WARNING',
            visualizer=dict(type='mmdet.DetLocalVisualizer', name=part.parent.name),
            test_dataloader=cfg.val_dataloader, test_cfg=cfg.get('test_cfg') or dict(type='TestLoop'),
            test_evaluator=dict(
                type='mmdet.CocoMetric', ann_file=ann_file, format_only=True, outfile_prefix=str(prefix)))
        with contextlib.redirect_stdout(io.StringIO()):
            runner = Runner.from_cfg(cfg)
            load_weights(runner.model, content, checkpoint)
            classes = runner.test_dataloader.dataset.metainfo['classes']
            check_trained_classes(content, checkpoint, classes, 'val_dataloader.dataset.metainfo.classes')
            runner.register_hook(_ProgressHook())
            try:
                runner.test()
            finally:  # mmengine's later runs in this process would write into this folder, which is deleted
                for kind in (Visualizer, DetLocalVisualizer):
                    kind._instance_dict.pop(part.parent.name, None)
        os.replace(f'{prefix}.bbox.json', part)


def find_metric(cfg: Config) -> ConfigDict:
    """Return the config of the first COCO metric of ``val_evaluator``; an empty one if there is none."""
    metrics = cfg.get('val_evaluator') or []
    metrics = metrics.get('metrics', metrics) if isinstance(metrics, dict) else metrics
    for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
        kind = METRICS.get(metric['type']) if isinstance(metric['type'], str) else metric['type']
        if isinstance(kind, type) and issubclass(kind, MMDetCocoMetric):
            return metric
    return ConfigDict()


def evaluate(data: DatasetSummary, predictions: Path, proposal_nums: Sequence[int] = PROPOSAL_NUMS) -> Evaluation:
    """Evaluate a COCO results file with pycocotools.

    Args:
        data: A data set with an annotation file and boxes.
        predictions: JSON list of objects with ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels)
            and ``score``.
        proposal_nums: Those of mmdet's ``CocoMetric``, so that the numbers are those of the log.

    Returns:
        Evaluation: The evaluation over the images and categories of ``data``.

    Raises:
        UserError: If the file is missing, damaged, or does not belong to this data.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco = IndexedCoco(parse_annotations(Path(data.ann_file).read_bytes(), data.ann_file))
    classes = {category['id']: category['name'] for category in coco.dataset['categories']}
    detections = _read_predictions(predictions, set(coco.imgs), set(classes))
    detections = [detection for detection in detections if detection['image_id'] in data.paths]
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval = COCOeval(coco, coco.loadRes(detections), 'bbox')
        coco_eval.params.imgIds, coco_eval.params.catIds = sorted(data.paths), sorted(data.category_ids)
        coco_eval.params.maxDets = list(proposal_nums)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    names = [classes[category] for category in coco_eval.params.catIds]
    counts = Counter((detection['image_id'], detection['category_id']) for detection in detections)
    return Evaluation(
        names, coco_eval, match_boxes(coco_eval), data.paths, limits_note(counts.values(), proposal_nums))


def _read_predictions(path: Path, image_ids: set[int], category_ids: set[int]) -> list[dict]:
    make = 'write one with tools/test.py CONFIG CHECKPOINT --cfg-options test_evaluator.outfile_prefix=results'
    if not path.is_file():
        raise UserError(f'{path}: no such file; {make}')
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise UserError(f'{path}: not a COCO results file (JSON); {make}') from None
    if not isinstance(rows, list):
        raise UserError(f'{path}: not a list of detections; {make}')
    for number, row in enumerate(rows):
        fields = row if isinstance(row, dict) else {}
        box, score = fields.get('bbox'), fields.get('score')
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, [*box, score])):
            raise UserError(f'{path}: entry {number} needs "bbox" of four finite numbers and "score"; {make}')
        for name, known in (('image_id', image_ids), ('category_id', category_ids)):
            if type(fields.get(name)) not in (int, float) or fields[name] not in known:
                raise UserError(f'{path}: entry {number} has {name} {fields.get(name)!r}, which is not in the '
                                'annotations of the validation data. Is this file for other data?')
    return rows

