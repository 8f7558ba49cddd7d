"""Box arithmetic and uploads that never make the host wait for the device."""

import numpy as np
import torch
from torch import Tensor


def to_corners(boxes: Tensor) -> Tensor:
    """Return boxes (cx, cy, w, h) as (x1, y1, x2, y2), ``(..., 4)``; fewer operators than mmdet's."""
    centres, sides = boxes.split(2, -1)
    return torch.cat([centres - 0.5 * sides, centres + 0.5 * sides], -1)


def to_centres(boxes: Tensor) -> Tensor:
    """Return boxes (x1, y1, x2, y2) as (cx, cy, w, h), ``(..., 4)``."""
    first, last = boxes.split(2, -1)
    return torch.cat([(first + last) / 2, last - first], -1)


def generalized_iou(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Return the generalized IoU of :func:`ious`."""
    return ious(a, b, eps)[1]


def ious(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the IoU in 0..1 and the generalized IoU (arXiv 1902.09630) in -1..1 of boxes (x1, y1, x2, y2).

    The steps are those of mmdet's ``bbox_overlaps``, which uploads ``eps`` to the device in every call and waits.

    Args:
        a (Tensor): ``(..., 4)``.
        b (Tensor): ``(..., 4)``, broadcast against ``a``.
        eps (float): Smallest area of a union or hull.

    Returns:
        tuple[Tensor, Tensor]: ``(...)`` each.
    """
    (first_a, last_a), (first_b, last_b) = a.split(2, -1), b.split(2, -1)
    overlap = _area((torch.min(last_a, last_b) - torch.max(first_a, first_b)).clamp(min=0))
    union = (_area(last_a - first_a) + _area(last_b - first_b) - overlap).clamp(min=eps)
    hull = _area((torch.max(last_a, last_b) - torch.min(first_a, first_b)).clamp(min=0)).clamp(min=eps)
    iou = overlap / union
    return iou, iou - (hull - union) / hull


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]  # the backward pass of prod() waits for the device


def apply_deltas(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Refine boxes (cx, cy, w, h) by deltas, ``(..., 4)`` each, as LW-DETR's ``bbox_reparam`` does.

    Deltas are shifts of the centre as fractions of w and h, and logarithms of the factors on w and h.
    """
    centres, sides = boxes.split(2, -1)
    shifts, exponents = deltas.split(2, -1)
    return torch.cat([centres + shifts * sides, sides * exponents.exp()], -1)


def image_sides(batch_img_metas: list[dict], device: torch.device) -> Tensor:
    """Return (w, h, w, h) of each image in pixels, float32 ``(images, 4)``, from its ``img_shape`` (height, width)."""
    return to_device(np.array([meta['img_shape'][1::-1] * 2 for meta in batch_img_metas], np.float32), device)


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy values to a device without waiting for it."""
    tensor = torch.as_tensor(values)
    if device.type == 'cuda' and not tensor.is_cuda:
        tensor = tensor.pin_memory()  # a copy from pageable memory waits
    return tensor.to(device, non_blocking=True)
