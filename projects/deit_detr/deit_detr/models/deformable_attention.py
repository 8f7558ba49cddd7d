"""Deformable attention on every device, with or without a CUDA build of mmcv."""

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmcv_ops.deformable_attention import choose_kernel
from torch import Tensor, nn


class PortableDeformableAttention(MultiScaleDeformableAttention):
    """mmcv's ``MultiScaleDeformableAttention`` with a kernel that is there (arXiv 2010.04159).

    mmcv takes its operator for every CUDA tensor, and one that was compiled for the CPU only fails in the first step.
    Here :func:`mmcv_ops.deformable_attention.choose_kernel` decides. This module takes over the parameters of a plain
    one, so state-dict keys stay as they are; as a subclass it is initialized where mmdet looks for the plain class.

    Under autocast the projections are computed in its type, locations and sampling in float32: a location is a share
    of the whole map, and bfloat16 has steps of 1/256 below 1, half a column of a map that is 134 wide. The compiled
    operator does not know bfloat16 at all.

    Args:
        plain (MultiScaleDeformableAttention): The module to replace. Its submodules are shared, not copied.

    Raises:
        ValueError: If the plain module is not batch-first.
    """

    def __init__(self, plain: MultiScaleDeformableAttention) -> None:
        super(MultiScaleDeformableAttention, self).__init__(plain.init_cfg)  # mmcv's own would draw weights
        if not plain.batch_first:
            raise ValueError('PortableDeformableAttention needs batch_first=True')
        for name in ('norm_cfg', 'dropout', 'batch_first', 'im2col_step', 'embed_dims', 'num_levels', 'num_heads',
                     'num_points', 'sampling_offsets', 'attention_weights', 'value_proj', 'output_proj', 'is_init'):
            setattr(self, name, getattr(plain, name))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """As mmcv's.

        Args:
            query (Tensor): ``(batch, queries, channels)``.
            key (Tensor, optional): Not looked at.
            value (Tensor, optional): The maps of all levels, flattened, one after the other: ``(batch, tokens,
                channels)``; the query when left out.
            identity (Tensor, optional): What the result is added to; the query when left out.
            query_pos (Tensor, optional): Added to ``query``.
            key_padding_mask (Tensor, optional): bool, ``(batch, tokens)``; True where a token is padding.
            reference_points (Tensor): Points (x, y) or boxes (cx, cy, w, h) as shares of each level's map,
                ``(batch, queries, levels, 2 or 4)``.
            spatial_shapes (Tensor): (height, width) of each level's map, in tokens: int64, ``(levels, 2)``.
            level_start_index (Tensor): Where each level starts among the tokens: int64, ``(levels,)``.
            **kwargs: Not looked at: mmdet hands a decoder layer's arguments to both of its attentions.

        Returns:
            Tensor: ``(batch, queries, channels)``.
        """
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos

        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        value = _at_least_float32(value).unflatten(-1, (self.num_heads, -1))
        weights = _at_least_float32(self.attention_weights(query)).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (self.num_levels, self.num_points))
        offsets = _at_least_float32(self.sampling_offsets(query)).unflatten(-1, (*weights.shape[2:], 2))

        reference_points = _at_least_float32(reference_points)[:, :, None, :, None]
        if reference_points.shape[-1] == 2:
            locations = reference_points + offsets / spatial_shapes.flip(-1)[:, None]
        else:
            locations = reference_points[..., :2] + offsets / self.num_points * reference_points[..., 2:] * 0.5

        kernel = choose_kernel(value.device.type)
        out = kernel(value, spatial_shapes, level_start_index, locations, weights, self.im2col_step)
        return self.dropout(self.output_proj(out)) + identity


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def make_portable(module: nn.Module) -> None:
    """Replace every plain deformable attention inside a module by one that takes it over and finds its kernel."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is MultiScaleDeformableAttention:
                setattr(parent, name, PortableDeformableAttention(child))
