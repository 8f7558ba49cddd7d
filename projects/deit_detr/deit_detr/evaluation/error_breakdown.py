"""Types of detection errors, from the matches of pycocotools' ``COCOeval`` at IoU 0.5.

The types and the AP that each costs are those of TIDE (arXiv 2008.08115). Where its paper and its code differ, this
module follows the code: localisation is tested before classification, and an error at a box that another detection has
found is not repaired.
"""

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import COCOeval

#: Kinds of detections; ``kind`` is an index into this. :data:`MISSED` counts ground-truth boxes.
KINDS = ('correct', 'classification', 'localisation', 'both', 'duplicate', 'background')
CORRECT, CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND = range(6)
MISSED = 6

POSITIVE_IOU, BACKGROUND_IOU = 0.5, 0.1


@dataclass
class Matches:
    """D detections and G ground-truth boxes of all images, without crowds and detections on crowds.

    Attributes:
        num_classes: K; labels are 0..K-1.
        det_image: (D,) index of the image, in ``COCOeval``'s order; detections of an image are sorted by score.
        det_label: (D,) predicted label.
        det_score: (D,) in 0..1.
        det_box: (D, 4) x, y, width, height in pixels.
        det_kind: (D,) index into :data:`KINDS`.
        det_gt: (D,) index of the box that a correct detection or a duplicate matches, or that a classification or
            localisation error overlaps; -1 for other kinds.
        det_confused: (D,) index of the box of another class that an incorrect detection overlaps most, at IoU 0.5 or
            more; -1 if there is none.
        gt_image: (G,) index of the image.
        gt_label: (G,) label.
        gt_box: (G, 4) x, y, width, height in pixels.
        gt_found: (G,) score of the correct detection of the box, 0 if there is none.
        gt_near: (G,) highest score of a classification or localisation error at the box, 0 if there is none. A box
            with neither is missed.
    """

    num_classes: int
    det_image: np.ndarray
    det_label: np.ndarray
    det_score: np.ndarray
    det_box: np.ndarray
    det_kind: np.ndarray
    det_gt: np.ndarray
    det_confused: np.ndarray
    gt_image: np.ndarray
    gt_label: np.ndarray
    gt_box: np.ndarray
    gt_found: np.ndarray
    gt_near: np.ndarray


def match_boxes(coco_eval: COCOeval) -> Matches:
    """Classify all detections into :data:`KINDS`, based on the matches of ``COCOeval``.

    Args:
        coco_eval: Evaluation of boxes in at least one image, after ``evaluate()``, with 0.5 among its IoU thresholds
            and all areas as its first area range.

    Returns:
        Matches: The classified detections.
    """
    params = coco_eval.params
    (threshold,) = np.flatnonzero(np.isclose(params.iouThrs, POSITIVE_IOU))
    num_images, num_areas = len(params.imgIds), len(params.areaRng)
    label_of = {category: label for label, category in enumerate(params.catIds)}
    detections, boxes, num_boxes = [], [], 0
    for image, image_id in enumerate(params.imgIds):
        annotations = coco_eval.cocoGt.loadAnns(coco_eval.cocoGt.getAnnIds([image_id], params.catIds))
        annotations = [annotation for annotation in annotations if not annotation.get('iscrowd')]
        index_of = {annotation['id']: index for index, annotation in enumerate(annotations)}
        gt_label = np.array([label_of[annotation['category_id']] for annotation in annotations], int)
        gt_box = _boxes(annotations)

        rows = []  # id, label, score, index of the box it found or -1
        for label in range(len(params.catIds)):
            result = coco_eval.evalImgs[label * num_areas * num_images + image]
            if result is not None:
                columns = (result[key] for key in ('dtIds', 'dtScores', 'dtMatches', 'dtIgnore'))
                ids, scores, matches, ignored = columns
                rows += [(ids[i], label, scores[i], index_of.get(int(matches[threshold][i]), -1))
                         for i in range(len(ids)) if not ignored[threshold][i]]
        rows.sort(key=lambda row: -row[2])
        det_label, det_found = (np.array([row[column] for row in rows], int) for column in (1, 3))
        det_score = np.array([row[2] for row in rows], float)
        det_box = _boxes(coco_eval.cocoDt.loadAnns([row[0] for row in rows]))
        kind, *indices = _kinds(det_label, det_box, det_found, gt_label, gt_box)
        det_gt, det_confused = (np.where(index >= 0, index + num_boxes, -1) for index in indices)
        detections.append((np.full(len(rows), image), det_label, det_score, det_box, kind, det_gt, det_confused))
        boxes.append((np.full(len(annotations), image), gt_label, gt_box))
        num_boxes += len(annotations)

    detections, boxes = ([np.concatenate(column) for column in zip(*rows, strict=True)] for rows in (detections, boxes))
    result = Matches(len(params.catIds), *detections, *boxes, np.zeros(num_boxes), np.zeros(num_boxes))
    for scores, kinds in (result.gt_found, (CORRECT,)), (result.gt_near, (CLASSIFICATION, LOCALISATION)):
        chosen = np.isin(result.det_kind, kinds)
        np.maximum.at(scores, result.det_gt[chosen], result.det_score[chosen])
    return result


