"""Deformable attention (arXiv 2010.04159): one operator in Triton or PyTorch, or mmcv's compiled one.

``torch.ops.mmcv_ops.deformable_attention`` and its backward pass are opaque to autocast and ``torch.compile``. They are
registered with :class:`torch.library.Library`: ``torch.library.custom_op`` adds 50 us to a pass.
"""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmcv_ops.common import wide

Shapes = Tensor | Sequence[tuple[int, int]]
TRITON, COMPILED = 'Triton', "mmcv's compiled operator"
PYTORCH = 'PyTorch (mmcv has no compiled operator for it)'


def choose_kernel(device_type: str) -> Callable[..., Tensor]:
    """Choose the kernel for a device type, and log the choice once per process.

    On CUDA it is the one in Triton, else mmcv's compiled one, else PyTorch's; on other devices it is PyTorch's.

    Args:
        device_type (str): 'cuda', 'cpu' ...

    Returns:
        Callable: The kernel, with the arguments of mmcv's ``MultiScaleDeformableAttnFunction.apply``. The shapes may
        also be (height, width) of each level as Python integers, which no kernel has to read from the device; the
        level starts may be None.
    """
    return _compiled if _kernel_name(device_type) == COMPILED else _by_operator


@torch.compiler.assume_constant_result
def _kernel_name(device_type: str) -> str:
    return _choice(device_type)


@functools.cache
def _choice(device_type: str) -> str:
    from mmcv.ops import get_compiling_cuda_version  # imports this package

    if _triton(device_type):
        name = TRITON
    elif device_type == 'cuda' and get_compiling_cuda_version() != 'not available':
        name = COMPILED
    else:
        name = PYTORCH
    MMLogger.get_current_instance().info(f'deformable attention on {device_type}: {name}')
    return name


@functools.cache
def _triton(device_type: str) -> ModuleType | None:
    """Return the kernels in Triton if they can run on a device type; log why they cannot run on CUDA."""
    if device_type != 'cuda':
        return None
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # builds a module of Triton: that needs a GPU, a C compiler and Python.h
        from mmcv_ops import deformable_attention_triton
    except Exception as error:  # Triton and the compiler raise errors of many types
        MMLogger.get_current_instance().warning(f'Triton does not work here: {type(error).__name__}: {error}')
        return None
    return deformable_attention_triton


def as_tensor(spatial_shapes: Shapes, device: torch.device) -> Tensor:
    """Return (height, width) of each level as an int64 tensor ``(levels, 2)`` on a device, without waiting for it."""
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes
    shapes = tuple(map(tuple, spatial_shapes))
    if torch.compiler.is_compiling():
        return _filled.__wrapped__(shapes, device)
    with torch.inference_mode(False):  # training cannot save a tensor that was made in that mode
        return _filled(shapes, device)


