"""LW-DETR's head: groups matched apart, scores that know how good the box is."""

import torch
import torch.nn.functional as F
from mmdet.models.layers import MLP
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmdet.utils import InstanceList, reduce_mean
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from deit_detr.models.fast_detr_head import FastDETRHead, _image_sides, _to_device, generalized_iou, match


@MODELS.register_module()
class IoUAwareBCELoss(nn.Module):
    """Binary cross entropy whose positive target grows with the box's IoU (IA-BCE, LW-DETR, arXiv 2406.03459).

    Of a matched query and its class the target is ``score ** alpha * iou ** (1 - alpha)``, at least 0.01; everything
    else has target 0 and weight ``score ** gamma``.

    Args:
        alpha (float): The score's part in the target, in 0..1.
        gamma (float): How much easy negatives count less.
        loss_weight (float): Factor on the loss.
    """

    use_sigmoid = True

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.gamma, self.loss_weight = alpha, gamma, loss_weight

    def forward(self, logits: Tensor, positives: tuple[Tensor, ...], ious: Tensor) -> Tensor:
        """Compute the loss of each logit.

        Args:
            logits (Tensor): ``(..., classes)``.
            positives (tuple[Tensor, ...]): The index of each match in each dimension of ``logits``, ``(matches,)``.
            ious (Tensor): IoU of each match, in 0..1, ``(matches,)``.

        Returns:
            Tensor: As ``logits``.
        """
        matched = logits[positives]
        with torch.no_grad():
            target = (matched.sigmoid() ** self.alpha * ious ** (1 - self.alpha)).clamp(min=0.01)
        negative = logits.sigmoid() ** self.gamma * F.softplus(logits)
        return self.loss_weight * negative.index_put(positives, F.softplus(matched) - target * matched)