def _boxes(annotations: list[dict]) -> np.ndarray:
    return np.array([annotation['bbox'] for annotation in annotations], float).reshape(-1, 4)


def _kinds(
    det_label: np.ndarray, det_box: np.ndarray, det_found: np.ndarray, gt_label: np.ndarray, gt_box: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``det_kind``, ``det_gt`` and ``det_confused`` of one image, see :class:`Matches`."""
    nothing = np.full(len(det_label), -1)
    if not len(det_label) or not len(gt_label):
        return np.full(len(det_label), BACKGROUND), nothing, nothing
    iou = mask_utils.iou(det_box, gt_box, [0] * len(gt_box))
    same_class = det_label[:, None] == gt_label[None]
    same, other = iou * same_class, iou * ~same_class
    taken = same * np.isin(np.arange(len(gt_label)), det_found)
    tests = [
        (CORRECT, det_found >= 0, det_found),
        (LOCALISATION, (same.max(1) >= BACKGROUND_IOU) & (same.max(1) <= POSITIVE_IOU), same.argmax(1)),
        (CLASSIFICATION, other.max(1) >= POSITIVE_IOU, other.argmax(1)),
        (DUPLICATE, taken.max(1) >= POSITIVE_IOU, taken.argmax(1)),
        (BACKGROUND, iou.max(1) <= BACKGROUND_IOU, nothing),
    ]
    kinds, conditions, boxes = zip(*tests, strict=True)
    confused = np.where((det_found < 0) & (other.max(1) >= POSITIVE_IOU), other.argmax(1), -1)
    return np.select(conditions, kinds, BOTH), np.select(conditions, boxes, -1), confused


def average_precision(score: np.ndarray, correct: np.ndarray, num_boxes: int, recalls: np.ndarray) -> float:
    """Return the AP of one class at one IoU threshold, as ``COCOeval.accumulate`` computes it.

    Args:
        score: (N,) scores of its detections.
        correct: (N,) whether each is correct.
        num_boxes: Number of ground-truth boxes of the class; if 0, the AP is 0.
        recalls: Recall levels over which precision is averaged.

    Returns:
        float: In 0..1.
    """
    if not num_boxes or not len(score):
        return 0.0
    true = np.cumsum(correct[np.argsort(-score, kind='stable')])
    precision = np.maximum.accumulate((true / np.arange(1, len(true) + 1))[::-1])[::-1]
    reached = np.searchsorted(true / num_boxes, recalls, side='left')
    return float(np.append(precision, 0.0)[reached].mean())


def oracle_gains(matches: Matches, recalls: np.ndarray) -> dict[str, float]:
    """Return how much AP at IoU 0.5 would rise if an oracle repaired one type of error.

    As in TIDE, the classification or localisation error with the highest score at a box that is not found becomes
    correct, other errors are removed, and missed boxes are removed from the ground truth. The gains do not sum to
    1 - AP.

    Args:
        matches: All detections, including those with low scores, as in AP.
        recalls: Recall levels of the AP, ``COCOeval.params.recThrs``.

    Returns:
        dict[str, float]: AP gains in 0..1 for each of ``KINDS[1:]`` and 'missed', for 'false positives' (all incorrect
        detections removed) and for 'false negatives' (all boxes removed that are not found).
    """
    right = matches.det_kind == CORRECT
    unfound = matches.gt_found == 0
    missed = unfound & (matches.gt_near == 0)
    scored = np.unique(matches.gt_label)

    def mean_ap(keep: np.ndarray, correct: np.ndarray = right, label: np.ndarray = matches.det_label,
                without: np.ndarray | None = None) -> float:
        asked = matches.gt_label if without is None else matches.gt_label[~without]
        number = np.bincount(asked, minlength=matches.num_classes)
        values = []
        for class_ in scored:
            chosen = keep & (label == class_)
            values.append(average_precision(matches.det_score[chosen], correct[chosen], number[class_], recalls))
        return float(np.mean(values)) if values else 0.0

    # Only the error with the highest score at a box is repaired.
    candidates = np.flatnonzero(np.isin(matches.det_kind, (CLASSIFICATION, LOCALISATION)))
    candidates = candidates[unfound[matches.det_gt[candidates]]]
    candidates = candidates[np.argsort(-matches.det_score[candidates], kind='stable')]
    _, first = np.unique(matches.det_gt[candidates], return_index=True)
    repairs = np.isin(np.arange(len(right)), candidates[first])

    everything = np.ones_like(right)
    before = mean_ap(everything)
    gains = {}
    for kind, name in enumerate(KINDS[1:], start=1):
        of_kind = matches.det_kind == kind
        repaired = of_kind & repairs
        label = matches.det_label.copy()
        label[repaired] = matches.gt_label[matches.det_gt[repaired]]
        # As in TIDE, losses count as 0: AP can fall because its recall levels are rounded.
        gains[name] = max(0.0, mean_ap(~of_kind | repaired, right | repaired, label) - before)
    gains['missed'] = max(0.0, mean_ap(everything, without=missed) - before)
    gains['false positives'] = mean_ap(right) - before
    gains['false negatives'] = mean_ap(everything, without=unfound) - before
    return gains


def count_errors(matches: Matches, score_thr: float) -> np.ndarray:
    """Count the kinds of detections at a score threshold, by class.

    Args:
        matches: All detections.
        score_thr: Minimum score of the detections that count, in 0..1.

    Returns:
        np.ndarray: (K, 7) counts of detections of each of :data:`KINDS` by predicted class, and of missed boxes by true
        class.
    """
    counts = np.zeros((matches.num_classes, len(KINDS) + 1), int)
    drawn = matches.det_score >= score_thr
    np.add.at(counts, (matches.det_label[drawn], matches.det_kind[drawn]), 1)
    missed = np.maximum(matches.gt_found, matches.gt_near) < max(score_thr, np.finfo(float).tiny)
    np.add.at(counts, (matches.gt_label[missed], MISSED), 1)
    return counts


def confusion_matrix(matches: Matches, score_thr: float) -> np.ndarray:
    """Return the confusion matrix at IoU 0.5; arguments as for :func:`count_errors`.

    Returns:
        np.ndarray: (K + 1, K + 1) counts; rows are true classes, columns predicted classes. A correct detection counts
        at its box, an incorrect one at the box of another class that it overlaps most. The last row counts detections
        without such a box, the last column boxes that are neither found nor confused.
    """
    matrix = np.zeros((matches.num_classes + 1,) * 2, int)
    drawn = matches.det_score >= score_thr
    box = np.where(matches.det_kind == CORRECT, matches.det_gt, matches.det_confused)[drawn]
    true_label = np.append(matches.gt_label, matches.num_classes)[box]
    np.add.at(matrix, (true_label, matches.det_label[drawn]), 1)
    left = np.ones(len(matches.gt_label), bool)
    left[box[box >= 0]] = False
    np.add.at(matrix, (matches.gt_label[left], matches.num_classes), 1)
    return matrix


def best_f1_threshold(matches: Matches) -> float:
    """Return the score threshold with the highest F1 over all classes, in 0..1; 0.5 if no detection is correct."""
    order = np.argsort(-matches.det_score, kind='stable')
    true = np.cumsum(matches.det_kind[order] == CORRECT)
    if not len(true) or not true[-1]:
        return 0.5
    f1 = 2 * true / (np.arange(1, len(true) + 1) + len(matches.gt_label))
    return float(matches.det_score[order[f1.argmax()]])
