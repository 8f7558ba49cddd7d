"""DETR's head for all decoder layers and images at once."""

import numpy as np
import torch
from mmdet.models import DETRHead, GIoULoss, L1Loss
from mmdet.models.losses import QualityFocalLoss
from mmdet.models.task_modules import BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmdet.utils import InstanceList, reduce_mean
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@MODELS.register_module()
class FastDETRHead(DETRHead):
    """mmdet's ``DETRHead`` without its loops over layers and images: same parameters, matches, losses, predictions.

    A training step waits for the device once, for the matching costs. Everything is computed in float32, also
    under autocast: bfloat16 would round boxes by up to 1.6 of 800 pixels, and float16 costs overflow.

    Args:
        num_classes (int): Number of classes, without the background.
        loss_cls (dict): As for ``DETRHead``, which honours ``bg_cls_weight`` in its own class only.
        **kwargs: As for ``DETRHead``.

    Raises:
        TypeError: If a loss or a matching cost is none of those that DETR is known with.
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
            # A buffer moves to the device once; the attribute would be copied there in every step.
            weight = self.loss_cls.__dict__.pop('class_weight')
            self.loss_cls.register_buffer('class_weight', weight, persistent=False)

        if type(self.loss_bbox) is not L1Loss or type(self.loss_iou) is not GIoULoss:
            raise TypeError('FastDETRHead knows loss_bbox L1Loss and loss_iou GIoULoss: use DETRHead for others')
        if isinstance(self.loss_cls, QualityFocalLoss):
            raise TypeError('FastDETRHead does not know QualityFocalLoss: use DETRHead')
        for cost in self.assigner.match_costs if self.train_cfg else ():
            known = (BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost)
            if type(cost) not in known or getattr(cost, 'binary_input', False) or \
                    getattr(cost, 'iou_mode', 'giou') != 'giou':
                raise TypeError(f'FastDETRHead does not know the matching cost {cost}: use DETRHead')

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """As ``DETRHead``, in the parameters' precision also under autocast."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return super().forward(hidden_states.to(self.fc_cls.weight.dtype))

    def loss_by_feat(
        self,
        all_layers_cls_scores: Tensor,
        all_layers_bbox_preds: Tensor,
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: None = None,
    ) -> dict[str, Tensor]:
        """Losses of all decoder layers.

        Args:
            all_layers_cls_scores (Tensor): Logits, ``(layers, images, queries, classes)``.
            all_layers_bbox_preds (Tensor): Boxes (cx, cy, w, h) as shares of the image,
                ``(layers, images, queries, 4)``.
            batch_gt_instances (list[InstanceData]): For each image ``bboxes`` (x1, y1, x2, y2) in pixels, ``labels``.
            batch_img_metas (list[dict]): For each image ``img_shape``, (height, width) in pixels.
            batch_gt_instances_ignore (None): As in ``DETRHead``, which knows none either.

        Returns:
            dict[str, Tensor]: The last layer's ``loss_cls``, ``loss_bbox``, ``loss_iou``; the others' with ``d0.``,
            ``d1.`` ... before the name.
        """
        assert batch_gt_instances_ignore is None, 'DETR has no ground truth to ignore'
        with torch.autocast(all_layers_bbox_preds.device.type, enabled=False):
            return self._losses(
                all_layers_cls_scores.float(), all_layers_bbox_preds.float(), batch_gt_instances, batch_img_metas)

    def _losses(
        self, scores: Tensor, boxes: Tensor, batch_gt_instances: InstanceList, batch_img_metas: list[dict],
    ) -> dict[str, Tensor]:
        num_layers, num_images, num_queries = boxes.shape[:3]
        sides = _image_sides(batch_img_metas, boxes.device)
        # (images, most boxes): what is missing is zero, and never matched
        gt_boxes = pad_sequence([gt.bboxes for gt in batch_gt_instances], batch_first=True).float()
        gt_labels = pad_sequence([gt.labels for gt in batch_gt_instances], batch_first=True)
        num_gts = [len(gt) for gt in batch_gt_instances]
        num_pos = sum(min(num_queries, number) for number in num_gts)  # in every layer

        costs = self.matching_costs(scores.detach(), boxes.detach(), gt_boxes, gt_labels, sides)
        layer, image, query, gt = _to_device(match(costs.cpu().numpy(), num_gts), boxes.device)

        labels = gt_labels.new_full((num_layers, num_images, num_queries), self.num_classes)
        labels[layer, image, query] = gt_labels[image, gt]
        loss_cls = self.loss_cls(scores.flatten(0, 2), labels.flatten(), reduction_override='none')

        sides = sides[image]
        predicted = boxes[layer, image, query]
        expected = bbox_xyxy_to_cxcywh(gt_boxes[image, gt] / sides)
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
        losses = {
            'loss_cls': loss_cls.reshape(num_layers, -1).sum(1) / (cls_average.clamp(min=1) + eps),
            'loss_bbox': loss_bbox.reshape(num_layers, 4 * num_pos).sum(1) / (box_average.clamp(min=1) + eps),
            'loss_iou': loss_iou.reshape(num_layers, num_pos).sum(1) / (box_average.clamp(min=1) + eps),
        }
        of_layers = {name: loss.unbind() for name, loss in losses.items()}
        result = {name: loss[-1] for name, loss in of_layers.items()}
        for index in range(num_layers - 1):
            result.update({f'd{index}.{name}': loss[index] for name, loss in of_layers.items()})
        return result

    def matching_costs(
        self, scores: Tensor, boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, sides: Tensor,
    ) -> Tensor:
        """The assigner's costs, number for number as mmdet's classes compute them for one layer and image.

        Args:
            scores (Tensor): Logits, ``(layers, images, queries, classes)``.
            boxes (Tensor): (cx, cy, w, h) as shares of the image, ``(layers, images, queries, 4)``.
            gt_boxes (Tensor): (x1, y1, x2, y2) in pixels, ``(images, boxes, 4)``.
            gt_labels (Tensor): ``(images, boxes)``.
            sides (Tensor): (w, h, w, h) in pixels, ``(images, 4)``.

        Returns:
            Tensor: ``(layers, images, queries, boxes)``.
        """
        sides = sides[:, None]
        boxes = bbox_cxcywh_to_xyxy(boxes) * sides
        costs = []
        for cost in self.assigner.match_costs:
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
                index = gt_labels[:, None].expand(*scores.shape[:3], -1)
                value = of_class.gather(-1, index)
            costs.append(value * cost.weight)
        return torch.stack(costs).sum(dim=0)

    def predict_by_feat(
        self,
        layer_cls_scores: Tensor,
        layer_bbox_preds: Tensor,
        batch_img_metas: list[dict],
        rescale: bool = True,
    ) -> InstanceList:
        """The last layer's detections, all images at once.

        Args:
            layer_cls_scores (Tensor): Logits, ``(layers, images, queries, classes)``.
            layer_bbox_preds (Tensor): Boxes (cx, cy, w, h) as shares of the image, ``(layers, images, queries, 4)``.
            batch_img_metas (list[dict]): For each image ``img_shape``; to rescale, ``scale_factor`` (width, height).
            rescale (bool): Whether boxes are in pixels of the original image.

        Returns:
            list[InstanceData]: For each image ``bboxes`` (x1, y1, x2, y2) in pixels, ``scores`` in 0..1, the best
            first, and ``labels``.
        """
        logits, boxes = layer_cls_scores[-1].float(), layer_bbox_preds[-1].float()
        number = self.test_cfg.get('max_per_img', logits.shape[1])
        if self.loss_cls.use_sigmoid:
            scores, index = logits.sigmoid().flatten(1).topk(number)
            labels, index = index % self.num_classes, index // self.num_classes
        else:
            scores, labels = logits.softmax(-1)[..., :-1].max(-1)
            scores, index = scores.topk(number)
            labels = labels.gather(1, index)
        boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))

        sides = _image_sides(batch_img_metas, boxes.device)[:, None]
        boxes = (bbox_cxcywh_to_xyxy(boxes) * sides).clamp(min=0).minimum(sides)
        if rescale:
            factors = np.array([meta['scale_factor'] for meta in batch_img_metas], np.float32)
            boxes = boxes / _to_device(factors, boxes.device).repeat(1, 2)[:, None]
        return [
            InstanceData(bboxes=box, scores=score, labels=label)
            for box, score, label in zip(boxes, scores, labels, strict=True)
        ]


