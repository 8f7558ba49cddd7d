"""Pooling of regions of interest (image, x1, y1, x2, y2) to maps of a fixed size."""

from collections.abc import Iterable, Iterator

import torch
import torchvision
from torch import Tensor

from mmcv_ops.common import gradients, wide

OUTSIDE = -2.0  # the place of an empty bin's maximum, which gets no gradient


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, aligned_height: int,
    aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool) -> None:
    """Pool means or maxima of bilinear samples (RoIAlign, arXiv 1703.06870).

    Args:
        input (Tensor): ``(batch, channels, height, width)``.
        rois (Tensor): Index of the image and corners in pixels of the image, ``(rois, 5)``.
        output (Tensor): Receives the pooled maps, ``(rois, channels, aligned_height, aligned_width)``; an empty bin
            is 0.
        argmax_y (Tensor): Receives the row of each maximum in the map, in the shape of ``output``; empty for means.
        argmax_x (Tensor): Receives the columns, likewise.
        aligned_height (int): Number of bins from top to bottom.
        aligned_width (int): Number of bins from left to right.
        spatial_scale (float): Size of the map divided by the size of the image.
        sampling_ratio (int): Samples of a bin in each direction; 0 for the size of the bin in pixels, rounded up.
        pool_mode (int): 0 for maxima, 1 for means.
        aligned (bool): Whether the centre of the first pixel is 0.5 instead of 0, and regions may be small.

    Raises:
        ValueError: If the shapes of output, input and rois do not fit.
    """
    _check_shapes(output, rois, input, (aligned_height, aligned_width))
    maps = wide(input)
    rois = rois.to(maps)
    if pool_mode == 1:
        output.copy_(torchvision.ops.roi_align(
            maps, rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned))
        return
    start, stop = (rois[:, 1:] * spatial_scale - (0.5 if aligned else 0)).split(2, dim=1)
    size = stop - start if aligned else (stop - start).clamp(min=1)
    ys = list(_places(start[:, 1], size[:, 1], aligned_height, sampling_ratio))
    xs = list(_places(start[:, 0], size[:, 0], aligned_width, sampling_ratio))
    samples = (
        (_sample(maps, rois[:, 0], y[..., None], x[..., None, :]), y_valid & x_valid, y[..., None], x[..., None, :])
        for y, y_valid in ys for x, x_valid in xs)
    for target, found in zip((output, argmax_y, argmax_x), _maxima(maps, output, samples), strict=True):
        target.copy_(found)


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, aligned_height: int,
    aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool) -> None:
    """Write the gradient of :func:`roi_align_forward` into ``grad_input``."""
    _check_shapes(grad_output, rois, grad_input, (aligned_height, aligned_width))
    upstream = wide(grad_output)
    rois = rois.to(upstream)

    def pool(maps: Tensor) -> Tensor:  # linear once the places of maxima are known: any maps will do
        if pool_mode == 0:
            return _sample(maps, rois[:, 0], argmax_y.to(maps), argmax_x.to(maps))
        return torchvision.ops.roi_align(
            maps, rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)

    grad_input.copy_(gradients(pool, [torch.zeros_like(grad_input, dtype=upstream.dtype)], upstream)[0])


