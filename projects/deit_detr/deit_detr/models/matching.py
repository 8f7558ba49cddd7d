"""Hungarian matching of predictions and ground truth for all layers, groups and images of a batch at once."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models.task_modules import BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost
from mmdet.utils import InstanceList
from mmengine.logging import print_log
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from deit_detr.models.box_ops import generalized_iou, image_sides, to_centres, to_corners, to_device

#: Queries or boxes of a problem for the kernel: with more, its state does not fit into registers.
MOST_ON_DEVICE = 2048


class BatchMatches(NamedTuple):
    """The matches of a batch and the padded ground truth that they index.

    Attributes:
        index (tuple[Tensor, ...]): Layer, image and query of each match, ordered by layer: int64, ``(matches,)`` each.
        gt (Tensor): Index of the box of each match among those of its image, int64, ``(matches,)``.
        gt_boxes (Tensor): (x1, y1, x2, y2) in pixels, padded with zeros: float32, ``(images, most boxes, 4)``.
        gt_labels (Tensor): Padded with zeros, ``(images, most boxes)``.
        sides (Tensor): (w, h, w, h) of each image in pixels, float32, ``(images, 4)``.
        num_per_layer (int): Number of matches in each layer: for each image, all its boxes or all queries.
    """

    index: tuple[Tensor, Tensor, Tensor]
    gt: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor
    sides: Tensor
    num_per_layer: int


def match_batch(
    costs: Sequence[nn.Module], scores: Tensor, boxes: Tensor, batch_gt_instances: InstanceList,
    batch_img_metas: list[dict],
) -> BatchMatches:
    """Match the predictions of all layers and images, on a GPU without a wait.

    The number of operators does not depend on the number of layers and images. Without Triton, the costs are read from
    the device once. Each layer and image is matched alone. Groups of queries (Group DETR) are passed as further layers.

    Args:
        costs (Sequence[nn.Module]): mmdet's matching costs, see :func:`check_costs`.
        scores (Tensor): Logits, ``(layers, images, queries, classes)``.
        boxes (Tensor): Normalized (cx, cy, w, h), ``(layers, images, queries, 4)``.
        batch_gt_instances (list[InstanceData]): For each image ``bboxes`` (x1, y1, x2, y2) in pixels and ``labels``.
        batch_img_metas (list[dict]): For each image ``img_shape``, (height, width) in pixels.

    Returns:
        BatchMatches: The matches, on the device of ``boxes``.
    """
    device, num_queries = boxes.device, boxes.shape[2]
    num_gts = np.array([len(gt) for gt in batch_gt_instances])
    num_matches = np.minimum(num_gts, num_queries)
    present = np.arange(num_gts.max()) < num_gts[:, None]
    which = np.full(present.shape, num_gts.sum())  # the row of zeros behind all boxes
    which[present] = np.arange(num_gts.sum())
    # one small copy to the device, whatever the number of images
    sides = image_sides(batch_img_metas, torch.device('cpu')).numpy()
    parts = num_gts, num_matches.cumsum() - num_matches, sides, which
    packed = to_device(np.concatenate([part.ravel() for part in parts]).astype(np.int64, copy=False), device)
    counts, starts, sides, which = (
        x.view(part.shape) for x, part in zip(packed.split([part.size for part in parts]), parts, strict=True))
    sides = sides.float()
    gt_boxes = to_device(torch.cat([gt.bboxes for gt in batch_gt_instances]), device)
    gt_boxes = F.pad(gt_boxes.float(), (0, 0, 0, 1))[which]
    gt_labels = F.pad(to_device(torch.cat([gt.labels for gt in batch_gt_instances]), device), (0, 1))[which]

    values = matching_costs(costs, scores.detach(), boxes.detach(), gt_boxes, gt_labels, sides)
    num_per_layer = int(num_matches.sum())
    if max(values.shape[2:]) <= MOST_ON_DEVICE and (solve := _solver_on(device)):
        *index, gt = solve(values, counts, starts, num_per_layer)
    else:
        *index, gt = to_device(match(values.cpu().numpy(), num_gts), device)
    return BatchMatches(tuple(index), gt, gt_boxes, gt_labels, sides, num_per_layer)


@functools.cache
def _solver_on(device: torch.device) -> Callable | None:
    """Return ``match_on_device`` if Triton works on the device, ``None`` for SciPy."""
    if device.type != 'cuda':
        return None
    try:
        from deit_detr.models.matching_kernel import match_on_device

        one = torch.ones(1, dtype=torch.int64, device=device)
        match_on_device(torch.zeros(1, 1, 1, 1, device=device), one, one - 1, 1)
    except Exception as error:  # no Triton, no C compiler for it, an old driver ...
        print_log(f'Boxes are matched on the CPU, which is slower, because Triton does not work: {error}',
                  logger='current', level=logging.WARNING)
        return None
    return match_on_device


def check_costs(costs: Sequence[nn.Module]) -> None:
    """Raise TypeError if :func:`matching_costs` does not implement one of mmdet's matching costs."""
    for cost in costs:
        known = (BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost)
        if type(cost) not in known or getattr(cost, 'binary_input', False) or \
                getattr(cost, 'iou_mode', 'giou') != 'giou':
            raise TypeError(f'FastDETRHead does not support the matching cost {cost}: use DETRHead')