@MODELS.register_module()
class LWDETRHead(FastDETRHead):
    """Classes and boxes of all decoder layers from shared branches; every group of queries is matched alone.

    Boxes are refined relative to the box before: the centre moves by shares of its sides, the sides by an exponent
    (LW-DETR's ``bbox_reparam``).

    Args:
        *args: As for ``FastDETRHead``; ``loss_cls`` is an ``IoUAwareBCELoss``.
        **kwargs: As for ``FastDETRHead``.
    """

    def _init_layers(self) -> None:
        self.fc_cls = nn.Linear(self.embed_dims, self.cls_out_channels)
        self.reg_branch = MLP(self.embed_dims, self.embed_dims, 4, 3)

    def init_weights(self) -> None:
        """Boxes start where the proposals are, scores at 0.01."""
        super().init_weights()
        nn.init.constant_(self.fc_cls.bias, bias_init_with_prob(0.01))
        nn.init.zeros_(self.reg_branch.layers[-1].weight)
        nn.init.zeros_(self.reg_branch.layers[-1].bias)

    def forward(self, hidden_states: Tensor, boxes: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        """Classify.

        Args:
            hidden_states (Tensor): ``(layers, images, groups, queries, channels)``.
            boxes (Tensor): ``(layers, images, groups, queries, 4)``, as :meth:`refine` gives them.
            **kwargs: The proposals, which are only trained.

        Returns:
            tuple[Tensor, Tensor]: Logits ``(layers, images, groups, queries, classes)``, and the boxes.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self.fc_cls(hidden_states.to(self.fc_cls.weight.dtype)), boxes

    def refine(self, hidden_states: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (cx, cy, w, h) after one more layer, ``(..., 4)``, from its states ``(..., channels)``."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return apply_deltas(boxes, self.reg_branch(hidden_states.to(self.fc_cls.weight.dtype)))

    def loss(
        self, hidden_states: Tensor, boxes: Tensor, proposal_scores: Tensor, proposal_boxes: Tensor,
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Losses of the proposals and of all decoder layers.

        Args:
            hidden_states (Tensor): ``(layers, images, groups, queries, channels)``.
            boxes (Tensor): ``(layers, images, groups, queries, 4)``.
            proposal_scores (Tensor): Logits of the selected proposals, ``(images, groups, queries, classes)``.
            proposal_boxes (Tensor): ``(images, groups, queries, 4)``.
            batch_data_samples (list[DetDataSample]): With ``gt_instances`` and ``img_shape``.

        Returns:
            dict[str, Tensor]: As of ``FastDETRHead``, and the proposals' with ``enc_`` before the name.
        """
        scores, boxes = self(hidden_states, boxes)
        losses = self.loss_by_feat(
            torch.cat([proposal_scores[None].float(), scores]), torch.cat([proposal_boxes[None].float(), boxes]),
            [sample.gt_instances for sample in batch_data_samples], [sample.metainfo for sample in batch_data_samples])
        return {name.replace('d0.', 'enc_') if name.startswith('d0.') else name: loss for name, loss in losses.items()}

    def predict(
        self, hidden_states: Tensor, boxes: Tensor, batch_data_samples: SampleList, rescale: bool = True,
    ) -> InstanceList:
        """Detections of the last layer and first group; see ``FastDETRHead.predict_by_feat``."""
        scores, boxes = self(hidden_states[-1:, :, 0], boxes[-1:, :, 0])
        return self.predict_by_feat(
            scores, boxes, [sample.metainfo for sample in batch_data_samples], rescale=rescale)

    def _losses(
        self, scores: Tensor, boxes: Tensor, batch_gt_instances: InstanceList, batch_img_metas: list[dict],
    ) -> dict[str, Tensor]:
        num_layers, _, num_groups, num_queries = boxes.shape[:4]
        # a group is matched as a layer is, alone: (layers x groups, images, queries, ...)
        scores, boxes = (x.transpose(1, 2).flatten(0, 1) for x in (scores, boxes))
        sides = _image_sides(batch_img_metas, boxes.device)
        gt_boxes = pad_sequence([gt.bboxes for gt in batch_gt_instances], batch_first=True).float()
        gt_labels = pad_sequence([gt.labels for gt in batch_gt_instances], batch_first=True)
        num_gts = [len(gt) for gt in batch_gt_instances]
        num_pos = sum(min(num_queries, number) for number in num_gts)  # in every layer and group

        costs = self.matching_costs(scores.detach(), boxes.detach(), gt_boxes, gt_labels, sides)
        layer, image, query, gt = _to_device(match(costs.cpu().numpy(), num_gts), boxes.device)

        sides = sides[image]
        predicted, expected = boxes[layer, image, query], gt_boxes[image, gt]
        corners = bbox_cxcywh_to_xyxy(predicted) * sides
        loss_bbox = (predicted - bbox_xyxy_to_cxcywh(expected / sides)).abs()
        loss_iou = 1 - generalized_iou(corners, expected, self.loss_iou.eps)
        ious = intersection_over_union(corners.detach(), expected)
        loss_cls = self.loss_cls(scores, (layer, image, query, gt_labels[image, gt]), ious)

        average = reduce_mean(scores.new_full((), num_pos)).clamp(min=1) * num_groups
        losses = {
            'loss_cls': loss_cls.view(num_layers, -1).sum(1) / average,
            'loss_bbox': loss_bbox.view(num_layers, -1).sum(1) / average * self.loss_bbox.loss_weight,
            'loss_iou': loss_iou.view(num_layers, -1).sum(1) / average * self.loss_iou.loss_weight,
        }
        result = {name: loss[-1] for name, loss in losses.items()}
        for index in range(num_layers - 1):
            result.update({f'd{index}.{name}': loss[index] for name, loss in losses.items()})
        return result


def apply_deltas(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (cx, cy, w, h) moved by shares of their sides and scaled by exponents, ``(..., 4)`` each."""
    centres, sides = boxes.split(2, -1)
    shifts, exponents = deltas.split(2, -1)
    return torch.cat([centres + shifts * sides, sides * exponents.exp()], -1)


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """IoU of pairs of boxes (x1, y1, x2, y2), ``(..., 4)`` each, in 0..1."""
    overlap = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return overlap / (areas - overlap).clamp(min=1e-6)