def _places(start: Tensor, size: Tensor, bins: int, sampling_ratio: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first samples of all bins along one axis, then the second ones ...

    Yields:
        tuple[Tensor, Tensor]: Coordinates, (rois, 1, bins), and whether a region has this sample, (rois, 1, 1, 1).
    """
    step = size / bins
    number = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil()
    first = start[:, None] + torch.arange(bins, device=start.device) * step[:, None]
    for index in range(int(number.max()) if len(number) else 0):
        place = first + ((index + 0.5) * step / number.clamp(min=1))[:, None]
        yield place[:, None], (index < number)[:, None, None, None]


def _sample(maps: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Interpolate bilinearly; up to one pixel beyond the border, values are those of the border, then 0.

    Args:
        maps (Tensor): ``(batch, channels, height, width)``.
        image (Tensor): Index of the image, ``(rois,)``.
        y (Tensor): Rows, integers at the centres of pixels; broadcast with ``x`` to the shape of the result.
        x (Tensor): Columns, likewise.

    Returns:
        Tensor: ``(rois, channels, bins, bins)``.
    """
    channels, height, width = maps.shape[1:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.long(), x.long()
    image = image.long()[:, None, None, None]
    channel = torch.arange(channels, device=maps.device)[:, None, None]
    value = 0
    for row, share_y in ((top, 1 - (y - top)), ((top + 1).clamp(max=height - 1), y - top)):
        for column, share_x in ((left, 1 - (x - left)), ((left + 1).clamp(max=width - 1), x - left)):
            value = value + maps[image, channel, row, column] * (share_y * share_x * inside)
    return value


def _maxima(maps: Tensor, output: Tensor, samples: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return value, y and x of the first maximum of each bin; samples are (value, whether it counts, y, x)."""
    best = torch.full_like(output, -torch.inf, dtype=maps.dtype)
    best_y, best_x = torch.full_like(best, OUTSIDE), torch.full_like(best, OUTSIDE)
    for value, valid, y, x in samples:
        better = valid & (value > best)
        best = torch.where(better, value, best)
        best_y, best_x = torch.where(better, y, best_y), torch.where(better, x, best_x)
    return best.masked_fill(best_y == OUTSIDE, 0), best_y, best_x


def roi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int, pooled_width: int,
    spatial_scale: float) -> None:
    """Pool maxima of the pixels that a bin touches (arXiv 1504.08083); torchvision rounds the region first.

    Args:
        input (Tensor): ``(batch, channels, height, width)``.
        rois (Tensor): Index of the image and corners in pixels of the image, the last ones included: ``(rois, 5)``.
        output (Tensor): Receives the pooled maps, ``(rois, channels, pooled_height, pooled_width)``; an empty bin
            is 0.
        argmax (Tensor): Receives the index of each maximum in its flattened map, -1 for an empty bin: int32, in the
            shape of ``output``.
        pooled_height (int): Number of bins from top to bottom.
        pooled_width (int): Number of bins from left to right.
        spatial_scale (float): Size of the map divided by the size of the image.

    Raises:
        ValueError: If the shapes of output, input and rois do not fit.
    """
    _check_shapes(output, rois, input, (pooled_height, pooled_width))
    maps = wide(input)
    rois = rois.to(maps)
    height, width = maps.shape[2:]
    start, stop = rois[:, 1:3] * spatial_scale, (rois[:, 3:] + 1) * spatial_scale
    empty = (stop <= start).any(1)
    top, bottom = _bins(start[:, 1], stop[:, 1], pooled_height, height, empty)
    left, right = _bins(start[:, 0], stop[:, 0], pooled_width, width, empty)
    image = rois[:, 0].long()[:, None, None, None]
    channel = torch.arange(maps.shape[1], device=maps.device)[:, None, None]

    def samples() -> Iterator[tuple[Tensor, ...]]:
        for row in range(int((bottom - top).max())):
            for column in range(int((right - left).max())):
                y, x = (top + row)[:, None, :, None], (left + column)[:, None, None, :]
                valid = (y < bottom[:, None, :, None]) & (x < right[:, None, None, :])
                value = maps[image, channel, y.clamp(max=height - 1), x.clamp(max=width - 1)]
                yield value, valid, y.to(maps), x.to(maps)

    best, y, x = _maxima(maps, output, samples() if len(rois) else ())
    output.copy_(best)
    argmax.copy_((y * width + x).masked_fill(y == OUTSIDE, -1))


def _bins(start: Tensor, stop: Tensor, bins: int, size: int, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the end pixel (exclusive) of each bin along one axis, int64 ``(rois, bins)``."""
    edges = torch.arange(bins + 1, device=start.device) * ((stop - start) / bins)[:, None] + start[:, None]
    low, high = edges[:, :-1].floor().clamp(0, size).long(), edges[:, 1:].ceil().clamp(0, size).long()
    return low, torch.where(empty[:, None], low, high)


def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int,
    spatial_scale: float) -> None:
    """Write the gradient of :func:`roi_pool_forward` into ``grad_input``."""
    _check_shapes(grad_output, rois, grad_input, (pooled_height, pooled_width))
    grad = torch.zeros_like(grad_input.flatten(2), dtype=wide(grad_output).dtype)
    image = rois[:, 0].long()[:, None, None, None]
    channel = torch.arange(grad.shape[1], device=grad.device)[:, None, None]
    upstream = wide(grad_output).masked_fill(argmax < 0, 0)
    grad.index_put_((image, channel, argmax.long().clamp(min=0)), upstream, accumulate=True)
    grad_input.copy_(grad.view_as(grad_input))


def _check_shapes(output: Tensor, rois: Tensor, input: Tensor, size: tuple[int, int]) -> None:
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f'rois are {tuple(rois.shape)}, not (number, 5)')
    if output.shape != (len(rois), input.shape[1], *size):
        raise ValueError(
            f'{len(rois)} rois of {input.shape[1]} channels, pooled to {size[0]}x{size[1]}, are not '
            f'{tuple(output.shape)}')
