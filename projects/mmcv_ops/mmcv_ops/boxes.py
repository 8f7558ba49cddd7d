"""Overlaps and non-maximum suppression of boxes (x1, y1, x2, y2)."""

import torch
import torchvision
from torch import Tensor

from mmcv_ops.common import wide


def bbox_overlaps(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Compute the overlaps of pairs of boxes.

    Args:
        boxes1 (Tensor): ``(m, 4)``.
        boxes2 (Tensor): ``(n, 4)``.
        ious (Tensor): Receives the overlaps: ``(m, n)``, or ``(m,)`` if aligned.
        mode (int): 0 divides intersections by the union, 1 by the area of the first box.
        aligned (bool): Whether to pair boxes of the same index only; then ``m == n``.
        offset (int): Added to width and height, 0 or 1.
    """
    first = wide(boxes1, boxes2) if aligned else wide(boxes1, boxes2)[:, None]
    ious.copy_(_overlaps(first, wide(boxes2, boxes1), offset, mode == 1))


def _overlaps(boxes1: Tensor, boxes2: Tensor, offset: int = 0, of_first: bool = False) -> Tensor:
    size1, size2 = (x[..., 2:] - x[..., :2] + offset for x in (boxes1, boxes2))
    low, high = torch.maximum(boxes1, boxes2)[..., :2], torch.minimum(boxes1, boxes2)[..., 2:]
    inner = (high - low + offset).clamp(min=0).prod(-1)
    area = size1.prod(-1)
    return inner / (area if of_first else area + size2.prod(-1) - inner)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Suppress boxes that overlap a box with a higher score by more than a threshold.

    Args:
        boxes (Tensor): ``(n, 4)``.
        scores (Tensor): ``(n,)``; of equal scores the first wins.
        iou_threshold (float): In 0..1.
        offset (int): As in :func:`bbox_overlaps`.

    Returns:
        Tensor: Indices of the remaining boxes, highest score first: int64.
    """
    boxes, scores = wide(boxes, scores), wide(scores, boxes)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torchvision.ops.nms(boxes, scores, _rounded(iou_threshold, boxes))


def _rounded(threshold: float, like: Tensor) -> float:
    """Round a threshold to the type of the overlaps: 0.3 in float32 is larger than 0.3 in float64."""
    return torch.tensor(threshold, dtype=like.dtype).item()


def softnms(
    boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int,
    offset: int) -> Tensor:
    """Lower the scores of boxes that overlap a box with a higher score (Soft-NMS, arXiv 1704.04503).

    Args:
        boxes (Tensor): ``(n, 4)``.
        scores (Tensor): ``(n,)``.
        dets (Tensor): Receives boxes and new scores of the k remaining boxes in its first k rows: ``(n, 5)``.
        iou_threshold (float): In 0..1; for methods 0 and 1.
        sigma (float): Variance of the Gaussian, for method 2.
        min_score (float): Boxes with a lower new score are dropped.
        method (int): 0 drops boxes, 1 multiplies their scores by 1 - IoU, 2 by a Gaussian of the IoU.
        offset (int): As in :func:`bbox_overlaps`.

    Returns:
        Tensor: Indices of the remaining boxes, highest new score first: int64, ``(k,)``.
    """
    coords, rest_scores = wide(boxes, scores), wide(scores, boxes).clone()
    rest = torch.arange(len(boxes), device=boxes.device)
    iou_threshold, min_score = _rounded(iou_threshold, coords), _rounded(min_score, coords)
    kept, kept_scores = [], []
    while rest.numel():
        best = rest_scores.argmax()
        kept.append(rest[best].clone())
        kept_scores.append(rest_scores[best].clone())
        for x in (rest, rest_scores):
            x[best] = x[0].clone()
        rest, rest_scores = rest[1:], rest_scores[1:]
        overlap = _overlaps(coords[kept[-1]], coords[rest], offset).nan_to_num(0)  # NaN for two empty boxes
        if method == 2:
            rest_scores = rest_scores * torch.exp(-overlap.square() / sigma)
        else:
            factor = 1 - overlap if method == 1 else 0
            rest_scores = rest_scores * torch.where(overlap >= iou_threshold, factor, 1)
        stay = _close_gaps(rest_scores >= min_score)
        rest, rest_scores = rest[stay], rest_scores[stay]
    if kept:
        inds = torch.stack(kept)
        dets[: len(inds)] = torch.cat([coords[inds], torch.stack(kept_scores)[:, None]], dim=1).to(dets)
        return inds
    return rest


def _close_gaps(stay: Tensor) -> Tensor:
    """Return the indices that stay; the last ones fill the gaps as in the compiled operator, which decides ties."""
    number = int(stay.sum())
    order = torch.arange(number, device=stay.device)
    order[~stay[:number]] = number + stay[number:].nonzero()[:, 0].flip(0)
    return order


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group each box that NMS keeps with the boxes that overlap it by a threshold or more.

    Args:
        dets (Tensor): Boxes and scores, ``(n, 5)``.
        iou_threshold (float): In 0..1.

    Returns:
        list[list[int]]: Indices of each group, highest score first.
    """
    coords, scores = wide(dets).split([4, 1], dim=1)
    rest = scores[:, 0].argsort(descending=True, stable=True)
    groups = []
    while rest.numel():
        matched = _overlaps(coords[rest[0]], coords[rest]) >= _rounded(iou_threshold, coords)
        matched[0] = True  # an empty box does not overlap itself
        groups.append(rest[matched].tolist())
        rest = rest[~matched]
    return groups
