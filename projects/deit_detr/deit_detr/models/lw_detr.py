"""LW-DETR (arXiv 2406.03459): a plain ViT, a light projector and a shallow deformable decoder."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from mmcv.cnn import ConvModule
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models import DetectionTransformer
from mmdet.models.layers import MLP, CSPLayer, DeformableDetrTransformerDecoderLayer, coordinate_to_encoding
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from deit_detr.models.attention import replace_attention
from deit_detr.models.box_ops import apply_deltas, to_device
from deit_detr.models.cast_weights import WeightsCastOnce
from deit_detr.models.compiled import CompiledLayers
from deit_detr.models.host_losses import HostLosses


@MODELS.register_module()
class LWDETRProjector(BaseModule):
    """Project the maps of several ViT layers, all of one stride, to the maps of the decoder.

    The maps are concatenated, resampled to each scale and passed through a ``CSPLayer``.

    Args:
        in_channels (list[int]): Channels of each map.
        out_channels (int): Channels of each output map.
        scales (Sequence[float]): Size of each output map relative to the input maps: 2, 1 or 0.5.
        num_blocks (int): Bottlenecks with a 3x3 convolution in each ``CSPLayer``.
        use_c2f (bool): Whether to use :class:`C2f`, as the published LW-DETR does, instead of ``CSPLayer``.

    Raises:
        ValueError: If a scale is not 2, 1 or 0.5.
    """

    def __init__(
        self, in_channels: list[int], out_channels: int, scales: Sequence[float] = (1,), num_blocks: int = 3,
        use_c2f: bool = False,
    ) -> None:
        super().__init__()
        norms = dict(norm_cfg=dict(type='GN', num_groups=32), act_cfg=dict(type='SiLU'))
        total = sum(in_channels)
        self.stages = nn.ModuleList()
        for scale in scales:
            resample, width = nn.Identity(), total
            if scale == 2:
                resample, width = nn.ConvTranspose2d(total, total // 4, 2, stride=2), total // 4
            elif scale == 0.5:
                resample, width = ConvModule(total, out_channels, 3, stride=2, padding=1, **norms), out_channels
            elif scale != 1:
                raise ValueError(f'LWDETRProjector supports the scales 2, 1 and 0.5, not {scale}')
            block = C2f(width, out_channels, num_blocks) if use_c2f else CSPLayer(
                width, out_channels, num_blocks=num_blocks, **norms)
            self.stages.append(nn.Sequential(resample, block))

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return a map for each scale; maps are ``(batch, channels, rows, columns)``."""
        x = torch.cat(inputs, 1)
        return tuple(stage(x) for stage in self.stages)


