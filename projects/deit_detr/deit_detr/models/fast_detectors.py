"""Conditional DETR, DAB-DETR, Deformable DETR and DINO with this project's attention in place of mmcv's.

Parameters, state-dict keys and results are those of mmdet's classes: checkpoints load strictly in both directions. With
the heads of :mod:`~deit_detr.models.fast_heads`, a training step hardly ever waits for the device.
"""

import numpy as np
import torch
from mmdet.models import DABDETR, DINO, ConditionalDETR, DeformableDETR
from mmdet.models.layers import (
    DABDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
    DinoTransformerDecoder,
    inverse_sigmoid,
)
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor, nn

from deit_detr.models.attention import replace_attention
from deit_detr.models.box_ops import to_device
from deit_detr.models.cast_weights import WeightsCastOnce
from deit_detr.models.compiled import CompiledLayers
from deit_detr.models.denoising import BatchedCdnQueryGenerator
from deit_detr.models.fast_detr import FastDETR
from deit_detr.models.host_losses import HostLosses
from deit_detr.models.tokens import (
    encode_boxes,
    inside_limits,
    map_sizes,
    odd_numbers,
    per_token,
    sine_encoding,
    sine_periods,
    token_centres,
    valid_tokens,
)


class HeadInFloat32:
    """Mixin for a detector that keeps head, matching costs and losses in float32 under autocast, also mmdet's.

    mmdet's heads refine boxes in place in the type of their output: bfloat16 would round them by up to 1.6 of 800
    pixels. Those of :mod:`~deit_detr.models.fast_heads` need no help.
    """

    def forward_transformer(self, *args, **kwargs) -> dict:
        """Run the transformer as mmdet does, and pass float32 to the head."""
        return {name: _in_float32(value) for name, value in super().forward_transformer(*args, **kwargs).items()}

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Compute the losses as mmdet does."""
        head_inputs = self.forward_transformer(self.extract_feat(batch_inputs), batch_data_samples)
        with torch.autocast(batch_inputs.device.type, enabled=False):
            return self.bbox_head.loss(**head_inputs, batch_data_samples=batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Predict as mmdet does."""
        head_inputs = self.forward_transformer(self.extract_feat(batch_inputs), batch_data_samples)
        with torch.autocast(batch_inputs.device.type, enabled=False):
            results = self.bbox_head.predict(**head_inputs, rescale=rescale, batch_data_samples=batch_data_samples)
        return self.add_pred_to_datasample(batch_data_samples, results)


def _in_float32(value):
    if isinstance(value, (list, tuple)):
        return [_in_float32(item) for item in value]
    return value.float() if isinstance(value, Tensor) else value


@MODELS.register_module()
class FastConditionalDETR(FastDETR, HeadInFloat32, ConditionalDETR):
    """mmdet's ``ConditionalDETR`` (arXiv 2108.06152) with fused attention in the encoder."""


@MODELS.register_module()
class FastDABDETR(FastDETR, HeadInFloat32, DABDETR):
    """mmdet's ``DABDETR`` (arXiv 2201.12329) with fused attention in the encoder."""

    def _init_layers(self) -> None:
        super()._init_layers()
        self.decoder.__class__ = FewOperatorsDABDecoder


