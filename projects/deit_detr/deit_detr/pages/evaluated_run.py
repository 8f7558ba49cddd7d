"""A run that a report is about: its data, checkpoint and evaluated detections."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.errors import UserError
from deit_detr.evaluation.coco_metric import PROPOSAL_NUMS
from deit_detr.evaluation.detections import DatasetSummary, Evaluation, evaluate, find_metric, predict, read_data
from deit_detr.evaluation.error_breakdown import CORRECT, best_f1_threshold
from deit_detr.inference.attention import cross_attention, draw_attention, self_attention
from deit_detr.inference.detector import load
from deit_detr.pages.html import data_uri
from deit_detr.pages.work_dir import TrainingRun, find_checkpoint

#: Detections whose attention a picture shows.
MAX_DETECTIONS = 4


@dataclass
class EvaluatedRun:
    """A run that a report is about, with everything that could be found.

    Attributes:
        training: Its config and logs; ``training.missing`` lists what the page lacks.
        checkpoint: Checkpoint that is evaluated.
        num_parameters: Numbers in its state dict, buffers included.
        train_data, val_data: Data sets, as the config finds them now.
        evaluation: Evaluation of the detections.
        score: Score threshold, 0..1, for all counts and pictures.
        attention: Caption and data URI of pictures of the detector's attention.
    """

    training: TrainingRun
    checkpoint: Path | None = None
    num_parameters: int | None = None
    train_data: DatasetSummary | None = None
    val_data: DatasetSummary | None = None
    evaluation: Evaluation | None = None
    score: float | None = None
    attention: list[tuple[str, str]] = field(default_factory=list)


def evaluate_run(run: EvaluatedRun, checkpoint: Path | None, predictions: Path | None, kept: Path) -> None:
    """Find the data and the detections of a run and evaluate them; ``training.missing`` lists what cannot be found.

    Without ``predictions``, a COCO results file, the detector runs on the validation data and ``kept`` receives its
    detections. Without ``checkpoint``, it has the weights of the best one of the work folder, or of the last.

    Raises:
        UserError: If ``checkpoint`` or ``predictions`` cannot be used.
    """
    training = run.training
    for split in ('train', 'val'):
        try:
            setattr(run, f'{split}_data', read_data(training.config, split))
        except UserError as error:
            training.missing.append(f'{split} data: {error}.')
    run.checkpoint = checkpoint or find_checkpoint(training.folder)
    if run.checkpoint is None:
        training.missing.append('No checkpoint in the work folder.')
    else:
        try:
            state_dict = find_state_dict(load_checkpoint_file(run.checkpoint, again=True), run.checkpoint)
            run.num_parameters = sum(tensor.numel() for tensor in state_dict.values())
        except UserError as error:
            if checkpoint:
                raise
            training.missing.append(f'The checkpoint cannot be used: {error}.')
    if run.val_data is None or run.val_data.ann_file is None or not run.val_data.num_boxes:
        training.missing.append('Nothing is evaluated: that needs validation data with boxes, in one COCO file.')
    elif predictions:
        _evaluate(run, predictions)
    elif run.num_parameters is None:
        training.missing.append('Nothing is evaluated: that needs a checkpoint, or --predictions.')
    else:
        predict(training.config, run.checkpoint, run.val_data.ann_file, kept)
        _evaluate(run, kept)


def _evaluate(run: EvaluatedRun, predictions: Path) -> None:
    """Evaluate detections; ``training.missing`` also lists why the numbers differ from those of the log."""
    metric = find_metric(run.training.config)
    limits = metric.get('proposal_nums', PROPOSAL_NUMS)
    run.evaluation = evaluate(run.val_data, predictions, limits if len(limits) >= 3 else PROPOSAL_NUMS)
    # rounded down, as the page's slider has steps of 0.01
    run.score = max(0.01, math.floor(100 * best_f1_threshold(run.evaluation.matches)) / 100)
    kind, thresholds, ann_file = (metric.get(key) for key in ('type', 'iou_thrs', 'ann_file'))
    kind = getattr(kind, '__name__', kind)
    used = run.evaluation.coco_eval.params.iouThrs
    differ = dict(
        type=kind if kind not in (None, 'CocoMetric', 'mmdet.CocoMetric') else None,
        iou_thrs=None if thresholds is None or np.size(thresholds) == len(used) and np.allclose(thresholds, used)
        else thresholds,
        ann_file=ann_file if ann_file and Path(ann_file).is_file()
        and Path(ann_file).read_bytes() != Path(run.val_data.ann_file).read_bytes() else None)
    for key, value in differ.items():
        if value is not None:
            run.training.missing.append(f'The log has other numbers than this page, by val_evaluator.{key} {value}: '
                                        "the page has COCO's AP over IoU 0.5 to 0.95 and the boxes of the data set.")
    if run.evaluation.limits:
        run.training.missing.append(f'{run.evaluation.limits}.')


def add_attention(run: EvaluatedRun, max_images: int) -> None:
    """Draw the attention of the best detections, and of the middle of the first one, where most boxes are found."""
    params, matches = run.evaluation.coco_eval.params, run.evaluation.matches
    correct = (matches.det_score >= run.score) & (matches.det_kind == CORRECT)
    found = np.bincount(matches.det_image[correct], minlength=len(params.imgIds))
    best = [index for index in np.argsort(-found, kind='stable')[:max_images] if found[index]]
    pictures = []
    try:
        detector = load(run.training.config, run.checkpoint)
        part = 'encoder' if detector.model.encoder is not None else 'backbone'
        for path in (run.evaluation.paths[params.imgIds[index]] for index in best):
            if detections := cross_attention(detector, path, run.score, max_detections=MAX_DETECTIONS):
                x1, y1, x2, y2 = detections[0].box.tolist()
                (middle,) = self_attention(detector, path, [((x1 + x2) / 2, (y1 + y2) / 2)], part)
                image = draw_attention(detector, path, [*detections, replace(middle, title=f'{part}, from the circle')])
                pictures.append((', '.join(attention.title for attention in detections), data_uri(image)))
        run.attention = pictures
    except UserError as error:
        run.training.missing.append(f'Attention pictures: {error}.')
