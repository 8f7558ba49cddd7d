"""Box arithmetic and uploads that never make the host wait for the device."""

import numpy as np
import torch
from torch import Tensor


def generalized_iou(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Return the generalized IoU (arXiv 1902.09630) of boxes (x1, y1, x2, y2), in -1..1.

    The steps are those of mmdet's ``bbox_overlaps``, which uploads ``eps`` to the device in every call and waits.

    Args:
        a (Tensor): ``(..., 4)``.
        b (Tensor): ``(..., 4)``, broadcast against ``a``.
        eps (float): Smallest area of a union or hull.

    Returns:
        Tensor: ``(...)``.
    """
    overlap, union = _overlap_and_union(a, b, eps)
    hull = _area((torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])).clamp(min=0)).clamp(min=eps)
    return overlap / union - (hull - union) / hull


def intersection_over_union(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the IoU of boxes (x1, y1, x2, y2), in 0..1; arguments as for :func:`generalized_iou`."""
    overlap, union = _overlap_and_union(a, b, eps)
    return overlap / union


def _overlap_and_union(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    overlap = _area((torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0))
    areas = _area(a[..., 2:] - a[..., :2]) + _area(b[..., 2:] - b[..., :2])
    return overlap, (areas - overlap).clamp(min=eps)


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


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device without waiting for it."""
    tensor = torch.from_numpy(array)
    if device.type == 'cuda':
        tensor = tensor.pin_memory()  # a copy from pageable memory waits
    return tensor.to(device, non_blocking=True)
