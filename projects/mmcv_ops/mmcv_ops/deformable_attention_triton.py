"""Deformable attention (arXiv 2010.04159) in Triton; importing this needs Triton, which comes with PyTorch for CUDA.

A program computes one head of a block of queries. Its rows are pairs of query and point, its columns the channels of
the head, padded to a power of two; it visits the levels one after another. A block has as many rows as give each thread
16 bytes of each row: loads are as wide as the device allows, nothing is spilled, and there is nothing to tune. The
compiled code depends on types, heads, channels, levels and points, not on batch, queries and sizes of maps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

FORWARD_WARPS, BACKWARD_WARPS = 8, 4  # only the backward pass makes a program's warps wait for each other


def forward(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sums of samples, accumulated in float32, or float64 if an input has that type.

    Args:
        value (Tensor): ``(batch, tokens, heads, channels)``.
        spatial_shapes (Tensor): (height, width) of each level, ``(levels, 2)``, on the device of ``value``.
        locations (Tensor): ``(batch, queries, heads, levels, points, 2)``.
        weights (Tensor): ``(batch, queries, heads, levels, points)``.

    Returns:
        Tensor: ``(batch, queries, heads * channels)``, in the type of ``value``.
    """
    value, spatial_shapes, locations, weights = (
        x.contiguous() for x in (value, spatial_shapes, locations, weights))
    out = value.new_empty(*weights.shape[:2], value.shape[2] * value.shape[3])
    grid, sizes = _tiles(value, locations, weights, 16 // value.element_size(), FORWARD_WARPS)
    with torch.cuda.device_of(value):
        _forward_kernel[grid](
            value, spatial_shapes, locations, weights, out, weights.shape[1], value.shape[1], **sizes,
            num_warps=FORWARD_WARPS)
    return out


def backward(
    grad: Tensor, value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights, each in the type of its tensor.

    The samples are computed again. Gradients of values are added with atomics, in no fixed order.

    Args:
        grad (Tensor): Gradient of the result, ``(batch, queries, heads * channels)``.
        value (Tensor): This and the others as for :func:`forward`.
        spatial_shapes (Tensor): ``(levels, 2)``.
        locations (Tensor): ``(batch, queries, heads, levels, points, 2)``.
        weights (Tensor): ``(batch, queries, heads, levels, points)``.

    Returns:
        tuple[Tensor, Tensor, Tensor]: In the shapes of ``value``, ``locations`` and ``weights``, contiguous.
    """
    grad, value, spatial_shapes, locations, weights = (
        x.contiguous() for x in (grad, value, spatial_shapes, locations, weights))
    compute = _compute_type(value, locations, weights)
    grad_value = torch.zeros_like(value, dtype=compute)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    grid, sizes = _tiles(value, locations, weights, 16 // grad_value.element_size(), BACKWARD_WARPS)
    with torch.cuda.device_of(value):
        _backward_kernel[grid](
            grad, value, spatial_shapes, locations, weights, grad_value, grad_locations, grad_weights,
            weights.shape[1], value.shape[1], **sizes, num_warps=BACKWARD_WARPS)
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _compute_type(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _tiles(value: Tensor, locations: Tensor, weights: Tensor, vector: int, warps: int) -> tuple[tuple, dict]:
    """Return the grid and the constants of a kernel whose threads hold ``vector`` channels of a row."""
    batch, queries, heads, levels, points = weights.shape
    channels = value.shape[3]
    block_c, block_p = (1 << (x - 1).bit_length() for x in (channels, points))  # triton's own functions are slow
    block_q = max(1, 32 * warps * vector // (block_c * block_p))
    compute = tl.float64 if _compute_type(value, locations, weights) == torch.float64 else tl.float32
    return (-(-queries // block_q) * heads, batch), dict(
        HEADS=heads, CHANNELS=channels, LEVELS=levels, POINTS=points, BLOCK_Q=block_q, BLOCK_P=block_p,
        BLOCK_C=block_c, COMPUTE=compute)


@triton.jit
def _corners(
        x, y, valid, shapes, level: tl.constexpr, start, HEADS: tl.constexpr, CHANNELS: tl.constexpr,
        COMPUTE: tl.constexpr):
    """Return where each point lies between four tokens: the first one's offset in a map of values, and shares.

    As in mmcv, a point more than a token outside the map, or NaN, has no corners, nor do tokens outside it count.
    """
    height = tl.load(shapes + 2 * level).to(tl.int32)
    width = tl.load(shapes + 2 * level + 1).to(tl.int32)
    x = x.to(COMPUTE) * width - 0.5
    y = y.to(COMPUTE) * height - 0.5
    near = valid & (x > -1) & (y > -1) & (x < width) & (y < height)
    x = tl.where(near, x, 0)
    y = tl.where(near, y, 0)
    left = tl.floor(x)
    top = tl.floor(y)
    column = left.to(tl.int32)
    row = top.to(tl.int32)
    at_left = near & (column >= 0)
    at_right = near & (column + 1 < width)
    at_top = row >= 0
    at_bottom = row + 1 < height
    offset = (start + row * width + column).to(tl.int64) * (HEADS * CHANNELS)
    inside = at_left & at_top, at_right & at_top, at_left & at_bottom, at_right & at_bottom
    return x - left, y - top, offset[:, None], height, width, inside


@triton.jit(do_not_specialize=['queries', 'tokens'])
def _forward_kernel(
        value, shapes, locations, weights, out, queries, tokens, HEADS: tl.constexpr, CHANNELS: tl.constexpr,
        LEVELS: tl.constexpr, POINTS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr,
        BLOCK_C: tl.constexpr, COMPUTE: tl.constexpr):
    head = tl.program_id(0) % HEADS  # the heads of a query follow each other: they share cache lines
    image = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, BLOCK_Q * BLOCK_P)
    query = tl.program_id(0) // HEADS * BLOCK_Q + rows // BLOCK_P
    point = rows % BLOCK_P
    valid = (query < queries) & (point < POINTS)
    sample = ((image * queries + query) * HEADS + head) * (LEVELS * POINTS) + point
    channel = tl.arange(0, BLOCK_C)[None, :]
    real = channel < CHANNELS
    value += (image * tokens * HEADS + head) * CHANNELS
    right = HEADS * CHANNELS
    total = tl.zeros([BLOCK_Q * BLOCK_P, BLOCK_C], COMPUTE)
    start = 0
    for level in tl.static_range(LEVELS):
        x = tl.load(locations + 2 * sample, mask=valid, other=0)
        y = tl.load(locations + 2 * sample + 1, mask=valid, other=0)
        weight = tl.load(weights + sample, mask=valid, other=0).to(COMPUTE)
        x, y, offset, height, width, inside = _corners(
            x, y, valid, shapes, level, start, HEADS, CHANNELS, COMPUTE)
        corner = value + offset + channel
        below = width * right
        v00 = tl.load(corner, mask=inside[0][:, None] & real, other=0).to(COMPUTE)
        v01 = tl.load(corner + right, mask=inside[1][:, None] & real, other=0).to(COMPUTE)
        v10 = tl.load(corner + below, mask=inside[2][:, None] & real, other=0).to(COMPUTE)
        v11 = tl.load(corner + below + right, mask=inside[3][:, None] & real, other=0).to(COMPUTE)
        lower = weight * y
        upper = weight - lower
        total += (upper - upper * x)[:, None] * v00
        total += (upper * x)[:, None] * v01
        total += (lower - lower * x)[:, None] * v10
        total += (lower * x)[:, None] * v11
        sample += POINTS
        start += height * width
    total = tl.sum(total.reshape(BLOCK_Q, BLOCK_P, BLOCK_C), 1)
    query = tl.program_id(0) // HEADS * BLOCK_Q + tl.arange(0, BLOCK_Q)[:, None]
    tl.store(
        out + ((image * queries + query) * HEADS + head) * CHANNELS + channel, total,
        mask=(query < queries) & real)


@triton.jit(do_not_specialize=['queries', 'tokens'])
def _backward_kernel(
        grad, value, shapes, locations, weights, grad_value, grad_locations, grad_weights, queries, tokens,
        HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
        BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, COMPUTE: tl.constexpr):
    head = tl.program_id(0) % HEADS
    image = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, BLOCK_Q * BLOCK_P)
    query = (image * queries + tl.program_id(0) // HEADS * BLOCK_Q) + rows // BLOCK_P
    point = rows % BLOCK_P
    valid = (query < (image + 1) * queries) & (point < POINTS)
    sample = (query * HEADS + head) * (LEVELS * POINTS) + point
    channel = tl.arange(0, BLOCK_C)[None, :]
    real = channel < CHANNELS
    value += (image * tokens * HEADS + head) * CHANNELS
    grad_value += (image * tokens * HEADS + head) * CHANNELS
    right = HEADS * CHANNELS
    upstream = tl.load(
        grad + ((query * HEADS + head) * CHANNELS)[:, None] + channel, mask=valid[:, None] & real, other=0).to(COMPUTE)
    start = 0
    for level in tl.static_range(LEVELS):
        x = tl.load(locations + 2 * sample, mask=valid, other=0)
        y = tl.load(locations + 2 * sample + 1, mask=valid, other=0)
        weight = tl.load(weights + sample, mask=valid, other=0).to(COMPUTE)
        x, y, offset, height, width, inside = _corners(
            x, y, valid, shapes, level, start, HEADS, CHANNELS, COMPUTE)
        corner = offset + channel
        below = width * right
        in00 = inside[0][:, None] & real
        in01 = inside[1][:, None] & real
        in10 = inside[2][:, None] & real
        in11 = inside[3][:, None] & real
        dot00 = tl.sum(tl.load(value + corner, mask=in00, other=0).to(COMPUTE) * upstream, 1)
        dot01 = tl.sum(tl.load(value + corner + right, mask=in01, other=0).to(COMPUTE) * upstream, 1)
        dot10 = tl.sum(tl.load(value + corner + below, mask=in10, other=0).to(COMPUTE) * upstream, 1)
        dot11 = tl.sum(tl.load(value + corner + below + right, mask=in11, other=0).to(COMPUTE) * upstream, 1)
        upper = dot00 + x * (dot01 - dot00)
        lower = dot10 + x * (dot11 - dot10)
        grad_x = weight * width * (dot01 - dot00 + y * (dot11 - dot10 - dot01 + dot00))
        grad_y = weight * height * (lower - upper)
        tl.store(grad_weights + sample, upper + y * (lower - upper), mask=valid)
        tl.store(grad_locations + 2 * sample, grad_x, mask=valid)
        tl.store(grad_locations + 2 * sample + 1, grad_y, mask=valid)
        lower = weight * y
        upper = weight - lower
        tl.atomic_add(grad_value + corner, (upper - upper * x)[:, None] * upstream, mask=in00, sem='relaxed')
        tl.atomic_add(grad_value + corner + right, (upper * x)[:, None] * upstream, mask=in01, sem='relaxed')
        tl.atomic_add(grad_value + corner + below, (lower - lower * x)[:, None] * upstream, mask=in10, sem='relaxed')
        tl.atomic_add(grad_value + corner + below + right, (lower * x)[:, None] * upstream, mask=in11, sem='relaxed')
        sample += POINTS
        start += height * width
