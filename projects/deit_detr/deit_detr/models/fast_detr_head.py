"""DETR's head for all decoder layers and images at once."""

import numpy as np
import torch
from mmdet.models import CrossEntropyLoss, DETRHead, FocalLoss, GIoULoss, L1Loss
from mmdet.registry import MODELS
from mmdet.utils import InstanceList, reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from deit_detr.models.box_ops import image_sides, ious, to_centres, to_corners, to_device
from deit_detr.models.matching import BatchMatches, check_costs, match_batch

#: What mmdet adds to the number by which it divides a sum of losses.
EPS = torch.finfo(torch.float32).eps


@MODELS.register_module()
class FastDETRHead(DETRHead):
    """mmdet's ``DETRHead`` without loops over layers and images: same parameters, matches, losses and predictions.

    A training step does not wait for the device, except for the matching costs where Triton does not work. Everything
    is computed in the precision of the parameters, also under autocast: bfloat16 would round boxes by up to 1.6 of 800
    pixels, and float16 costs overflow.

    Args:
        num_classes (int): Number of classes, without the background.
        loss_cls (dict): As for ``DETRHead``; ``bg_cls_weight`` also works in subclasses.
        **kwargs: As for ``DETRHead``.

    Raises:
        TypeError: If a loss or a matching cost is not supported.
    """

    #: Supported types of ``loss_cls``.
    cls_losses = (CrossEntropyLoss, FocalLoss)

    def __init__(self, num_classes: int, loss_cls: dict, **kwargs) -> None:
        loss_cls = dict(loss_cls)
        class_weight = loss_cls.get('class_weight')
        bg_cls_weight = loss_cls.pop('bg_cls_weight', class_weight)
        if class_weight is not None:
            loss_cls['class_weight'] = torch.tensor([float(class_weight)] * num_classes + [float(bg_cls_weight)])
        super().__init__(num_classes, loss_cls=loss_cls, **kwargs)
        if class_weight is not None:
            self.bg_cls_weight = bg_cls_weight
            # a buffer moves to the device once, an attribute would be copied there in every step
            weight = self.loss_cls.__dict__.pop('class_weight')
            self.loss_cls.register_buffer('class_weight', weight, persistent=False)

        for name, supported in (
                ('loss_cls', self.cls_losses), ('loss_bbox', (L1Loss,)), ('loss_iou', (GIoULoss,))):
            kind = type(getattr(self, name))
            if kind not in supported:
                names = ' or '.join(loss.__name__ for loss in supported)
                raise TypeError(f"{type(self).__name__} supports {name} {names}, not {kind.__name__}: use mmdet's head")
        if self.train_cfg:
            check_costs(self.assigner.match_costs)

    def forward(self, hidden_states: Tensor, *references: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and boxes as mmdet's head does, in the precision of the parameters also under autocast."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return super().forward(*(x.to(self.fc_cls.weight.dtype) for x in (hidden_states, *references)))

    def loss_by_feat(
        self, all_layers_cls_scores: Tensor, all_layers_bbox_preds: Tensor, batch_gt_instances: InstanceList,
        batch_img_metas: list[dict], batch_gt_instances_ignore: None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of all decoder layers.

        Args:
            all_layers_cls_scores (Tensor): Logits, ``(layers, images, queries, classes)``.
            all_layers_bbox_preds (Tensor): Normalized boxes (cx, cy, w, h), ``(layers, images, queries, 4)``.
            batch_gt_instances (list[InstanceData]): As for :func:`~deit_detr.models.matching.match_batch`.
            batch_img_metas (list[dict]): As for ``match_batch``.
            batch_gt_instances_ignore (None): Not supported, as in ``DETRHead``.

        Returns:
            dict[str, Tensor]: ``loss_cls``, ``loss_bbox`` and ``loss_iou`` of the last layer; the names of the other
            layers start with ``d0.``, ``d1.`` ...
        """
        assert batch_gt_instances_ignore is None, 'DETR has no ground truth to ignore'
        losses, _ = self.match_and_loss(
            all_layers_cls_scores, all_layers_bbox_preds, batch_gt_instances, batch_img_metas)
        return name_layers(losses)

    def match_and_loss(
        self, scores: Tensor, boxes: Tensor, batch_gt_instances: InstanceList, batch_img_metas: list[dict],
    ) -> tuple[dict[str, Tensor], BatchMatches]:
        """Match each layer alone; return its losses as :meth:`layer_losses` does, and the matches."""
        with torch.autocast(boxes.device.type, enabled=False):
            scores, boxes = scores.float(), boxes.float()
            matches = match_batch(self.assigner.match_costs, scores, boxes, batch_gt_instances, batch_img_metas)
            return self.layer_losses(scores, boxes, matches), matches

    def layer_losses(
        self, scores: Tensor, boxes: Tensor, matches: BatchMatches, num_negatives: int | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of each layer for given matches.

        Args:
            scores (Tensor): Logits, ``(layers, images, queries, classes)``.
            boxes (Tensor): Normalized boxes (cx, cy, w, h), ``(layers, images, queries, 4)``.
            matches (BatchMatches): Which queries have which boxes.
            num_negatives (int, optional): Queries without a box in a layer, for the average of ``loss_cls``. Default:
                all others.

        Returns:
            dict[str, Tensor]: ``loss_cls``, ``loss_bbox`` and ``loss_iou``, ``(layers,)`` each.
        """
        num_layers, num_images, num_queries = boxes.shape[:3]
        num_matches, image, gt = matches.num_per_layer, matches.index[1], matches.gt
        if num_negatives is None:
            num_negatives = num_images * num_queries - num_matches
        sides, expected = matches.sides[image], matches.gt_boxes[image, gt]
        predicted = boxes[matches.index]
        loss_bbox = (predicted - to_centres(expected / sides)).abs()
        iou, giou = ious(to_corners(predicted) * sides, expected, self.loss_iou.eps)
        loss_cls = self.classification_loss(scores, matches.index, matches.gt_labels[image, gt], iou.detach())

        cls_average = scores.new_full((1,), num_matches + num_negatives * self.bg_cls_weight)
        if self.sync_cls_avg_factor:
            cls_average = reduce_mean(cls_average)
        box_average = reduce_mean(scores.new_full((1,), num_matches)).clamp(min=1) + EPS
        return {
            'loss_cls': loss_cls.reshape(num_layers, -1).sum(1) / (cls_average.clamp(min=1) + EPS),
            'loss_bbox': loss_bbox.reshape(num_layers, 4 * num_matches).sum(1) * (
                self.loss_bbox.loss_weight / box_average),
            'loss_iou': (1 - giou).reshape(num_layers, num_matches).sum(1) * (self.loss_iou.loss_weight / box_average),
        }

    def classification_loss(self, scores: Tensor, index: tuple[Tensor, ...], labels: Tensor, iou: Tensor) -> Tensor:
        """Return the losses of all queries.

        Args:
            scores (Tensor): Logits, ``(layers, images, queries, classes)``.
            index (tuple[Tensor, ...]): Layer, image and query of each match, ``(matches,)`` each.
            labels (Tensor): Class of each match, ``(matches,)``.
            iou (Tensor): IoU of each match, in 0..1, ``(matches,)``.

        Returns:
            Tensor: One or more values for each query, ordered by layer.
        """
        if isinstance(self.loss_cls, FocalLoss):
            # one number for each class: otherwise the loss waits for the device, or calls an operator of mmcv
            targets = torch.zeros_like(scores)
            targets[(*index, labels)] = 1
        else:
            targets = labels.new_full(scores.shape[:3], self.num_classes)
            targets[index] = labels
        return self.loss_cls(scores.flatten(0, 2), targets.flatten(0, 2), reduction_override='none')

    def predict_by_feat(
        self, layer_cls_scores: Tensor, layer_bbox_preds: Tensor, batch_img_metas: list[dict], rescale: bool = True,
    ) -> InstanceList:
        """Return the detections of the last layer for all images.

        Args:
            layer_cls_scores (Tensor): Logits, ``(layers, images, queries, classes)``.
            layer_bbox_preds (Tensor): Normalized boxes (cx, cy, w, h), ``(layers, images, queries, 4)``.
            batch_img_metas (list[dict]): For each image ``img_shape``; to rescale, ``scale_factor`` (width, height).
            rescale (bool): Whether to return boxes in pixels of the original image.

        Returns:
            list[InstanceData]: For each image ``bboxes`` (x1, y1, x2, y2) in pixels, ``scores`` in 0..1, highest
            first, and ``labels``.
        """
        logits, boxes = layer_cls_scores[-1].float(), layer_bbox_preds[-1].float()
        scores, labels, index = best_detections(self, logits, self.test_cfg.get('max_per_img', logits.shape[1]))
        boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))

        sides = image_sides(batch_img_metas, boxes.device)[:, None]
        boxes = (to_corners(boxes) * sides).clamp(min=0).minimum(sides)
        if rescale:
            factors = np.array([meta['scale_factor'] for meta in batch_img_metas], np.float32)
            boxes = boxes / to_device(factors, boxes.device).repeat(1, 2)[:, None]
        return [InstanceData(bboxes=box, scores=score, labels=label)
                for box, score, label in zip(boxes, scores, labels, strict=True)]


def name_layers(losses: dict[str, Tensor], prefix: str = '') -> dict[str, Tensor]:
    """Return one loss for each layer, ``(layers,)`` in the argument, under mmdet's names: the last layer first."""
    of_layers = {name: loss.unbind() for name, loss in losses.items()}
    result = {f'{prefix}{name}': loss[-1] for name, loss in of_layers.items()}
    for index in range(len(next(iter(losses.values()))) - 1):
        result.update({f'd{index}.{prefix}{name}': loss[index] for name, loss in of_layers.items()})
    return result


def best_detections(head: DETRHead, logits: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select the detections with the highest scores, as mmdet's DETR heads do.

    Args:
        head (DETRHead): Its ``loss_cls`` decides between sigmoid and softmax scores.
        logits (Tensor): ``(images, queries, classes)``.
        number (int): Detections to return for each image.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Scores in 0..1, highest first, labels and queries, ``(images, number)`` each.
    """
    if head.loss_cls.use_sigmoid:
        scores, index = logits.sigmoid().flatten(1).topk(number)
        return scores, index % head.num_classes, index // head.num_classes
    scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    scores, index = scores.topk(number)
    return scores, labels.gather(1, index), index
