"""DETR's head for all decoder layers and images at once."""

import numpy as np
import torch
from mmdet.models import DETRHead, GIoULoss, L1Loss
from mmdet.models.losses import QualityFocalLoss
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmdet.utils import InstanceList, reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from deit_detr.models.box_ops import generalized_iou, image_sides, to_device
from deit_detr.models.matching import check_costs, match_batch


@MODELS.register_module()
class FastDETRHead(DETRHead):
    """mmdet's ``DETRHead`` without loops over layers and images: same parameters, matches, losses and predictions.

    A training step waits for the device once, for the matching costs. Everything is computed in float32, also under
    autocast: bfloat16 would round boxes by up to 1.6 of 800 pixels, and float16 costs overflow.

    Args:
        num_classes (int): Number of classes, without the background.
        loss_cls (dict): As for ``DETRHead``; ``bg_cls_weight`` also works in subclasses.
        **kwargs: As for ``DETRHead``.

    Raises:
        TypeError: If a loss or a matching cost is not supported.
    """

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

        if type(self.loss_bbox) is not L1Loss or type(self.loss_iou) is not GIoULoss:
            raise TypeError('FastDETRHead supports loss_bbox L1Loss and loss_iou GIoULoss: use DETRHead for others')
        if isinstance(self.loss_cls, QualityFocalLoss):
            raise TypeError('FastDETRHead does not support QualityFocalLoss: use DETRHead')
        if self.train_cfg:
            check_costs(self.assigner.match_costs)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and boxes as ``DETRHead`` does, in the precision of the parameters also under autocast."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return super().forward(hidden_states.to(self.fc_cls.weight.dtype))

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
        with torch.autocast(all_layers_bbox_preds.device.type, enabled=False):
            losses = self._losses(
                all_layers_cls_scores.float(), all_layers_bbox_preds.float(), batch_gt_instances, batch_img_metas)
        of_layers = {name: loss.unbind() for name, loss in losses.items()}
        result = {name: loss[-1] for name, loss in of_layers.items()}
        for index in range(len(all_layers_bbox_preds) - 1):
            result.update({f'd{index}.{name}': loss[index] for name, loss in of_layers.items()})
        return result

    def _losses(
        self, scores: Tensor, boxes: Tensor, batch_gt_instances: InstanceList, batch_img_metas: list[dict],
    ) -> dict[str, Tensor]:
        """Return ``loss_cls``, ``loss_bbox`` and ``loss_iou``, ``(layers,)`` each."""
        num_layers, num_images, num_queries = boxes.shape[:3]
        matches = match_batch(self.assigner.match_costs, scores, boxes, batch_gt_instances, batch_img_metas)
        image, num_pos = matches.index[1], matches.num_per_layer

        labels = matches.gt_labels.new_full((num_layers, num_images, num_queries), self.num_classes)
        labels[matches.index] = matches.gt_labels[image, matches.gt]
        loss_cls = self.loss_cls(scores.flatten(0, 2), labels.flatten(), reduction_override='none')

        sides = matches.sides[image]
        predicted, expected = boxes[matches.index], bbox_xyxy_to_cxcywh(matches.gt_boxes[image, matches.gt] / sides)
        loss_bbox = self.loss_bbox.loss_weight * (predicted - expected).abs()
        giou = generalized_iou(
            bbox_cxcywh_to_xyxy(predicted) * sides, bbox_cxcywh_to_xyxy(expected) * sides, self.loss_iou.eps)
        loss_iou = self.loss_iou.loss_weight * (1 - giou)

        num_neg = num_images * num_queries - num_pos
        cls_average = scores.new_full((1,), num_pos + num_neg * self.bg_cls_weight)
        if self.sync_cls_avg_factor:
            cls_average = reduce_mean(cls_average)
        box_average = reduce_mean(scores.new_full((1,), num_pos))
        eps = torch.finfo(torch.float32).eps
        return {
            'loss_cls': loss_cls.reshape(num_layers, -1).sum(1) / (cls_average.clamp(min=1) + eps),
            'loss_bbox': loss_bbox.reshape(num_layers, 4 * num_pos).sum(1) / (box_average.clamp(min=1) + eps),
            'loss_iou': loss_iou.reshape(num_layers, num_pos).sum(1) / (box_average.clamp(min=1) + eps),
        }

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
        boxes = (bbox_cxcywh_to_xyxy(boxes) * sides).clamp(min=0).minimum(sides)
        if rescale:
            factors = np.array([meta['scale_factor'] for meta in batch_img_metas], np.float32)
            boxes = boxes / to_device(factors, boxes.device).repeat(1, 2)[:, None]
        return [InstanceData(bboxes=box, scores=score, labels=label)
                for box, score, label in zip(boxes, scores, labels, strict=True)]


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
