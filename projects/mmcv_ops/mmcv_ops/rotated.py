"""Overlaps and NMS of rotated boxes (cx, cy, width, height, angle in radians, clockwise in an image)."""

import torch
from torch import Tensor

from mmcv_ops.common import wide

PAIRS = 1 << 16  # in a block; a pair takes about 2 kB


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Compute the overlaps of pairs of rotated boxes; 0 if one is empty.

    Args:
        boxes1 (Tensor): ``(m, 5)``.
        boxes2 (Tensor): ``(n, 5)``.
        ious (Tensor): Receives the overlaps, row by row: ``(m * n,)``, or ``(m,)`` if aligned.
        mode_flag (int): 0 divides intersections by the union, 1 by the area of the first box.
        aligned (bool): Whether to pair boxes of the same index only; then ``m == n``.
    """
    first, second = wide(boxes1, boxes2), wide(boxes2, boxes1)
    if aligned:
        ious.copy_(_overlaps(first, second, mode_flag == 1))
    elif ious.numel():
        blocks = first[:, None].split(max(1, PAIRS // len(second)))
        ious.copy_(torch.cat([_overlaps(x, second, mode_flag == 1).flatten() for x in blocks]))


def nms_rotated(
    dets: Tensor, scores: Tensor, order: Tensor, dets_sorted: Tensor, labels: Tensor, iou_threshold: float,
    multi_label: bool) -> Tensor:
    """Suppress rotated boxes that overlap a box with a higher score by more than a threshold.

    As in the compiled operators, boxes of different labels suppress each other.

    Args:
        dets (Tensor): ``(n, 5)``; further columns are not used.
        scores (Tensor): Not used.
        order (Tensor): Indices of the boxes, highest score first: int64, ``(n,)``.
        dets_sorted (Tensor): Not used.
        labels (Tensor): Not used.
        iou_threshold (float): In 0..1.
        multi_label (bool): Not used.

    Returns:
        Tensor: Indices of the remaining boxes, highest score first: int64.
    """
    boxes, kept = wide(dets)[:, :5], []
    while order.numel():
        kept.append(order[0])
        order = order[1:]
        order = order[_overlaps(boxes[kept[-1]], boxes[order], False) <= iou_threshold]
    return torch.stack(kept) if kept else order


def _overlaps(boxes1: Tensor, boxes2: Tensor, of_first: bool) -> Tensor:
    boxes1, boxes2 = torch.broadcast_tensors(boxes1, boxes2)
    middle = (boxes1[..., :2] + boxes2[..., :2]) / 2  # large coordinates would cost precision
    inner = _common_area(_corners(boxes1, middle), _corners(boxes2, middle))
    area1, area2 = (x[..., 2] * x[..., 3] for x in (boxes1, boxes2))
    return torch.where((area1 > 1e-14) & (area2 > 1e-14), inner / (area1 if of_first else area1 + area2 - inner), 0)


def _corners(boxes: Tensor, origin: Tensor) -> Tensor:
    """Return the corners ``(..., 4, 2)``, ordered so that cross products of successive sides are positive."""
    direction = torch.stack([boxes[..., 4].cos(), boxes[..., 4].sin()], dim=-1)
    along = boxes[..., 2, None] / 2 * direction
    across = boxes[..., 3, None] / 2 * torch.stack([-direction[..., 1], direction[..., 0]], dim=-1)
    centre = boxes[..., :2] - origin
    return torch.stack([
        centre - along - across, centre + along - across, centre + along + across, centre - along + across], dim=-2)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _common_area(first: Tensor, second: Tensor) -> Tensor:
    """Return the area of the intersection of two rectangles ``(..., 4, 2)``.

    Its corners are crossings of sides and corners of one inside the other. Corners on a border count as inside, with a
    tolerance: a superfluous point changes the area by rounding errors, a missing one by a triangle. Nearly parallel
    sides do not cross, because rounding errors would decide where.
    """
    side1, side2 = (x.roll(-1, dims=-2) - x for x in (first, second))
    size = torch.maximum(first.abs().amax((-1, -2)), second.abs().amax((-1, -2)))
    epsilon = torch.finfo(first.dtype).eps
    tolerance = (16 * epsilon * size.square())[..., None, None]

    start, side1, side2 = first[..., :, None, :], side1[..., :, None, :], side2[..., None, :, :]
    between = second[..., None, :, :] - start
    det = _cross(side1, side2)
    t, s = _cross(between, side2) / det, _cross(between, side1) / det
    angled = det.abs() > epsilon**0.5 * side1.norm(dim=-1) * side2.norm(dim=-1)
    crosses = (t >= 0) & (t <= 1) & (s >= 0) & (s <= 1) & angled
    first_inside = (_cross(side2, -between) >= -tolerance).all(-1)
    second_inside = (_cross(side1, between) >= -tolerance).all(-2)

    points = torch.cat([(start + t[..., None] * side1).flatten(-3, -2), first, second], dim=-2)
    valid = torch.cat([crosses.flatten(-2), first_inside, second_inside], dim=-1)
    points = torch.where(valid[..., None], points, 0)
    points = points - points.sum(-2, keepdim=True) / valid.sum(-1).clamp(min=1)[..., None, None]
    angles = torch.where(valid, torch.atan2(points[..., 1], points[..., 0]), torch.inf)
    angles, order = angles.sort(dim=-1)
    points = points.gather(-2, order[..., None].expand_as(points))
    points = torch.where(angles[..., None].isinf(), points[..., :1, :], points)  # the first point closes the ring
    area = _cross(points, points.roll(-1, dims=-2)).sum(-1) / 2
    return torch.where(valid.any(-1), area, 0).clamp(min=0)
