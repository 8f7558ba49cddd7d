"""The pictures of a report: which images it shows, with which boxes."""

import math

import numpy as np

from deit_detr.evaluation.detections import Evaluation
from deit_detr.evaluation.error_breakdown import CORRECT, KINDS, MISSED, Matches
from deit_detr.pages.evaluated_run import EvaluatedRun
from deit_detr.pages.html import class_colour, gallery_image

#: Predictions below this score are not drawn; DETR makes one for every query.
LOWEST_SCORE = 0.05


def image_f1(matches: Matches, num_images: int, score: float) -> np.ndarray:
    """Return the F1 of each image, (num_images,), at a score threshold; 1 for images without boxes and detections."""
    drawn = matches.det_score >= score
    found = np.bincount(matches.det_image[drawn & (matches.det_kind == CORRECT)], minlength=num_images)
    total = np.bincount(matches.det_image[drawn], minlength=num_images)
    total += np.bincount(matches.gt_image, minlength=num_images)
    return np.where(total > 0, 2 * found / np.maximum(total, 1), 1.0)


def choose_images(f1: np.ndarray, num_boxes: np.ndarray, max_images: int) -> np.ndarray:
    """Choose the images to show: all of them, or a third each of the worst, the best and others.

    Args:
        f1: (N,) F1 of each image.
        num_boxes: (N,) boxes on each image; of images with equal F1, those with more boxes are preferred.
        max_images: Number of images to choose.

    Returns:
        np.ndarray: Indices of the images in ascending order.
    """
    if len(f1) <= max_images:
        return np.arange(len(f1))
    worst = np.lexsort((-num_boxes, f1))[:math.ceil(max_images / 3)]
    best = np.setdiff1d(np.lexsort((-num_boxes, -f1)), worst, assume_unique=True)[:max_images // 3]
    others = np.setdiff1d(np.arange(len(f1)), np.concatenate([worst, best]))
    rest = max_images - len(worst) - len(best)
    return np.sort(np.concatenate([worst, best, others[np.linspace(0, len(others) - 1, rest).astype(int)]]))


def make_gallery(runs: list[EvaluatedRun], names: list[str], max_images: int) -> dict | None:
    """Return the pictures of the evaluated runs, as ``page.js`` reads them; ``None`` if no run is evaluated."""
    shown = [(run, name) for run, name in zip(runs, names, strict=True) if run.evaluation]
    if not shown:
        return None
    first = shown[0][0].evaluation
    for run, _ in shown[1:]:
        if not _same_data(first, run.evaluation):
            run.training.missing.append('Not in the pictures: its validation data differ from those of the first run.')
            shown = shown[:1]
    params, matches = first.coco_eval.params, first.matches
    f1 = image_f1(matches, len(params.imgIds), shown[0][0].score)
    num_boxes = np.bincount(matches.gt_image, minlength=len(params.imgIds))
    lowest = min(LOWEST_SCORE, *(run.score for run, _ in shown))
    images = []
    for index in choose_images(f1, num_boxes, max_images):
        info = first.coco_eval.cocoGt.imgs[params.imgIds[index]]
        boxes = [
            dict(label=int(matches.gt_label[box]), box=matches.gt_box[box], kinds=[],
                 seen=[[_cut(run.evaluation.matches.gt_found[box]), _cut(run.evaluation.matches.gt_near[box])]
                       for run, _ in shown])
            for box in np.flatnonzero(matches.gt_image == index)]
        detections = []
        for run, _ in shown:
            own = run.evaluation.matches
            chosen = np.flatnonzero((own.det_image == index) & (own.det_score >= lowest))[:100]
            detections.append([dict(label=int(own.det_label[det]), box=own.det_box[det], kind=int(own.det_kind[det]),
                              score=_cut(own.det_score[det])) for det in chosen])
        images.append(gallery_image(info, first.paths[info['id']], boxes, detections))
    unreadable = sum(image['src'] is None for image in images)
    if unreadable:
        shown[0][0].training.missing.append(
            f'{unreadable} of {len(images)} pictures cannot be read: only their boxes are shown.')
    return dict(
        classes=[dict(name=name, colour=class_colour(name, index)) for index, name in enumerate(first.classes)],
        kinds=['', *KINDS[1:], 'missed'], missed=MISSED, runs=[name for _, name in shown],
        panes=['ground truth', *(name if len(shown) > 1 else 'prediction' for _, name in shown)],
        scores=[run.score for run, _ in shown], lowest=lowest, images=images, total=len(params.imgIds))


def _same_data(first: Evaluation, second: Evaluation) -> bool:
    return first.paths == second.paths and first.classes == second.classes and all(
        np.array_equal(getattr(first.matches, name), getattr(second.matches, name))
        for name in ('gt_image', 'gt_label', 'gt_box'))


def _cut(score: float) -> float:
    """Round a score down to four digits, so that it stays below the thresholds above it."""
    return math.floor(1e4 * score) / 1e4
