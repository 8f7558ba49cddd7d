"""EC-DETR: the detector of EdgeCrafter's ECDet (TMLR 2026) on a plain ViT, in mmdet's classes."""

import math
import warnings

import numpy as np
import torch
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from deit_detr.models.attention import replace_attention
from deit_detr.models.box_ops import to_device
from deit_detr.models.deformable_attention import PortableDeformableAttention
from deit_detr.models.denoising import BatchedCdnQueryGenerator
from deit_detr.models.ec_detr_head import ECDETRHead, mlp
from deit_detr.models.lw_detr import LWDETR
from deit_detr.models.tokens import inside_limits, odd_numbers, per_token


class SharedValueAttention(PortableDeformableAttention):
    """Deformable attention without projections of values and output, with a number of points for each level.

    Several points of a level are as many levels with fewer points: with ``num_points=(3, 6, 3)`` the module attends to
    the levels 0, 1, 1 and 2, three points each, see :attr:`levels`.

    Args:
        embed_dims (int): Number of channels.
        num_heads (int): Number of heads.
        num_points (tuple[int, ...]): Points of each level.
    """

    def __init__(self, embed_dims: int, num_heads: int, num_points: tuple[int, ...]) -> None:
        points = math.gcd(*num_points)
        #: The level behind each group of points.
        self.levels = [level for level, number in enumerate(num_points) for _ in range(number // points)]
        with warnings.catch_warnings():  # about widths of heads that mmcv's compiled operator likes less
            warnings.simplefilter('ignore')
            super().__init__(MultiScaleDeformableAttention(
                embed_dims, num_heads, len(self.levels), points, dropout=0.0, batch_first=True))
        self.value_proj, self.output_proj = nn.Identity(), nn.Identity()
        points = [[[float(num_points[level])]] for level in self.levels]
        del self.points_of_level  # one number for all levels
        self.register_buffer('points_of_level', torch.tensor(points), persistent=False)
        self.init_weights()

    def forward(
        self, query: Tensor, query_pos: Tensor, reference_points: Tensor, value: Tensor,
        spatial_shapes: Tensor | list[tuple[int, int]],
    ) -> Tensor:
        """Return what the queries sample, without ``identity``; else as ``PortableDeformableAttention`` does."""
        return self.attend(query + query_pos, reference_points, value, spatial_shapes)

    def init_weights(self) -> None:
        """Let each head look in a direction, each point of a level one step further, with equal weights."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        counts = [self.levels[:index].count(level) for index, level in enumerate(self.levels)]
        steps = torch.tensor(counts)[:, None] * self.num_points + torch.arange(1, self.num_points + 1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((directions[:, None, None] * steps[..., None]).flatten())
        for param in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(param)


class Gate(nn.Module):
    """Mix the states before and after cross-attention, each channel with a weight of its own (D-FINE)."""

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * embed_dims, 2 * embed_dims)
        self.norm = nn.LayerNorm(embed_dims)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return ``(..., channels)``, the shape of both inputs."""
        first, second = self.gate(torch.cat([before, after], -1)).sigmoid().chunk(2, -1)
        return self.norm(first * before + second * after)


class ECDecoderLayer(BaseModule):
    """Self-attention, gated deformable attention, FFN (D-FINE, arXiv 2410.13842).

    Args:
        self_attn_cfg (dict): Arguments of mmcv's ``MultiheadAttention``.
        cross_attn_cfg (dict): Arguments of :class:`SharedValueAttention`.
        ffn_cfg (dict): Arguments of mmcv's ``FFN``.
    """

    def __init__(self, self_attn_cfg: dict, cross_attn_cfg: dict, ffn_cfg: dict) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(**self_attn_cfg, batch_first=True)
        self.cross_attn = SharedValueAttention(**cross_attn_cfg)
        self.ffn = FFN(**ffn_cfg)
        self.embed_dims = self.self_attn.embed_dims
        self.gate = Gate(self.embed_dims)
        self.norms = nn.ModuleList(nn.LayerNorm(self.embed_dims) for _ in range(2))

    def forward(self, query: Tensor, query_pos: Tensor, self_attn_mask: Tensor | None, **cross_attn) -> Tensor:
        """Return the next states; ``query`` and ``query_pos`` are ``(images, queries, channels)``."""
        query = self.self_attn(query, query_pos=query_pos, key_pos=query_pos, attn_mask=self_attn_mask)
        query = self.norms[0](query)
        attended = self.cross_attn(query, query_pos, **cross_attn)
        # float16 ends at 65504
        return self.norms[1](self.ffn(self.gate(query, attended)).clamp(min=-65504, max=65504))


class ECDecoder(nn.Module):
    """Decoder that refines distributions of the sides of the first layer's boxes (FDR, D-FINE, arXiv 2410.13842).

    Args:
        num_layers (int): Number of layers.
        layer_cfg (dict): Arguments of :class:`ECDecoderLayer`.
    """

    def __init__(self, num_layers: int, layer_cfg: dict) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ECDecoderLayer(**layer_cfg) for _ in range(num_layers))
        self.embed_dims = self.layers[0].embed_dims
        self.ref_point_head = mlp(4, self.embed_dims, self.embed_dims, self.embed_dims)

    def forward(
        self, query: Tensor, boxes: Tensor, head: ECDETRHead, value: Tensor, spatial_shapes: list | Tensor,
        valid_ratios: Tensor, self_attn_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run all layers.

        Args:
            query (Tensor): ``(images, queries, channels)``.
            boxes (Tensor): Normalized (cx, cy, w, h), ``(images, queries, 4)``.
            head (ECDETRHead): Makes boxes of the states.
            value (Tensor): Tokens of all levels, ``(images, tokens, channels)``.
            spatial_shapes (list[tuple[int, int]]): (rows, columns) of each level; a tensor in ONNX export.
            valid_ratios (Tensor): Image size divided by padded size, (w, h, w, h), ``(images, 4)``.
            self_attn_mask (Tensor, optional): bool, ``(queries, queries)``; True where a query must not see another.

        Returns:
            dict[str, Tensor]: Arguments of ``ECDETRHead``: ``hidden_states (layers, images, queries, channels)``,
            ``sides (layers, images, queries, 4 * bins + 4)``, logits of the distances, and ``references (images,
            queries, 4)``, the boxes from which they count.
        """
        levels = self.layers[0].cross_attn.levels
        if levels[-1] + 1 != len(spatial_shapes):
            raise ValueError(
                f'num_points of cross_attn_cfg is for {levels[-1] + 1} levels, but the neck returns '
                f'{len(spatial_shapes)}')
        if len(levels) > len(spatial_shapes):  # several groups of points in a level: it comes several times
            parts = value.split([rows * columns for rows, columns in spatial_shapes], 1)
            value = torch.cat([parts[level] for level in levels], 1)
            is_traced = isinstance(spatial_shapes, Tensor)
            spatial_shapes = spatial_shapes[levels] if is_traced else [spatial_shapes[level] for level in levels]
        pos = self.ref_point_head(boxes).clamp(min=-10, max=10)
        all_states, all_sides, references = [], [], None
        for index, layer in enumerate(self.layers):
            points = (boxes * valid_ratios[:, None])[:, :, None]
            query = layer(
                query, pos, self_attn_mask, reference_points=points, value=value, spatial_shapes=spatial_shapes)
            if index == 0:
                first_boxes = head.first_boxes(query, boxes)
                references = first_boxes.detach()
            all_sides.append(head.sides(index, query, *((all_states[-1], all_sides[-1]) if index else ())))
            all_states.append(query)
            if index < len(self.layers) - 1:
                boxes = head.boxes(all_sides[-1].detach(), references)
        return dict(
            hidden_states=torch.stack(all_states), sides=torch.stack(all_sides), references=references,
            first_boxes=first_boxes)


class TokenSelection(nn.Module):
    """Select the tokens with the highest scores as queries (two-stage).

    Args:
        embed_dims (int): Number of channels.
        num_classes (int): Number of classes.
        num_queries (int): Number of queries.
    """

    def __init__(self, embed_dims: int, num_classes: int, num_queries: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.score = nn.Linear(embed_dims, num_classes)
        self.delta = mlp(embed_dims, embed_dims, embed_dims, 4)
        nn.init.constant_(self.score.bias, bias_init_with_prob(0.01))
        nn.init.zeros_(self.delta[-1].weight)
        nn.init.zeros_(self.delta[-1].bias)

    def forward(self, memory: Tensor, anchors: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Select the queries.

        Args:
            memory (Tensor): ``(images, tokens, channels)``.
            anchors (Tensor): Normalized box (cx, cy, w, h) at each token, ``(images, tokens, 4)``.
            inside (Tensor): bool, ``(images or 1, tokens)``; False for tokens at the border and padding, which are
                selected last.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Contents ``(images, queries, channels)``, boxes ``(..., 4)`` and logits
            ``(..., classes)``.
        """
        sides = anchors[..., 2]
        hidden = ~(inside & (sides > 0.01) & (sides < 0.99))[..., None]
        memory = memory.masked_fill(hidden, 0)
        scores = self.score(memory)
        index = scores.detach().amax(-1).topk(min(self.num_queries, memory.shape[1])).indices[..., None]
        anchors = (anchors / (1 - anchors)).log().masked_fill(hidden, torch.inf)

        def take(x: Tensor) -> Tensor:
            return x.gather(1, index.expand(-1, -1, x.shape[-1]))

        memory = take(memory)
        return memory.detach(), (self.delta(memory).float() + take(anchors)).sigmoid(), take(scores)


@MODELS.register_module()
class ECDETR(LWDETR):
    """ECDet (EdgeCrafter, TMLR 2026): a plain ViT as in LW-DETR, a hybrid encoder and D-FINE's decoder.

    The neck, :class:`~deit_detr.models.hybrid_encoder.HybridEncoder`, is the encoder. In training, denoising queries
    (DINO, arXiv 2203.03605) join the others.

    Args:
        *args: As for ``DetectionTransformer``.
        decoder (dict): Arguments of :class:`ECDecoder`.
        bbox_head (dict): An :class:`~deit_detr.models.ec_detr_head.ECDETRHead`, without its number of layers.
        anchor_size (float): Sides of the anchors of the finest level, normalized to the image; each further level has
            twice as large ones. Anchors of 0.99 and more are not used.
        dn_cfg (dict): Arguments of mmdet's ``CdnQueryGenerator``.
        **kwargs: As for ``DetectionTransformer`` and ``CompiledLayers``.
    """

    def __init__(
        self, *args, decoder: dict, bbox_head: dict, anchor_size: float = 0.05, dn_cfg: dict | None = None, **kwargs,
    ) -> None:
        self.dn_cfg = dn_cfg or {}
        bbox_head = dict(bbox_head, num_layers=decoder['num_layers'])
        super().__init__(
            *args, decoder=decoder, bbox_head=bbox_head, num_groups=1, anchor_size=anchor_size, **kwargs)

    def _init_layers(self) -> None:
        self.decoder = ECDecoder(**self.decoder)
        width, classes = self.decoder.embed_dims, self.bbox_head.num_classes
        self.query_selection = TokenSelection(width, classes, self.num_queries)
        self.dn_query_generator = BatchedCdnQueryGenerator(
            num_classes=classes, embed_dims=width, num_matching_queries=self.num_queries, **self.dn_cfg)
        replace_attention(self.decoder)

    def init_weights(self) -> None:
        """Initialize as D-FINE does: PyTorch's defaults, and Xavier for attention and query positions."""
        super(LWDETR, self).init_weights()
        for param in self.decoder.ref_point_head.parameters():
            if param.dim() > 1:
                nn.init.xavier_uniform_(param)
        for module in self.decoder.modules():
            if isinstance(module, SharedValueAttention):
                module.init_weights()

    def anchor_sides(self, level: int) -> float:
        """Return the sides of the anchors of a level, normalized to the image."""
        return self.anchor_size * 2 ** level

    def pre_transformer(self, img_feats: tuple[Tensor, ...], batch_data_samples: SampleList) -> tuple[dict, dict]:
        """Flatten the maps, and compute anchors and padding mask; in training also the denoising queries."""
        inputs, decoder_inputs = super().pre_transformer(img_feats, batch_data_samples)
        shapes, device, padded = decoder_inputs['spatial_shapes'], inputs['memory'].device, inputs.pop('padded')
        sizes = shapes if isinstance(shapes, Tensor) else to_device(np.array(shapes), device)
        sizes, odd = per_token(sizes.flip(-1)[None], shapes), odd_numbers(shapes, device)
        if padded is not None:  # both sides of the comparison in pixels: an image may end inside a token
            odd = odd * to_device(np.array(batch_data_samples[0].batch_input_shape[1::-1]), device)
            images = to_device(np.array([sample.img_shape[1::-1] for sample in batch_data_samples]), device)
            sizes = sizes * images[:, None]
        inside = inside_limits(odd, sizes)
        inputs['inside'] = inside if padded is None else inside & ~padded
        if self.training:
            inputs['denoising'] = self.dn_query_generator(batch_data_samples)
        return inputs, decoder_inputs

    def pre_decoder(
        self, memory: Tensor, anchors: Tensor, inside: Tensor, denoising: tuple | None = None,
    ) -> tuple[dict, dict]:
        """Select the queries, and put the denoising queries before them."""
        query, boxes, scores = self.query_selection(memory, anchors, inside)
        if denoising is None:
            return dict(query=query, boxes=boxes.detach()), {}
        contents, dn_boxes, mask, dn_meta = denoising
        head_inputs = dict(proposal_scores=scores, proposal_boxes=boxes, dn_meta=dn_meta)
        query = torch.cat([contents, query], 1)
        number = query.shape[1]  # a small map has fewer tokens than num_queries
        return dict(
            query=query, boxes=torch.cat([dn_boxes.sigmoid(), boxes.detach()], 1),
            self_attn_mask=mask[:number, :number]), head_inputs

    def forward_decoder(self, value: Tensor, key_padding_mask: Tensor | None, **inputs) -> dict:
        """Run the decoder."""
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0)
        return self.decoder(head=self.bbox_head, value=value, **inputs)
