"""Deformable attention on every device, with or without compiled mmcv operators."""

from collections.abc import Sequence

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmcv_ops.deformable_attention import as_tensor, choose_kernel
from torch import Tensor


class PortableDeformableAttention(MultiScaleDeformableAttention):
    """mmcv's ``MultiScaleDeformableAttention`` (arXiv 2010.04159) with the best kernel that works on the device.

    mmcv calls the operator of its compiled module for every CUDA tensor. Here
    :func:`mmcv_ops.deformable_attention.choose_kernel` decides. This module takes over the parameters of a plain one,
    so state-dict keys do not change. It is a subclass because mmdet initializes modules of the plain class.

    Under autocast the projections and the sampled values use its type, but locations, weights and sums use float32:
    locations are normalized to the map, and a bfloat16 step of 1/256 is half a column of a map that is 134 wide.

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
        #: Points of each level, by which offsets from a box are divided.
        self.points_of_level: int | Tensor = plain.num_points

    def forward(
        self, query: Tensor, *, reference_points: Tensor, spatial_shapes: Tensor | Sequence[tuple[int, int]],
        level_start_index: Tensor | None = None, value: Tensor | None = None, identity: Tensor | None = None,
        query_pos: Tensor | None = None, key_padding_mask: Tensor | None = None, **kwargs,
    ) -> Tensor:
        """Attend as mmcv's module does, and add ``identity``.

        Args:
            query (Tensor): ``(batch, queries, channels)``.
            reference_points (Tensor): Points (x, y) or boxes (cx, cy, w, h), normalized to each level's map,
                ``(batch, queries, levels, 2 or 4)``.
            spatial_shapes (Tensor | Sequence[tuple[int, int]]): (height, width) of each level's map in tokens. As a
                tensor, int64 ``(levels, 2)``, some kernels have to wait for the device to read it.
            level_start_index (Tensor, optional): Index of each level's first token, int64, ``(levels,)``. Default:
                computed from ``spatial_shapes``.
            value (Tensor, optional): Flattened maps of all levels, ``(batch, tokens, channels)``. Default: ``query``.
            identity (Tensor, optional): ``(batch, queries, channels)``. Default: ``query``.
            query_pos (Tensor, optional): Added to ``query``.
            key_padding_mask (Tensor, optional): bool, ``(batch, tokens)``; True where a token is padding.
            **kwargs: Ignored, as in mmcv.

        Returns:
            Tensor: ``(batch, queries, channels)``.
        """
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        return self.attend(
            query, reference_points, value, spatial_shapes, level_start_index, key_padding_mask) + identity

    def attend(
        self, query: Tensor, reference_points: Tensor, value: Tensor,
        spatial_shapes: Tensor | Sequence[tuple[int, int]], level_start_index: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return what :meth:`forward` adds to ``identity``, for a query with its position."""
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))
        weights = _at_least_float32(self.attention_weights(query)).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (self.num_levels, self.num_points))
        offsets = _at_least_float32(self.sampling_offsets(query)).unflatten(-1, (*weights.shape[2:], 2))

        reference_points = _at_least_float32(reference_points)[:, :, None, :, None]
        if reference_points.shape[-1] == 2:
            locations = reference_points + offsets / as_tensor(spatial_shapes, value.device).flip(-1)[:, None]
        else:
            locations = reference_points[..., :2] + offsets / self.points_of_level * reference_points[..., 2:] * 0.5

        kernel = choose_kernel(value.device.type)
        out = kernel(value, spatial_shapes, level_start_index, locations, weights, self.im2col_step)
        return self.dropout(self.output_proj(out))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