def matching_costs(
    costs: Sequence[nn.Module], scores: Tensor, boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, sides: Tensor,
) -> Tensor:
    """Return the weighted sum of mmdet's costs for all layers and images, ``(layers, images, most boxes, queries)``.

    Args are those of :func:`match_batch` and the fields of :class:`BatchMatches`.
    """
    sides = sides[:, None]
    boxes = to_corners(boxes) * sides
    distances = functools.partial(torch.cdist, p=1) if boxes.device.type == 'cpu' else l1_distances
    values = []
    for cost in costs:
        if isinstance(cost, BBoxL1Cost):
            a, b = gt_boxes, boxes
            if cost.box_format == 'xywh':
                a, b = to_centres(a), to_centres(b)
            value = distances(a / sides, b / sides)
        elif isinstance(cost, IoUCost):
            value = -generalized_iou(gt_boxes[:, :, None], boxes[:, :, None], eps=1e-6)
        else:
            if isinstance(cost, ClassificationCost):
                of_class = -scores.softmax(-1)
            else:
                p, alpha, gamma, eps = scores.sigmoid(), cost.alpha, cost.gamma, cost.eps
                negative = -(1 - p + eps).log() * (1 - alpha) * p.pow(gamma)
                of_class = -(p + eps).log() * alpha * (1 - p).pow(gamma) - negative
            value = of_class.mT.gather(-2, gt_labels[:, :, None].expand(len(scores), -1, -1, scores.shape[2]))
        values.append(value * cost.weight)
    return torch.stack(values).sum(dim=0)


def l1_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return what ``cdist(a, b, p=1)`` returns, faster on CUDA (15 to 29 times in RF-DETR) and slower on a CPU."""
    return (a[..., :, None, :] - b[..., None, :, :]).abs_().sum(-1)


def match(costs: np.ndarray, num_gts: Sequence[int]) -> np.ndarray:
    """Solve the assignment problem of each layer and image.

    Args:
        costs (np.ndarray): ``(layers, images, most boxes, queries)``.
        num_gts (Sequence[int]): Number of boxes of each image; costs of the padding are ignored.

    Returns:
        np.ndarray: Layer, image, query and box of each match, ordered by layer, image and query: int64
        ``(4, matches)``.
    """
    num_layers, num_images, _, num_queries = costs.shape
    costs = _finite(costs)
    pairs = [  # SciPy would transpose a problem with more queries than boxes, and sort its result
        linear_sum_assignment(cost[:number])[::-1] if number < num_queries else linear_sum_assignment(cost[:number].T)
        for layer in costs for cost, number in zip(layer, num_gts, strict=True)]
    queries, boxes = (np.concatenate(part) for part in zip(*pairs, strict=True))
    sizes = np.minimum(num_gts, num_queries)
    layers = np.repeat(np.arange(num_layers), sizes.sum())
    images = np.tile(np.repeat(np.arange(num_images), sizes), num_layers)
    order = np.argsort((layers * num_images + images) * num_queries + queries)
    return np.stack([layers, images, queries[order], boxes[order]]).astype(np.int64, copy=False)


def assign(costs: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Call SciPy's ``linear_sum_assignment``, with costs that are not finite as the lowest instead of an error.

    A broken prediction is thus matched and makes the loss non-finite, which all processes notice. An error would stop
    one process only, while the others wait for its gradients.

    Args:
        costs (np.ndarray | Tensor): ``(queries, boxes)``, on the CPU.

    Returns:
        tuple[np.ndarray, np.ndarray]: Query and box of each match.
    """
    return linear_sum_assignment(_finite(np.asarray(costs)))


def _finite(costs: np.ndarray) -> np.ndarray:
    finite = np.isfinite(costs)
    return costs if finite.all() else np.where(finite, costs, -1e9)
