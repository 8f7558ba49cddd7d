"""Detections of a run on its validation data, evaluated once by pycocotools; all AP of a report follows from that."""

import contextlib
import copy
import io
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from deit_detr.checkpoints.safe_loading import load_checkpoint_file
from deit_detr.datasets.coco_file import is_number
from deit_detr.errors import UserError
from deit_detr.evaluation.error_breakdown import Matches, match_boxes
from deit_detr.files import replacing


@dataclass
class Data:
    """What a data set of a config holds.

    Attributes:
        num_images, num_boxes: Images that the config uses, and boxes on them.
        boxes: Number of boxes by class name.
        paths: Image id to file.
        ann_file: The annotation file; ``None`` if the data set is not in COCO's format.
        category_ids: Categories of the file that are the config's classes.
    """

    num_images: int
    num_boxes: int
    boxes: Counter
    paths: dict[int, str]
    ann_file: str | None
    category_ids: list[int]


@dataclass
class Evaluation:
    """Boxes, detections and what COCOeval makes of them.

    Attributes:
        classes: Names, by category id: label k is category ``coco_eval.params.catIds[k]``.
        coco_eval: After ``accumulate()``.
        matches: At IoU 0.5.
        paths: Image id to file.
    """

    classes: list[str]
    coco_eval: COCOeval
    matches: Matches
    paths: dict[int, str]

    def precision(self, iou: float) -> np.ndarray:
        """Precision (R, K) at the R recall levels of COCOeval, over all areas; NaN for classes without boxes."""
        (index,) = np.flatnonzero(np.isclose(self.coco_eval.params.iouThrs, iou))
        precision = self.coco_eval.eval['precision'][index, :, :, 0, -1]
        return np.where(precision < 0, np.nan, precision)

    def class_ap(self) -> np.ndarray:
        """AP, AP50, AP75 and recall of each class, (K, 4) in 0..1; recall is the mean over the IoU thresholds."""
        precision = np.stack([self.precision(iou) for iou in self.coco_eval.params.iouThrs])
        recall = self.coco_eval.eval['recall'][:, :, 0, -1].mean(0)
        columns = precision.mean((0, 1)), precision[0].mean(0), precision[5].mean(0), recall
        return np.where(np.isnan(columns[0]), np.nan, columns).T

    def summary(self) -> dict[str, float]:
        """COCO's six AP values in 0..1; NaN where there are no boxes of that size."""
        names = ('AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large')
        return {name: value if value >= 0 else math.nan
                for name, value in zip(names, self.coco_eval.stats[:6].tolist(), strict=True)}


class _ProgressHook(Hook):
    """A bar for the images of a test, whose log is off."""

    def before_test_epoch(self, runner: Runner) -> None:
        self.bar = tqdm(total=len(runner.test_dataloader), desc='predicting', unit='batch')

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.bar.update()

    def after_test_epoch(self, runner: Runner, metrics=None) -> None:
        self.bar.close()


def read_data(cfg: Config, split: str) -> Data:
    """Open a data set of a config, without loading an image.

    Args:
        cfg: Of a run.
        split: 'train' or 'val'.

    Returns:
        Data: As the run used it, filters included.

    Raises:
        UserError: If the config has no such data set, or its annotation file is missing or of other classes.
    """
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise UserError(f'the config has no {split}_dataloader')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = DATASETS.build(copy.deepcopy(loader.dataset))
            dataset.full_init()
    except FileNotFoundError as error:
        raise UserError(f'{error.filename or error}: no such file; the config names it in {split}_dataloader') from None
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    labels = Counter(box['bbox_label'] for info in infos for box in info['instances'])
    names = dataset.metainfo['classes']
    return Data(
        len(infos), labels.total(), Counter({names[label]: count for label, count in labels.items()}),
        {info['img_id']: info['img_path'] for info in infos},
        dataset.ann_file if isinstance(dataset, CocoDataset) else None, list(getattr(dataset, 'cat_ids', ())))


def predict(cfg: Config, checkpoint: Path, ann_file: str, out: Path) -> None:
    """Run the detector of a config on its validation data, as mmdet's test does.

    Args:
        cfg: Of a run.
        checkpoint: Its weights.
        ann_file: COCO annotations of the validation data.
        out: COCO results file to write; appears when it is complete.

    Raises:
        UserError: If the checkpoint cannot be read.
    """
    load_checkpoint_file(checkpoint)  # refuses what is damaged or unsafe with a sentence
    with replacing(out) as part:
        cfg = copy.deepcopy(cfg)
        prefix = part.with_name('results')
        cfg.update(
            work_dir=str(part.parent), launcher='none', load_from=str(checkpoint), resume=False, log_level='WARNING',
            test_dataloader=cfg.val_dataloader, test_cfg=cfg.get('test_cfg') or dict(type='TestLoop'),
            test_evaluator=dict(
                type='mmdet.CocoMetric', ann_file=ann_file, format_only=True, outfile_prefix=str(prefix)))
        with contextlib.redirect_stdout(io.StringIO()):
            runner = Runner.from_cfg(cfg)
            runner.register_hook(_ProgressHook())
            runner.test()
        os.replace(f'{prefix}.bbox.json', part)


def evaluate(data: Data, predictions: Path) -> Evaluation:
    """Evaluate a COCO results file with pycocotools.

    Args:
        data: With an annotation file, and boxes.
        predictions: List of ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels), ``score``.

    Returns:
        Evaluation: Over the images and categories of ``data``.

    Raises:
        UserError: If the file is missing, damaged, or does not belong to this data.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(data.ann_file)
    classes = {category['id']: category['name'] for category in coco.dataset['categories']}
    detections = _read_predictions(predictions, set(coco.imgs), set(classes))
    detections = [detection for detection in detections if detection['image_id'] in data.paths]
    with contextlib.redirect_stdout(io.StringIO()):
        if detections:
            results = coco.loadRes(detections)
        else:  # which loadRes cannot take
            results = COCO()
            results.dataset = dict(coco.dataset, annotations=[])
            results.createIndex()
        coco_eval = COCOeval(coco, results, 'bbox')
        coco_eval.params.imgIds, coco_eval.params.catIds = sorted(data.paths), sorted(data.category_ids)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    names = [classes[category] for category in coco_eval.params.catIds]
    return Evaluation(names, coco_eval, match_boxes(coco_eval), data.paths)


def _read_predictions(path: Path, image_ids: set[int], category_ids: set[int]) -> list[dict]:
    make = 'make one with tools/test.py CONFIG CHECKPOINT --cfg-options test_evaluator.outfile_prefix=results'
    if not path.is_file():
        raise UserError(f'{path}: no such file of predictions; {make}')
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise UserError(f'{path}: not a COCO results file (JSON); {make}') from None
    if not isinstance(rows, list):
        raise UserError(f'{path}: holds no list of detections; {make}')
    for number, row in enumerate(rows):
        fields = row if isinstance(row, dict) else {}
        box, score = fields.get('bbox'), fields.get('score')
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, [*box, score])):
            raise UserError(f'{path}: entry {number} needs "bbox" of four finite numbers and "score"; {make}')
        for name, known in (('image_id', image_ids), ('category_id', category_ids)):
            if not is_number(fields.get(name)) or fields[name] not in known:
                raise UserError(f'{path}: entry {number} has {name} {fields.get(name)!r}, which is not in the '
                                'annotations of the validation data: predictions of other data?')
    return rows

