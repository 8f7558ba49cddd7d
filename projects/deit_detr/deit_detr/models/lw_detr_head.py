"""LW-DETR's head: each group of queries is matched alone, and scores learn the IoU of their box."""

import torch
import torch.nn.functional as F
from mmdet.models.layers import MLP
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import InstanceList
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn

from deit_detr.models.box_ops import apply_deltas
from deit_detr.models.fast_detr_head import FastDETRHead, name_layers


@MODELS.register_module()
class IoUAwareBCELoss(nn.Module):
    """Binary cross entropy whose positive target grows with the box's IoU (IA-BCE, LW-DETR, arXiv 2406.03459).

    The target is ``score ** alpha * iou ** (1 - alpha)``, at least 0.01, for a matched query and its class. All other
    logits have target 0 and weight ``score ** gamma``.

    Args:
        alpha (float): Exponent of the score in the target, in 0..1.
        gamma (float): Exponent of the focus on hard negatives.
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
            positives (tuple[Tensor, ...]): Index of each match in each dimension of ``logits``, ``(matches,)``.
            ious (Tensor): IoU of each match, in 0..1, ``(matches,)``.

        Returns:
            Tensor: In the shape of ``logits``.
        """
        matched = logits[positives]
        with torch.no_grad():
            target = (matched.sigmoid() ** self.alpha * ious ** (1 - self.alpha)).clamp(min=0.01)
        negative = logits.sigmoid() ** self.gamma * F.softplus(logits)
        return self.loss_weight * negative.index_put(positives, F.softplus(matched) - target * matched)


@MODELS.register_module()
class LWDETRHead(FastDETRHead):
    """LW-DETR's head: all decoder layers share their branches, and each group of queries is matched alone.

    Each layer refines the boxes of the one before, see :func:`~deit_detr.models.box_ops.apply_deltas`.

    Args:
        *args: As for ``FastDETRHead``; ``loss_cls`` is an ``IoUAwareBCELoss``.
        **kwargs: As for ``FastDETRHead``.
    """

    cls_losses = (IoUAwareBCELoss,)

    def _init_layers(self) -> None:
        self.sync_cls_avg_factor = True
        self.fc_cls = nn.Linear(self.embed_dims, self.cls_out_channels)
        self.reg_branch = MLP(self.embed_dims, self.embed_dims, 4, 3)

    def init_weights(self) -> None:
        """Initialize so that boxes start at the proposals and scores at 0.01."""
        super().init_weights()
        nn.init.constant_(self.fc_cls.bias, bias_init_with_prob(0.01))
        nn.init.zeros_(self.reg_branch.layers[-1].weight)
        nn.init.zeros_(self.reg_branch.layers[-1].bias)

    def forward(self, hidden_states: Tensor, boxes: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        """Compute the logits.

        Args:
            hidden_states (Tensor): ``(layers, images, groups, queries, channels)``.
            boxes (Tensor): ``(layers, images, groups, queries, 4)``, as :meth:`refine` returns them.
            **kwargs: The proposals, used by :meth:`loss` only.

        Returns:
            tuple[Tensor, Tensor]: Logits ``(layers, images, groups, queries, classes)``, and the boxes.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self.fc_cls(hidden_states.to(self.fc_cls.weight.dtype)), boxes

    def refine(self, hidden_states: Tensor, boxes: Tensor) -> Tensor:
        """Refine boxes (cx, cy, w, h), ``(..., 4)``, by the hidden states of one layer, ``(..., channels)``."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return apply_deltas(boxes, self.reg_branch(hidden_states.to(self.fc_cls.weight.dtype)))

    def loss(
        self, hidden_states: Tensor, boxes: Tensor, proposal_scores: Tensor, proposal_boxes: Tensor,
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Compute the losses of the proposals and of all decoder layers.

        Args:
            hidden_states (Tensor): ``(layers, images, groups, queries, channels)``.
            boxes (Tensor): ``(layers, images, groups, queries, 4)``.
            proposal_scores (Tensor): Logits of the selected proposals, ``(images, groups, queries, classes)``.
            proposal_boxes (Tensor): ``(images, groups, queries, 4)``.
            batch_data_samples (list[DetDataSample]): With ``gt_instances`` and ``img_shape``.

        Returns:
            dict[str, Tensor]: As of ``FastDETRHead``; the names of the proposals' losses start with ``enc_``.
        """
        scores, boxes = self(hidden_states, boxes)
        losses = self.loss_by_feat(
            torch.cat([proposal_scores[None].float(), scores]), torch.cat([proposal_boxes[None].float(), boxes]),
            [sample.gt_instances for sample in batch_data_samples], [sample.metainfo for sample in batch_data_samples])
        return {name.replace('d0.', 'enc_'): loss for name, loss in losses.items()}

    def loss_by_feat(
        self, all_layers_cls_scores: Tensor, all_layers_bbox_preds: Tensor, batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
    ) -> dict[str, Tensor]:
        """Compute the losses as ``FastDETRHead`` does, the mean over groups ``(layers, images, groups, ...)``."""
        # groups are matched alone, as layers are: (layers x groups, images, queries, ...)
        scores, boxes = (x.transpose(1, 2).flatten(0, 1) for x in (all_layers_cls_scores, all_layers_bbox_preds))
        losses, _ = self.match_and_loss(scores, boxes, batch_gt_instances, batch_img_metas)
        num_layers = len(all_layers_cls_scores)
        return name_layers({name: loss.view(num_layers, -1).mean(1) for name, loss in losses.items()})

    def classification_loss(self, scores: Tensor, index: tuple[Tensor, ...], labels: Tensor, iou: Tensor) -> Tensor:
        """Return the loss of each logit, see ``FastDETRHead``."""
        return self.loss_cls(scores, (*index, labels), iou)

    def predict(
        self, hidden_states: Tensor, boxes: Tensor, batch_data_samples: SampleList, rescale: bool = True,
    ) -> InstanceList:
        """Return the detections of the last layer and first group, see ``FastDETRHead.predict_by_feat``."""
        scores, boxes = self(hidden_states[-1:, :, 0], boxes[-1:, :, 0])
        return self.predict_by_feat(
            scores, boxes, [sample.metainfo for sample in batch_data_samples], rescale=rescale)