@functools.cache  # without a limit: captured CUDA graphs read these tensors
def _filled(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    return torch.stack([torch.full((), side, device=device) for shape in shapes for side in shape]).view(-1, 2)


def _compiled(value, spatial_shapes, level_start_index, locations, weights, im2col_step) -> Tensor:
    """Call mmcv's compiled operator, which does not support bfloat16 and wants one type for all."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes = as_tensor(spatial_shapes, value.device)
    if level_start_index is None:
        level_start_index = F.pad(shapes.prod(1).cumsum(0)[:-1], (1, 0))
    out = MultiScaleDeformableAttnFunction.apply(
        wide(value, locations), shapes, level_start_index, locations, weights, im2col_step)
    return out.to(value.dtype)


def _by_operator(value, spatial_shapes, level_start_index, locations, weights, im2col_step) -> Tensor:
    if torch.onnx.is_in_onnx_export():
        return _in_onnx_operators(value, spatial_shapes, locations, weights)
    return deformable_attention(value, spatial_shapes, locations, weights)


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


def deformable_attention(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample maps at points and return weighted sums of the samples.

    The results are those of mmcv's ``multi_scale_deformable_attn_pytorch``, for values of any floating type; locations,
    weights and sums have at least float32. The samples, ``levels * points`` times as large as the result, are not kept:
    the backward pass samples again. On CUDA it adds in no fixed order, and with deterministic algorithms switched on it
    leaves that to PyTorch, which refuses.

    Args:
        value (Tensor): Flattened maps of all levels, ``(batch, tokens, heads, channels)``.
        spatial_shapes (Tensor | Sequence[tuple[int, int]]): (height, width) of each level's map, in tokens. Python
            integers are checked against the tokens; a tensor, int64 ``(levels, 2)``, is not read from a GPU.
        locations (Tensor): Points (x, y) normalized to the map, ``(batch, queries, heads, levels, points, 2)``; the
            centre of the first token is half a token from the border, and the map is padded with zeros.
        weights (Tensor): ``(batch, queries, heads, levels, points)``.

    Returns:
        Tensor: ``(batch, queries, heads * channels)``, in the type of ``value``.

    Raises:
        ValueError: If the shapes have another number of tokens than ``value``.
    """
    if not isinstance(spatial_shapes, Tensor):
        tokens = sum(height * width for height, width in spatial_shapes)
        if tokens != value.shape[1]:
            raise ValueError(f'maps of sizes {spatial_shapes} have {tokens} tokens, value has {value.shape[1]}')
        in_triton = _kernel_name(value.device.type) == TRITON
        spatial_shapes = as_tensor(spatial_shapes, value.device if in_triton else torch.device('cpu'))
    return torch.ops.mmcv_ops.deformable_attention(value, spatial_shapes, locations, weights)


def _forward(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    triton = _triton(value.device.type)
    if triton:
        return triton.forward(value, spatial_shapes, locations, weights)
    inputs = wide(value), wide(locations, value), wide(weights, value)
    return _forward_in_pytorch(*inputs, spatial_shapes.tolist()).to(value.dtype)


def _backward(
    grad: Tensor, value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    triton = _triton(value.device.type)
    if triton and not torch.are_deterministic_algorithms_enabled():
        return triton.backward(grad, value, spatial_shapes, locations, weights)
    inputs = wide(value), wide(locations, value), wide(weights, value)
    grads = _backward_in_pytorch(wide(grad, value), *inputs, spatial_shapes.tolist())
    return tuple(grad.to(x.dtype) for grad, x in zip(grads, (value, locations, weights), strict=True))


def _fake_forward(value, spatial_shapes, locations, weights):
    return value.new_empty(*weights.shape[:2], value.shape[2] * value.shape[3])


def _fake_backward(grad, value, spatial_shapes, locations, weights):
    return tuple(x.new_empty(x.shape) for x in (value, locations, weights))


@once_differentiable
def _autograd(ctx, grad):
    grad_value, *grads = torch.ops.mmcv_ops.deformable_attention_backward(grad, *ctx.saved_tensors)
    return grad_value, None, *grads


_library = torch.library.Library('mmcv_ops', 'FRAGMENT')
for _name, _schema, _kernel, _fake in (
    ('deformable_attention', '({}) -> Tensor', _forward, _fake_forward),
    ('deformable_attention_backward', '(Tensor grad, {}) -> (Tensor, Tensor, Tensor)', _backward, _fake_backward),
):
    _inputs = 'Tensor value, Tensor spatial_shapes, Tensor locations, Tensor weights'
    _library.define(_name + _schema.format(_inputs), tags=torch.Tag.pt2_compliant_tag)
    _library.impl(_name, _kernel, 'CompositeExplicitAutograd')
    torch.library.register_fake(f'mmcv_ops::{_name}', _fake, lib=_library)
torch.library.register_autograd(
    'mmcv_ops::deformable_attention', _autograd, lib=_library,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def ms_deform_attn_forward(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor,
    attention_weights: Tensor, im2col_step: int) -> Tensor:
    """Compute :func:`deformable_attention`; shapes are an int64 tensor, and ``im2col_step`` is not used."""
    return torch.ops.mmcv_ops.deformable_attention(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor,
    attention_weights: Tensor, grad_output: Tensor, grad_value: Tensor, grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor, im2col_step: int) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward` into ``grad_value`` and the two tensors after it."""
    grads = torch.ops.mmcv_ops.deformable_attention_backward(
        grad_output, value, spatial_shapes, sampling_locations, attention_weights)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


# The two passes in PyTorch, an image at a time: maps of a whole batch would be copies, up to 1.5 times the CPU time.


def _forward_in_pytorch(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    out = value.new_empty(*locations.shape[:3], value.shape[3])
    for out_i, *image in zip(out, value, locations, weights, strict=True):
        total = 0
        for maps, grid, weight in _levels(*image, shapes):
            total += F.grid_sample(maps, grid, align_corners=False).mul_(weight).sum(2)
        out_i.copy_(total.permute(2, 0, 1))
    return out.flatten(2)


def _backward_in_pytorch(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, shapes: list[tuple[int, int]],
) -> tuple[Tensor, Tensor, Tensor]:
    grads = tuple(x.new_empty(x.shape) for x in (value, locations, weights))
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
