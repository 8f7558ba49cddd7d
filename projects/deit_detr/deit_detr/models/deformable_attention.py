"""Deformable attention on every device, with or without a CUDA build of mmcv."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmcv.ops import MultiScaleDeformableAttention, get_compiling_cuda_version
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class PortableDeformableAttention(MultiScaleDeformableAttention):
    """mmcv's ``MultiScaleDeformableAttention`` with a kernel that is there (arXiv 2010.04159).

    mmcv takes its compiled operator for every CUDA tensor, and fails in the first step if it was built without CUDA.
    Here :func:`choose_kernel` decides. This module takes over the parameters of a plain one, so state-dict keys stay
    as they are; as a subclass it is initialized where mmdet looks for the plain class.

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


@functools.cache
def choose_kernel(device_type: str) -> Callable[..., Tensor]:
    """The kernel for a type of device: mmcv's compiled one if there is one. The choice is logged once in a process.

    Args:
        device_type (str): 'cuda', 'cpu' ...; mmcv has a compiled operator for CUDA only, if it was built with CUDA.

    Returns:
        Callable: Takes the arguments of mmcv's ``MultiScaleDeformableAttnFunction.apply``.
    """
    compiled = device_type == 'cuda' and get_compiling_cuda_version() != 'not available'
    MMLogger.get_current_instance().info(
        f'deformable attention on {device_type}: '
        + ("mmcv's compiled operator" if compiled else 'PyTorch (mmcv has no compiled operator for it)'))
    return MultiScaleDeformableAttnFunction.apply if compiled else _without_mmcv


def _without_mmcv(value, spatial_shapes, level_start_index, locations, weights, im2col_step) -> Tensor:
    if torch.onnx.is_in_onnx_export():  # whose tracer follows neither loops over images nor an autograd.Function
        return _traceable(value, spatial_shapes, locations, weights)
    return deformable_attention(value, spatial_shapes.tolist(), locations, weights)


def _traceable(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """As :func:`deformable_attention`, in operators of ONNX, without reading the batch size, which would be fixed."""
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([height * width for height, width in spatial_shapes], dim=-1)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]
    total = 0
    for level, (height, width) in enumerate(spatial_shapes):
        level_map = maps[level].unflatten(-1, (height, width))
        samples = F.grid_sample(level_map, grid[:, :, level], align_corners=False)
        total = total + (samples * weights[:, :, :, level]).sum(-1)
    return total.unflatten(0, (-1, value.shape[2])).flatten(1, 2).transpose(1, 2)


def deformable_attention(
    value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample maps at points and sum the samples up with weights, in PyTorch.

    The same numbers as mmcv's ``multi_scale_deformable_attn_pytorch``, in half to two thirds of the time on a CPU, and
    without keeping the samples, ``levels * points`` times as large as the result, for the backward pass: that takes
    them again.

    Args:
        value (Tensor): The maps of all levels, flattened, one after the other: ``(batch, tokens, heads, channels)``.
        spatial_shapes (list[tuple[int, int]]): (height, width) of each level's map, in tokens.
        locations (Tensor): Points (x, y) as shares of the map, ``(batch, queries, heads, levels, points, 2)``; a
            token's middle is half a token from its border, and beyond the map there are zeros.
        weights (Tensor): ``(batch, queries, heads, levels, points)``.

    Returns:
        Tensor: ``(batch, queries, heads * channels)``.
    """
    return _LevelByLevel.apply(value, locations, weights, spatial_shapes)


class _LevelByLevel(torch.autograd.Function):
    """The samples of one image and level at a time are in memory.

    Queries come last in them, so that sums over points run along the queries. An image's maps are views of its tokens;
    those of a whole batch would be copies.
    """

    @staticmethod
    def levels(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[tuple[int, int]]):
        """For each level of an image its maps (heads, channels, height, width), and where and how much to sample.

        That is a grid (heads, points, queries, 2) and weights (heads, 1, points, queries).
        """
        values = value.permute(1, 2, 0).split([height * width for height, width in shapes], dim=-1)
        maps = [x.unflatten(-1, tuple(shape)) for x, shape in zip(values, shapes, strict=True)]
        grid = (2 * locations - 1).permute(2, 1, 3, 0, 4).contiguous()
        weights = weights.permute(2, 1, 3, 0).contiguous()[:, :, None]
        return zip(maps, grid, weights, strict=True)

    @staticmethod
    def forward(ctx, value, locations, weights, shapes):
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        out = value.new_empty(*locations.shape[:3], value.shape[3])
        for out_i, *image in zip(out, value, locations, weights, strict=True):
            total = 0
            for maps, grid, weight in _LevelByLevel.levels(*image, shapes):
                total += F.grid_sample(maps, grid, align_corners=False).mul_(weight).sum(2)
            out_i.copy_(total.permute(2, 0, 1))
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        inputs = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in inputs]
        grad = grad.unflatten(2, inputs[0].shape[2:])
        for grad_i, *image, grad_value, grad_locations, grad_weights in zip(grad, *inputs, *grads, strict=True):
            grad_i = grad_i.permute(1, 2, 0)[:, :, None].contiguous()
            start = 0
            for level, (maps, grid, weight) in enumerate(_LevelByLevel.levels(*image, ctx.shapes)):
                samples = F.grid_sample(maps, grid, align_corners=False).mul_(grad_i)
                grad_weights[:, :, level] = samples.sum(1).permute(2, 0, 1)
                torch.mul(grad_i, weight, out=samples)
                # bilinear, zeros outside, corners not aligned; gradients of both
                grad_maps, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
                    samples, maps, grid, 0, 0, False, (True, True))
                stop = start + grad_maps[0, 0].numel()
                grad_value[start:stop] = grad_maps.flatten(2).permute(2, 0, 1)
                grad_locations[:, :, level] = grad_grid.mul_(2).permute(2, 0, 1, 3)
                start = stop
        return *grads, None
