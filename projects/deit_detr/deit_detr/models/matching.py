"""Hungarian matching of predictions and ground truth for all layers, groups and images of a batch at once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmdet.models.task_modules import BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmdet.utils import InstanceList
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from deit_detr.models.box_ops import generalized_iou, image_sides, to_device


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
    """Match the predictions of all layers and images; read from the device once.

    Each layer and image is matched alone. Groups of queries (Group DETR) are passed as further layers.

    Args:
        costs (Sequence[nn.Module]): mmdet's matching costs, see :func:`check_costs`.
        scores (Tensor): Logits, ``(layers, images, queries, classes)``.
        boxes (Tensor): Normalized (cx, cy, w, h), ``(layers, images, queries, 4)``.
        batch_gt_instances (list[InstanceData]): For each image ``bboxes`` (x1, y1, x2, y2) in pixels and ``labels``.
        batch_img_metas (list[dict]): For each image ``img_shape``, (height, width) in pixels.

    Returns:
        BatchMatches: The matches, on the device of ``boxes``.
    """
    sides = image_sides(batch_img_metas, boxes.device)
    gt_boxes = pad_sequence([gt.bboxes for gt in batch_gt_instances], batch_first=True).float()
    gt_labels = pad_sequence([gt.labels for gt in batch_gt_instances], batch_first=True)
    num_gts = [len(gt) for gt in batch_gt_instances]
    values = matching_costs(costs, scores.detach(), boxes.detach(), gt_boxes, gt_labels, sides)
    *index, gt = to_device(match(values.cpu().numpy(), num_gts), boxes.device)
    return BatchMatches(tuple(index), gt, gt_boxes, gt_labels, sides, len(gt) // len(boxes))


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
    """Return the weighted sum of mmdet's costs for all layers and images, ``(layers, images, queries, most boxes)``.

    Args are those of :func:`match_batch` and the fields of :class:`BatchMatches`.
    """
    sides = sides[:, None]
    boxes = bbox_cxcywh_to_xyxy(boxes) * sides
    values = []
    for cost in costs:
        if isinstance(cost, BBoxL1Cost):
            a, b = boxes, gt_boxes
            if cost.box_format == 'xywh':
                a, b = bbox_xyxy_to_cxcywh(a), bbox_xyxy_to_cxcywh(b)
            value = torch.cdist(a / sides, (b / sides).expand(len(a), -1, -1, -1), p=1)
        elif isinstance(cost, IoUCost):
            value = -generalized_iou(boxes[..., :, None, :], gt_boxes[:, None], eps=1e-6)
        else:
            if isinstance(cost, ClassificationCost):
                of_class = -scores.softmax(-1)
            else:
                p, alpha, gamma, eps = scores.sigmoid(), cost.alpha, cost.gamma, cost.eps
                negative = -(1 - p + eps).log() * (1 - alpha) * p.pow(gamma)
                of_class = -(p + eps).log() * alpha * (1 - p).pow(gamma) - negative
            value = of_class.gather(-1, gt_labels[:, None].expand(*scores.shape[:3], -1))
        values.append(value * cost.weight)
    return torch.stack(values).sum(dim=0)


def match(costs: np.ndarray, num_gts: list[int]) -> np.ndarray:
    """Solve the assignment problem of each layer and image.

    Args:
        costs (np.ndarray): ``(layers, images, queries, most boxes)``.
        num_gts (list[int]): Number of boxes of each image; costs of the padding are ignored.

    Returns:
        np.ndarray: Layer, image, query and box of each match, ordered by layer: int64 ``(4, matches)``.
    """
    num_layers, num_images, num_queries = costs.shape[:3]
    pairs = [assign(cost[:, :number]) for layer in costs for cost, number in zip(layer, num_gts, strict=True)]
    sizes = [min(num_queries, number) for number in num_gts]
    layers = np.repeat(np.arange(num_layers), sum(sizes))
    images = np.tile(np.repeat(np.arange(num_images), sizes), num_layers)
    queries, boxes = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return np.stack([layers, images, queries, boxes]).astype(np.int64, copy=False)


def assign(costs: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Call SciPy's ``linear_sum_assignment``, with costs that are not finite as the lowest instead of an error.

    A broken prediction is thus matched and makes the loss non-finite, which all processes notice. An error would stop
    one process only, while the others wait for its gradients.

    Args:
        costs (np.ndarray | Tensor): ``(queries, boxes)``, on the CPU.

    Returns:
        tuple[np.ndarray, np.ndarray]: Query and box of each match.
    """
    costs = np.asarray(costs)
    finite = np.isfinite(costs)
    if not finite.all():
        costs = np.where(finite, costs, -1e9)
    return linear_sum_assignment(costs)