def match(costs: np.ndarray, num_gts: list[int]) -> np.ndarray:
    """Hungarian matching of every layer and image.

    Args:
        costs (np.ndarray): ``(layers, images, queries, most boxes)``.
        num_gts (list[int]): Each image's number of boxes; costs beyond it are not looked at.

    Returns:
        np.ndarray: int64 ``(4, matches)``: layer, image, query and box of each match, the first layer's first. Every
        layer has the same number: for each image that of its queries or of its boxes, whichever is smaller.
    """
    num_layers, num_images, num_queries = costs.shape[:3]
    pairs = [
        assign(costs[layer, image, :, :number])
        for layer in range(num_layers)
        for image, number in enumerate(num_gts)
    ]
    sizes = [min(num_queries, number) for number in num_gts]
    layers = np.repeat(np.arange(num_layers), sum(sizes))
    images = np.tile(np.repeat(np.arange(num_images), sizes), num_layers)
    queries, boxes = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return np.stack([layers, images, queries, boxes]).astype(np.int64, copy=False)


def assign(costs: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """SciPy's Hungarian matching, in which costs that are no finite numbers are the lowest instead of an error.

    What is broken is matched, and so part of the loss, which stops being finite in turn. An error here would be one of
    a single process: the others would wait for its gradients.

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


def generalized_iou(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Generalized IoU of boxes (x1, y1, x2, y2), in -1..1, with the steps of mmdet's ``bbox_overlaps``.

    That one uploads ``eps`` to the device in every call, and waits for it.

    Args:
        a (Tensor): ``(..., 4)``.
        b (Tensor): ``(..., 4)``, broadcast against ``a``.
        eps (float): The smallest area.

    Returns:
        Tensor: ``(...)``.
    """
    overlap = _product((torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0))
    hull = _product((torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])).clamp(min=0)).clamp(min=eps)
    areas = _product(a[..., 2:] - a[..., :2]) + _product(b[..., 2:] - b[..., :2])
    union = (areas - overlap).clamp(min=eps)
    return overlap / union - (hull - union) / hull


def _product(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]  # prod() waits for the device in its backward


def _image_sides(batch_img_metas: list[dict], device: torch.device) -> Tensor:
    """(w, h, w, h) of every image, float32 ``(images, 4)``."""
    sides = np.array([meta['img_shape'][1::-1] * 2 for meta in batch_img_metas], np.float32)
    return _to_device(sides, device)


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == 'cuda':
        tensor = tensor.pin_memory()  # from pageable memory the copy would wait for the device
    return tensor.to(device, non_blocking=True)