class C2f(nn.Module):
    """YOLOv8's block, in which the output of every bottleneck is kept, and a LayerNorm over the channels.

    Args:
        in_channels (int): Channels of the input map.
        out_channels (int): Channels of the output map.
        num_blocks (int): Bottlenecks of two 3x3 convolutions, without shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int) -> None:
        super().__init__()
        width = out_channels // 2

        def conv(*sizes: int) -> ConvModule:
            return ConvModule(*sizes, padding=sizes[2] // 2, norm_cfg=dict(type='BN'), act_cfg=dict(type='SiLU'))

        self.first = conv(in_channels, 2 * width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(width, width, 3), conv(width, width, 3)) for _ in range(num_blocks))
        self.last = conv((2 + num_blocks) * width, out_channels, 1)
        self.norm = nn.LayerNorm(out_channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same size, ``(batch, channels, rows, columns)``."""
        maps = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return self.norm(self.last(torch.cat(maps, 1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class QuerySelection(nn.Module):
    """Select queries in two stages: boxes come from the tokens with the highest scores, contents are learned.

    Each group has separate weights (Group DETR, arXiv 2207.13085).

    Args:
        embed_dims (int): Number of channels.
        num_classes (int): Number of classes.
        num_queries (int): Number of queries in a group.
        num_groups (int): Number of groups.
        learn_deltas (bool): Whether each query has learned deltas on the box that it starts from.
    """

    def __init__(
        self, embed_dims: int, num_classes: int, num_queries: int, num_groups: int, learn_deltas: bool = False,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.content = nn.Parameter(torch.randn(num_groups, num_queries, embed_dims))
        self.deltas = nn.Parameter(torch.zeros(num_groups, num_queries, 4)) if learn_deltas else None
        self.token = GroupLinear(num_groups, embed_dims, embed_dims)
        self.norm = nn.LayerNorm(embed_dims, elementwise_affine=False)  # the following layers have weights
        self.score = GroupLinear(num_groups, embed_dims, num_classes)
        self.hidden = nn.ModuleList(GroupLinear(num_groups, embed_dims, embed_dims) for _ in range(2))
        self.delta = GroupLinear(num_groups, embed_dims, 4)
        nn.init.constant_(self.score.bias, bias_init_with_prob(0.01))
        nn.init.zeros_(self.delta.weight)

    def forward(self, memory: Tensor, anchors: Tensor, padded: Tensor | None, num_groups: int) -> tuple[Tensor, ...]:
        """Select the queries of the first groups.

        Args:
            memory (Tensor): ``(images, tokens, channels)``.
            anchors (Tensor): Normalized box (cx, cy, w, h) at each token, ``(images, tokens, 4)``.
            padded (Tensor, optional): bool, ``(images, tokens)``; True for tokens that must not be selected.
            num_groups (int): Number of groups.

        Returns:
            tuple[Tensor, ...]: Query contents ``(images, groups, queries, channels)`` and the boxes that they start
            from, ``(..., 4)``; boxes and logits ``(..., classes)`` of the selected tokens.
        """
        num_images, num_tokens = memory.shape[:2]
        if torch.is_autocast_enabled(memory.device.type):
            memory = memory.to(torch.get_autocast_dtype(memory.device.type))  # autocast would copy it for each group
        # groups first, images and tokens as one dimension: each layer is one batched product
        tokens = self.norm(self.token(memory.flatten(0, 1).expand(num_groups, -1, -1)))
        scores = self.score(tokens)
        best = scores.detach().amax(-1).view(num_groups, num_images, num_tokens)
        if padded is not None:
            best = best.masked_fill(padded, -torch.inf)
        index = best.topk(min(self.num_queries, num_tokens)).indices
        first = torch.arange(num_images, device=index.device) * num_tokens
        rows = (index + first[:, None]).flatten(1)

        def take(x: Tensor) -> Tensor:
            return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))

        x = take(tokens)
        for layer in self.hidden:
            x = layer(x).relu()
        boxes = apply_deltas(anchors.flatten(0, 1)[rows], self.delta(x).float())
        boxes, scores = (x.unflatten(1, (num_images, -1)).transpose(0, 1) for x in (boxes, take(scores)))
        # a copy: PyTorch's FLOP counter fails on views of a parameter when gradients are off
        content = self.content[:num_groups, :index.shape[-1]].repeat(num_images, 1, 1, 1)
        start = boxes.detach()
        if self.deltas is not None:
            start = apply_deltas(start, self.deltas[:num_groups, :index.shape[-1]].expand_as(start))
        return content, start, boxes, scores


class GroupLinear(nn.Module):
    """A linear layer for each group, ``(groups, rows, channels)``; an input with fewer groups uses the first ones."""

    def __init__(self, num_groups: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_groups, in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(num_groups, 1, out_channels))
        for weight in self.weight:
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.baddbmm(self.bias[:len(x)], x, self.weight[:len(x)])


class GroupDecoderLayer(DeformableDetrTransformerDecoderLayer):
    """mmdet's deformable decoder layer in which queries attend to queries of the same group only."""

    def forward(self, query: Tensor, query_pos: Tensor, **cross_attn) -> Tensor:
        """Return the next states; ``query`` and ``query_pos`` are ``(images, groups, queries, channels)``."""
        shape = query.shape
        query = self.self_attn(query.flatten(0, 1), query_pos=query_pos.flatten(0, 1))
        query = self.norms[0](query).view(shape).flatten(1, 2)
        query = self.norms[1](self.cross_attn(query, query_pos=query_pos.flatten(1, 2), **cross_attn))
        return self.norms[2](self.ffn(query)).view(shape)


class LWDETRDecoder(nn.Module):
    """Decoder that refines the boxes in each layer.

    The position embedding of a query comes from its first box and is computed once, as in LW-DETR.

    Args:
        num_layers (int): Number of layers.
        layer_cfg (dict): As for mmdet's ``DeformableDetrTransformerDecoderLayer``.
        lite_refine (bool): Whether every layer refines the first boxes, as in the published LW-DETR, instead of those
            of the layer before.
        final_norm (bool): Whether the states that the head gets pass another LayerNorm, which all layers share.
    """

    def __init__(
        self, num_layers: int, layer_cfg: dict, lite_refine: bool = False, final_norm: bool = False,
    ) -> None:
        super().__init__()
        self.lite_refine = lite_refine
        self.layers = nn.ModuleList(GroupDecoderLayer(**layer_cfg) for _ in range(num_layers))
        self.embed_dims = self.layers[0].embed_dims
        self.ref_point_head = MLP(2 * self.embed_dims, self.embed_dims, self.embed_dims, 2)
        self.norm = nn.LayerNorm(self.embed_dims) if final_norm else nn.Identity()

    def forward(
        self, query: Tensor, boxes: Tensor, refine: Callable, valid_ratios: Tensor, **cross_attn,
    ) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Args:
            query (Tensor): ``(images, groups, queries, channels)``.
            boxes (Tensor): Normalized (cx, cy, w, h), ``(images, groups, queries, 4)``.
            refine (Callable): Computes the next boxes from a layer's states and boxes.
            valid_ratios (Tensor): Image size divided by padded size, (w, h, w, h), ``(images, 4)``.
            **cross_attn: Further arguments of the deformable attention.

        Returns:
            tuple[Tensor, Tensor]: States and boxes of all layers, ``(layers, images, groups, queries, ...)``.
        """
        all_states, all_boxes = [], []
        pos = self.ref_point_head(coordinate_to_encoding(boxes.flatten(1, 2), self.embed_dims // 2)).view_as(query)
        for layer in self.layers:
            points = (boxes.flatten(1, 2) * valid_ratios[:, None])[:, :, None]
            query = layer(query, pos, reference_points=points, **cross_attn)
            all_states.append(self.norm(query))
            all_boxes.append(refine(all_states[-1], boxes))
            if not self.lite_refine:
                boxes = all_boxes[-1].detach()
        return torch.stack(all_states), torch.stack(all_boxes)


@MODELS.register_module()
class LWDETR(WeightsCastOnce, HostLosses, CompiledLayers, DetectionTransformer):
    """LW-DETR (arXiv 2406.03459), built from mmdet's classes; the backbone is the encoder.

    Args:
        num_groups (int): Groups of ``num_queries`` queries in training (Group DETR, arXiv 2207.13085); inference uses
            the first.
        anchor_size (float): Sides of the anchors of the proposals, normalized to the image.
        learn_deltas (bool): See :class:`QuerySelection`.
        *args: As for ``DetectionTransformer``.
        **kwargs: As for ``DetectionTransformer`` and :class:`CompiledLayers`.
    """

    def __init__(
        self, *args, num_groups: int = 13, anchor_size: float = 0.05, learn_deltas: bool = False, **kwargs,
    ) -> None:
        self.num_groups = num_groups
        self.anchor_size = anchor_size
        self.learn_deltas = learn_deltas
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        self.decoder = LWDETRDecoder(**self.decoder)
        self.query_selection = QuerySelection(
            self.decoder.embed_dims, self.bbox_head.num_classes, self.num_queries, self.num_groups, self.learn_deltas)
        replace_attention(self.decoder)

    def init_weights(self) -> None:
        """Initialize as mmdet's deformable detectors do."""
        super().init_weights()
        for param in self.decoder.parameters():
            if param.dim() > 1:
                nn.init.xavier_uniform_(param)
        for module in self.decoder.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.init_weights()

    def anchor_sides(self, level: int) -> float:
        """Return the sides of the anchors of a level, normalized to the image."""
        return self.anchor_size

    def pre_transformer(self, img_feats: tuple[Tensor, ...], batch_data_samples: SampleList) -> tuple[dict, dict]:
        """Flatten the maps, and compute anchors and padding mask."""
        memory = torch.cat([feat.flatten(2).transpose(1, 2) for feat in img_feats], 1)
        height, width = batch_data_samples[0].batch_input_shape
        shapes = [sample.img_shape for sample in batch_data_samples]
        some_padding = any(tuple(shape) != (height, width) for shape in shapes)
        if some_padding:
            ratios = to_device(np.array([(w / width, h / height) for h, w in shapes], np.float32), memory.device)
        else:
            ratios = torch.ones(memory.shape[0], 2, device=memory.device)
        anchors = torch.cat([
            _anchors((feat.shape[2], feat.shape[3]), self.anchor_sides(level), memory.device)
            for level, feat in enumerate(img_feats)])
        centres = anchors[:, :2] / ratios[:, None]
        anchors = torch.cat([centres, anchors[:, 2:].expand_as(centres)], -1)
        padded = (centres > 1).any(-1) if some_padding else None
        spatial_shapes = [(feat.shape[2], feat.shape[3]) for feat in img_feats]  # read by the host, not the device
        if torch.onnx.is_in_onnx_export():  # as in mmdet: export traces it, while numbers would become constants
            spatial_shapes = torch.stack([torch._shape_as_tensor(feat)[2:] for feat in img_feats])
        return dict(memory=memory, anchors=anchors, padded=padded), dict(
            value=memory, key_padding_mask=padded, valid_ratios=ratios.repeat(1, 2), spatial_shapes=spatial_shapes)

    def forward_encoder(self, **inputs) -> dict:
        """Return the inputs: LW-DETR has no encoder besides the backbone."""
        return inputs

    def pre_decoder(self, memory: Tensor, anchors: Tensor, padded: Tensor | None) -> tuple[dict, dict]:
        """Select the queries."""
        num_groups = self.num_groups if self.training else 1
        query, start, boxes, scores = self.query_selection(memory, anchors, padded, num_groups)
        head_inputs = dict(proposal_scores=scores, proposal_boxes=boxes) if self.training else {}
        return dict(query=query, boxes=start), head_inputs

    def forward_decoder(self, **inputs) -> dict:
        """Run the decoder."""
        hidden_states, boxes = self.decoder(refine=self.bbox_head.refine, **inputs)
        return dict(hidden_states=hidden_states, boxes=boxes)


def _anchors(size: tuple[int, int], side: float, device: torch.device) -> Tensor:
    """Return square anchors (cx, cy, w, h) at the tokens of a map, normalized to the input, ``(tokens, 4)``."""
    rows, columns = size
    y, x = torch.meshgrid(
        (torch.arange(rows, device=device) + 0.5) / rows, (torch.arange(columns, device=device) + 0.5) / columns,
        indexing='ij')
    sides = torch.full_like(x, side)
    return torch.stack([x, y, sides, sides], -1).flatten(0, 1)