class FewOperatorsDABDecoder(DABDetrTransformerDecoder):
    """mmdet's ``DABDetrTransformerDecoder`` with a third of the operators between its layers."""

    def forward(
        self, query: Tensor, key: Tensor, query_pos: Tensor, reg_branches: nn.Module, **attention,
    ) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Args:
            query (Tensor): ``(images, queries, channels)``.
            key (Tensor): ``(images, tokens, channels)``.
            query_pos (Tensor): Boxes (cx, cy, w, h) or points (x, y) before the sigmoid, ``(images, queries, 4 or 2)``.
            reg_branches (nn.Module): The refinement of boxes, the same for all layers.
            **attention: Further arguments of the layers.

        Returns:
            tuple[Tensor, Tensor]: States of all layers ``(layers, images, queries, channels)``, and the boxes before
            each ``(layers, images, queries, 4 or 2)``.
        """
        boxes = query_pos.sigmoid()
        states, references = [], [boxes]
        periods = sine_periods(self.embed_dims // 2, 10000, query.device)
        for index, layer in enumerate(self.layers):
            if index:
                references.append((reg_branches(query)[..., :self.query_dim] + inverse_sigmoid(boxes)).sigmoid())
                boxes = references[-1].detach()
            encoding = encode_boxes(boxes, periods)
            of_centre = encoding[..., :self.embed_dims]
            if self.query_scale_type == 'fix_elewise':
                of_centre = of_centre * self.query_scale.weight[index]
            elif index:
                of_centre = of_centre * self.query_scale(query)
            if self.with_modulated_hw_attn:
                factors = (self.ref_anchor_head(query).sigmoid() / boxes[..., 2:]).flip(-1)  # y first, as encoded
                of_centre = (of_centre.unflatten(-1, (2, -1)) * factors[..., None]).flatten(-2)
            query = layer(
                query, key, query_pos=self.ref_point_head(encoding), ref_sine_embed=of_centre, is_first=index == 0,
                **attention)
            states.append(query)
        return self.post_norm(torch.stack(states)), torch.stack(references)


@MODELS.register_module()
class FastDeformableDETR(WeightsCastOnce, HostLosses, CompiledLayers, HeadInFloat32, DeformableDETR):
    """mmdet's ``DeformableDETR`` (arXiv 2010.04159) on every device, with or without compiled mmcv operators.

    The sizes of the maps stay on the host, as tuples, where mmdet's class reads them from the device in each layer.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        replace_attention(self)
        self.encoder.__class__ = HostShapesEncoder

    def pre_transformer(self, mlvl_feats: tuple[Tensor, ...], batch_data_samples: SampleList) -> tuple[dict, dict]:
        """Flatten the maps, and compute positional encoding and padding mask as mmdet does.

        Args:
            mlvl_feats (tuple[Tensor, ...]): For each level ``(images, channels, rows, columns)``.
            batch_data_samples (list[DetDataSample]): With ``img_shape`` and ``batch_input_shape``.

        Returns:
            tuple[dict, dict]: Arguments of encoder and decoder. ``spatial_shapes`` is a list of (rows, columns), the
            padding mask is None if no token is padding, and the encoding is alike for all images then.
        """
        if torch.onnx.is_in_onnx_export():  # which has to trace the sizes
            return super().pre_transformer(mlvl_feats, batch_data_samples)
        feat = torch.cat([x.flatten(2).transpose(1, 2) for x in mlvl_feats], 1)
        shapes = [tuple(x.shape[2:]) for x in mlvl_feats]
        sizes = map_sizes(shapes)
        valid = valid_tokens(batch_data_samples, shapes)
        centres = token_centres(shapes)
        mask = None
        if (valid < sizes).any():
            lengths = [rows * columns for rows, columns in shapes]
            mask = to_device((centres > np.repeat(valid, lengths, axis=1)).any(-1), feat.device)
        else:
            valid = valid[:1]

        encoding = self.positional_encoding
        points = to_device(centres, feat.device)[None] + (0.5 + encoding.offset * encoding.normalize)
        if encoding.normalize:
            points = points / (per_token(to_device(valid, feat.device), shapes) + encoding.eps) * encoding.scale
        pos = sine_encoding(points.flip(-1), sine_periods(encoding.num_feats, encoding.temperature, feat.device))
        pos = pos + per_token(self.level_embed[None], shapes)

        shared = dict(
            spatial_shapes=shapes, level_start_index=None,
            valid_ratios=to_device(valid / sizes, feat.device).expand(len(feat), -1, -1))
        return dict(feat=feat, feat_mask=mask, feat_pos=pos, **shared), dict(memory_mask=mask, **shared)

    def gen_encoder_output_proposals(
        self, memory: Tensor, memory_mask: Tensor | None, spatial_shapes: list[tuple[int, int]] | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return what the proposals of the first stage are computed from, as mmdet does.

        Args:
            memory (Tensor): ``(images, tokens, channels)``.
            memory_mask (Tensor, optional): bool, ``(images, tokens)``; True for padding.
            spatial_shapes (list[tuple[int, int]]): (rows, columns) of each level; a tensor in ONNX export.

        Returns:
            tuple[Tensor, Tensor]: Projected tokens ``(images, tokens, channels)``, and their anchors (cx, cy, w, h)
            before the sigmoid, ``(images or 1, tokens, 4)``. They are zero and infinite for padding and at the border.
        """
        if memory_mask is None:
            valid = spatial_shapes if isinstance(spatial_shapes, Tensor) else to_device(
                np.array(spatial_shapes), memory.device)
            valid = valid.flip(-1)[None]
        else:
            maps = (~memory_mask).split([rows * columns for rows, columns in spatial_shapes], 1)
            maps = [x.unflatten(1, shape) for x, shape in zip(maps, spatial_shapes, strict=True)]
            valid = torch.stack([torch.stack([x[:, 0].sum(1), x[:, :, 0].sum(1)], -1) for x in maps], 1)
        valid, odd = per_token(valid, spatial_shapes), odd_numbers(spatial_shapes, memory.device)
        sides = 0.05 * 2.0 ** torch.arange(len(spatial_shapes), dtype=torch.float32, device=memory.device)
        sides = per_token(sides.view(1, -1, 1).expand(len(valid), -1, 2), spatial_shapes)
        anchors = torch.cat([0.5 * odd / valid, sides], -1)
        hidden = ~(inside_limits(odd, valid) & (sides < 0.99).all(-1))[..., None]
        if memory_mask is not None:
            hidden = hidden | memory_mask[..., None]
        anchors = (anchors / (1 - anchors)).log().masked_fill(hidden, torch.inf)
        return self.memory_trans_norm(self.memory_trans_fc(memory.masked_fill(hidden, 0))), anchors


class HostShapesEncoder(DeformableDetrTransformerEncoder):
    """mmdet's ``DeformableDetrTransformerEncoder`` for sizes of maps on the host."""

    @staticmethod
    def get_encoder_reference_points(
        spatial_shapes: list[tuple[int, int]] | Tensor, valid_ratios: Tensor, device: torch.device) -> Tensor:
        """Return the centre of each token in the maps of all levels.

        Args:
            spatial_shapes (list[tuple[int, int]]): (rows, columns) of each level; a tensor in ONNX export.
            valid_ratios (Tensor): Part of each map that is no padding, (x, y), ``(images, levels, 2)``.
            device (torch.device): Device of the result.

        Returns:
            Tensor: (x, y) as fractions of each map, ``(images, tokens, levels, 2)``.
        """
        if isinstance(spatial_shapes, Tensor):
            return DeformableDetrTransformerEncoder.get_encoder_reference_points(spatial_shapes, valid_ratios, device)
        # rounded as in mmdet: many points are on centres of tokens, where the gradients of sampling jump
        valid = valid_ratios * to_device(map_sizes(spatial_shapes), device)
        centres = to_device(token_centres(spatial_shapes), device) / per_token(valid, spatial_shapes)
        return centres[:, :, None] * valid_ratios[:, None]


@MODELS.register_module()
class FastDINO(FastDeformableDETR, DINO):
    """mmdet's ``DINO`` (arXiv 2203.03605) on every device, with or without compiled mmcv operators."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.dn_query_generator.__class__ = BatchedCdnQueryGenerator

    def _init_layers(self) -> None:
        super()._init_layers()
        self.decoder.__class__ = FewOperatorsDINODecoder


class FewOperatorsDINODecoder(DinoTransformerDecoder):
    """mmdet's ``DinoTransformerDecoder`` with a third of the operators between its layers."""

    def forward(
        self, query: Tensor, reference_points: Tensor, valid_ratios: Tensor, reg_branches: nn.ModuleList, **attention,
    ) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Args:
            query (Tensor): ``(images, queries, channels)``.
            reference_points (Tensor): Normalized boxes (cx, cy, w, h), ``(images, queries, 4)``.
            valid_ratios (Tensor): Part of each map that is no padding, (x, y), ``(images, levels, 2)``.
            reg_branches (nn.ModuleList): For each layer, the refinement of boxes.
            **attention: Further arguments of the layers.

        Returns:
            tuple[Tensor, Tensor]: States of all layers ``(layers, images, queries, channels)``, and the boxes before
            and after each ``(layers + 1, images, queries, 4)``.
        """
        states, references = [], [reference_points]
        periods = sine_periods(128, 10000, query.device)
        valid_ratios = valid_ratios.repeat(1, 1, 2)[:, None]
        for layer, branch in zip(self.layers, reg_branches, strict=False):  # the last branch is for the proposals
            points = reference_points[:, :, None] * valid_ratios
            query_pos = self.ref_point_head(encode_boxes(points[:, :, 0], periods))
            query = layer(query, query_pos=query_pos, reference_points=points, **attention)
            states.append(query)
            references.append((branch(query) + inverse_sigmoid(reference_points, eps=1e-3)).sigmoid())
            reference_points = references[-1].detach()
        return self.norm(torch.stack(states)), torch.stack(references)
