"""Deformable attention (arXiv 2010.04159) in PyTorch, and the choice between this and mmcv's compiled operator."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmcv_ops.common import wide


@functools.cache
def choose_kernel(device_type: str) -> Callable[..., Tensor]:
    """Choose the kernel for a device type, mmcv's compiled one if it exists, and log the choice once per process.

    Args:
        device_type (str): 'cuda', 'cpu' ...; mmcv has a compiled operator only for CUDA, if it was built with CUDA.

    Returns:
        Callable: The kernel, with the arguments of mmcv's ``MultiScaleDeformableAttnFunction.apply``.
    """
    from mmcv.ops import get_compiling_cuda_version  # imports this package
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    compiled = device_type == 'cuda' and get_compiling_cuda_version() != 'not available'
    MMLogger.get_current_instance().info(
        f'deformable attention on {device_type}: '
        + ("mmcv's compiled operator" if compiled else 'PyTorch (mmcv has no compiled operator for it)'))
    return MultiScaleDeformableAttnFunction.apply if compiled else _in_pytorch


def _in_pytorch(value, spatial_shapes, level_start_index, locations, weights, im2col_step) -> Tensor:
    if torch.onnx.is_in_onnx_export():  # tracing supports neither loops over images nor an autograd.Function
        return _in_onnx_operators(value, spatial_shapes, locations, weights)
    return deformable_attention(value, spatial_shapes.tolist(), locations, weights)


def _in_onnx_operators(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Compute :func:`deformable_attention` with ONNX operators, without the batch size, which would be constant."""
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
    """Sample maps at points and return weighted sums of the samples, in PyTorch.

    The results are those of mmcv's ``multi_scale_deformable_attn_pytorch``, in half to two thirds of the time on a CPU.
    The samples, ``levels * points`` times as large as the result, are not kept: the backward pass samples again.

    Args:
        value (Tensor): Flattened maps of all levels, ``(batch, tokens, heads, channels)``.
        spatial_shapes (list[tuple[int, int]]): (height, width) of each level's map, in tokens.
        locations (Tensor): Points (x, y) normalized to the map, ``(batch, queries, heads, levels, points, 2)``; the
            centre of the first token is half a token from the border, and the map is padded with zeros.
        weights (Tensor): ``(batch, queries, heads, levels, points)``.

    Returns:
        Tensor: ``(batch, queries, heads * channels)``.
    """
    return _DeformableAttention.apply(value, locations, weights, spatial_shapes)


class _DeformableAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, locations, weights, shapes):
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        return _forward(value, locations, weights, shapes)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *_backward(grad, *ctx.saved_tensors, ctx.shapes), None


def ms_deform_attn_forward(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor,
    attention_weights: Tensor, im2col_step: int) -> Tensor:
    """Compute :func:`deformable_attention`; shapes are an int64 tensor, and ``im2col_step`` is not used."""
    inputs = wide(value), wide(sampling_locations, value), wide(attention_weights, value)
    return _forward(*inputs, spatial_shapes.tolist()).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor,
    attention_weights: Tensor, grad_output: Tensor, grad_value: Tensor, grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor, im2col_step: int) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward` into ``grad_value`` and the two tensors after it."""
    inputs = wide(value), wide(sampling_locations, value), wide(attention_weights, value)
    grads = _backward(wide(grad_output), *inputs, spatial_shapes.tolist())
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


# The two passes in PyTorch. A kernel for a device type would be chosen in their first lines.


def _forward(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    out = value.new_empty(*locations.shape[:3], value.shape[3])
    for out_i, *image in zip(out, value, locations, weights, strict=True):
        total = 0
        for maps, grid, weight in _levels(*image, shapes):
            total += F.grid_sample(maps, grid, align_corners=False).mul_(weight).sum(2)
        out_i.copy_(total.permute(2, 0, 1))
    return out.flatten(2)


def _backward(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, shapes: list[tuple[int, int]],
) -> tuple[Tensor, Tensor, Tensor]:
    grads = tuple(torch.empty_like(x) for x in (value, locations, weights))
    grad = grad.unflatten(2, value.shape[2:])
    images = zip(grad, value, locations, weights, *grads, strict=True)
    for grad_i, *image, grad_value, grad_locations, grad_weights in images:
        grad_i = grad_i.permute(1, 2, 0)[:, :, None].contiguous()
        start = 0
        for level, (maps, grid, weight) in enumerate(_levels(*image, shapes)):
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
    return grads


def _levels(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[tuple[int, int]]):
    """Yield the maps (heads, channels, height, width) of each level of an image, its sampling grid and its weights.

    The grid is (heads, points, queries, 2), the weights are (heads, 1, points, queries): with queries last, sums over
    points are vectorized over them. Only the samples of one image and level are in memory at a time. The maps of an
    image are views of its tokens; those of a whole batch would be copies.
    """
    values = value.permute(1, 2, 0).split([height * width for height, width in shapes], dim=-1)
    maps = [x.unflatten(-1, tuple(shape)) for x, shape in zip(values, shapes, strict=True)]
    grid = (2 * locations - 1).permute(2, 1, 3, 0, 4).contiguous()
    weights = weights.permute(2, 1, 3, 0).contiguous()[:, :, None]
    return zip(maps, grid, weights, strict=True)
