"""The heads of Conditional DETR, DAB-DETR, Deformable DETR and DINO for all decoder layers and images at once.

Each is mmdet's head with the losses and predictions of :class:`~deit_detr.models.fast_detr_head.FastDETRHead`:
parameters, state-dict keys, names of losses and results do not change.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.models import ConditionalDETRHead, DABDETRHead, DeformableDETRHead, DINOHead
from mmdet.models.layers import inverse_sigmoid
from mmdet.registry import MODELS
from mmdet.utils import InstanceList
from mmengine.structures import InstanceData
from torch import Tensor

from deit_detr.models.denoising import denoising_matches
from deit_detr.models.fast_detr_head import FastDETRHead, name_layers


@MODELS.register_module()
class FastConditionalDETRHead(FastDETRHead, ConditionalDETRHead):
    """mmdet's ``ConditionalDETRHead`` (arXiv 2108.06152) without loops over layers and images."""

    def forward(self, hidden_states: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and boxes.

        Args:
            hidden_states (Tensor): ``(layers, images, queries, channels)``.
            references (Tensor): Normalized points (x, y), ``(images, queries, 2)``.

        Returns:
            tuple[Tensor, Tensor]: Logits ``(layers, images, queries, classes)`` and normalized boxes (cx, cy, w, h)
            ``(layers, images, queries, 4)``.
        """
        dtype = self.fc_cls.weight.dtype
        with torch.autocast(hidden_states.device.type, enabled=False):
            hidden_states = hidden_states.to(dtype)
            deltas = self.fc_reg(self.activate(self.reg_ffn(hidden_states)))
            points = F.pad(inverse_sigmoid(references.to(dtype)), (0, 2))
            return self.fc_cls(hidden_states), (deltas + points).sigmoid()


@MODELS.register_module()
class FastDABDETRHead(FastDETRHead, DABDETRHead):
    """mmdet's ``DABDETRHead`` (arXiv 2201.12329) without loops over layers and images."""


@MODELS.register_module()
class FastDeformableDETRHead(FastDETRHead, DeformableDETRHead):
    """mmdet's ``DeformableDETRHead`` (arXiv 2010.04159) without loops over images, in losses also over layers."""

    def forward(self, hidden_states: Tensor, references: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute logits and boxes.

        Args:
            hidden_states (Tensor): ``(layers, images, queries, channels)``.
            references (Sequence[Tensor]): For each layer normalized points (x, y) or boxes (cx, cy, w, h), ``(images,
                queries, 2 or 4)``; further ones are not used.

        Returns:
            tuple[Tensor, Tensor]: Logits ``(layers, images, queries, classes)`` and normalized boxes (cx, cy, w, h)
            ``(layers, images, queries, 4)``.
        """
        dtype = self.cls_branches[0].weight.dtype
        with torch.autocast(hidden_states.device.type, enabled=False):
            hidden_states = hidden_states.to(dtype)
            scores = torch.stack([branch(x) for branch, x in zip(self.cls_branches, hidden_states, strict=False)])
            deltas = torch.stack([branch(x) for branch, x in zip(self.reg_branches, hidden_states, strict=False)])
            # sides of points: the inverse sigmoid of 0.5 is 0
            references = [x if x.shape[-1] == 4 else F.pad(x, (0, 2), value=0.5) for x in references[:len(scores)]]
            return scores, (deltas + inverse_sigmoid(torch.stack([x.to(dtype) for x in references]))).sigmoid()

    def loss_by_feat(
        self, all_layers_cls_scores: Tensor, all_layers_bbox_preds: Tensor, enc_cls_scores: Tensor | None,
        enc_bbox_preds: Tensor | None, batch_gt_instances: InstanceList, batch_img_metas: list[dict],
        batch_gt_instances_ignore: None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of all decoder layers and of the proposals, for which all classes are class 0.

        Args:
            all_layers_cls_scores (Tensor): As for ``FastDETRHead``, like the other arguments.
            all_layers_bbox_preds (Tensor): As for ``FastDETRHead``.
            enc_cls_scores (Tensor, optional): Logits of all tokens, ``(images, tokens, classes)``.
            enc_bbox_preds (Tensor, optional): Their boxes, ``(images, tokens, 4)``.
            batch_gt_instances (list[InstanceData]): As for ``FastDETRHead``.
            batch_img_metas (list[dict]): As for ``FastDETRHead``.
            batch_gt_instances_ignore (None): Not supported.

        Returns:
            dict[str, Tensor]: As of ``FastDETRHead``; the names of the proposals' losses start with ``enc_``.
        """
        losses = super().loss_by_feat(
            all_layers_cls_scores, all_layers_bbox_preds, batch_gt_instances, batch_img_metas,
            batch_gt_instances_ignore)
        if enc_cls_scores is not None:
            zeros = batch_gt_instances[0].labels.new_zeros(max(len(gt) for gt in batch_gt_instances))
            instances = [InstanceData(bboxes=gt.bboxes, labels=zeros[:len(gt)]) for gt in batch_gt_instances]
            of_tokens, _ = self.match_and_loss(enc_cls_scores[None], enc_bbox_preds[None], instances, batch_img_metas)
            losses.update({f'enc_{name}': loss[0] for name, loss in of_tokens.items()})
        return losses


@MODELS.register_module()
class FastDINOHead(FastDeformableDETRHead, DINOHead):
    """mmdet's ``DINOHead`` (arXiv 2203.03605) without loops over images, in losses also over layers and groups."""

    def loss_by_feat(
        self, all_layers_cls_scores: Tensor, all_layers_bbox_preds: Tensor, enc_cls_scores: Tensor,
        enc_bbox_preds: Tensor, batch_gt_instances: InstanceList, batch_img_metas: list[dict], dn_meta: dict[str, int],
        batch_gt_instances_ignore: None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of all decoder layers, of the proposals and of the denoising queries.

        Args:
            all_layers_cls_scores (Tensor): Logits, ``(layers, images, denoising and other queries, classes)``.
            all_layers_bbox_preds (Tensor): Normalized boxes (cx, cy, w, h), in the same order, ``(..., 4)``.
            enc_cls_scores (Tensor): Logits of the selected tokens, ``(images, queries, classes)``.
            enc_bbox_preds (Tensor): Their boxes, ``(images, queries, 4)``.
            batch_gt_instances (list[InstanceData]): As for ``FastDETRHead``.
            batch_img_metas (list[dict]): As for ``FastDETRHead``.
            dn_meta (dict[str, int]): ``num_denoising_queries`` and ``num_denoising_groups``.
            batch_gt_instances_ignore (None): Not supported.

        Returns:
            dict[str, Tensor]: As of ``FastDETRHead``; the names of the proposals' losses start with ``enc_``, those of
            the denoising queries with ``dn_``, after the layer's.
        """
        assert batch_gt_instances_ignore is None, 'DINO has no ground truth to ignore'
        number = dn_meta['num_denoising_queries']
        # as many proposals as queries: one more layer to match
        scores = torch.cat([enc_cls_scores[None].float(), all_layers_cls_scores[:, :, number:].float()])
        boxes = torch.cat([enc_bbox_preds[None].float(), all_layers_bbox_preds[:, :, number:].float()])
        losses, matches = self.match_and_loss(scores, boxes, batch_gt_instances, batch_img_metas)
        result = name_layers({name: loss[1:] for name, loss in losses.items()})
        result.update({f'enc_{name}': loss[0] for name, loss in losses.items()})

        num_gts = [len(gt) for gt in batch_gt_instances]
        matches = denoising_matches(matches, num_gts, len(all_layers_cls_scores), dn_meta)
        with torch.autocast(boxes.device.type, enabled=False):
            losses = self.layer_losses(
                all_layers_cls_scores[:, :, :number].float(), all_layers_bbox_preds[:, :, :number].float(), matches,
                num_negatives=matches.num_per_layer)
        return result | name_layers(losses, prefix='dn_')
