"""Pooling of regions against loops from its definition, and against mmcv's compiled operators."""

import itertools
import math

import pytest
import torch
from mmcv.ops import roi_align, roi_pool

from tests.helpers.operators import largest_difference, needs_compiled, ours_and_compiled, with_gradients

pytestmark = pytest.mark.usefixtures('our_operators')

HEIGHT, WIDTH, SCALE, SIZE = 9, 12, 0.25, (3, 2)


def maps(dtype=torch.float64) -> torch.Tensor:
    return torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0), dtype=dtype)


def regions(number: int = 12, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    """Inside, across the borders and outside of 48x36 pixels; one is less than a pixel of the map."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, 2, generator=random, dtype=dtype) * torch.tensor([64.0, 52], dtype=dtype) - 8
    rois = torch.cat([torch.arange(number)[:, None] % 2, corners.amin(1), corners.amax(1)], dim=1)
    rois[-1, 1:] = torch.tensor([10.3, 12.1, 11.2, 14.9], dtype=dtype)
    return rois.to(dtype)


def between(image, y, x) -> torch.Tensor:
    if not (-1 <= y <= HEIGHT and -1 <= x <= WIDTH):
        return torch.zeros(len(image), dtype=image.dtype)
    y, x = min(max(y, 0), HEIGHT - 1), min(max(x, 0), WIDTH - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, HEIGHT - 1), min(left + 1, WIDTH - 1)
    upper = image[:, top, left] * (1 - x + left) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - x + left) + image[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def align(images, rois, ratio, mode, aligned) -> torch.Tensor:
    out = torch.zeros(len(rois), images.shape[1], *SIZE, dtype=images.dtype)
    for index, (image, *box) in enumerate(rois.tolist()):
        left, top, right, bottom = (SCALE * x - (0.5 if aligned else 0) for x in box)
        height, width = bottom - top, right - left
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        rows, columns = (ratio or math.ceil(length / bins) for length, bins in zip((height, width), SIZE, strict=True))
        for i, j in itertools.product(*map(range, SIZE)):
            samples = torch.stack([
                between(images[int(image)], top + (i + (row + 0.5) / rows) * height / SIZE[0],
                        left + (j + (column + 0.5) / columns) * width / SIZE[1])
                for row in range(rows) for column in range(columns)])
            out[index, :, i, j] = samples.mean(0) if mode == 'avg' else samples.amax(0)
    return out


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align(device, ratio, mode, aligned):
    out = roi_align(maps().to(device), regions().to(device), SIZE, SCALE, ratio, mode, aligned)
    torch.testing.assert_close(out.cpu(), align(maps(), regions(), ratio, mode, aligned), rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda x: roi_align(x, regions().to(device), SIZE, SCALE, ratio, mode, aligned),
        maps().to(device).requires_grad_(), nondet_tol=1e-12, fast_mode=True)


def pool(images, rois) -> torch.Tensor:
    out = torch.zeros(len(rois), images.shape[1], *SIZE, dtype=images.dtype)
    for index, (image, left, top, right, bottom) in enumerate(rois.tolist()):
        left, top, right, bottom = SCALE * left, SCALE * top, SCALE * (right + 1), SCALE * (bottom + 1)
        for i, j in itertools.product(*map(range, SIZE)):
            rows = range(max(math.floor(top + i * (bottom - top) / SIZE[0]), 0),
                         min(math.ceil(top + (i + 1) * (bottom - top) / SIZE[0]), HEIGHT))
            columns = range(max(math.floor(left + j * (right - left) / SIZE[1]), 0),
                            min(math.ceil(left + (j + 1) * (right - left) / SIZE[1]), WIDTH))
            if len(rows) and len(columns):
                window = images[int(image)][:, rows.start:rows.stop, columns.start:columns.stop]
                out[index, :, i, j] = window.amax((1, 2))
    return out


def test_roi_pool(device):
    out = roi_pool(maps().to(device), regions().to(device), SIZE, SCALE)
    torch.testing.assert_close(out.cpu(), pool(maps(), regions()), rtol=0, atol=0)
    assert torch.autograd.gradcheck(
        lambda x: roi_pool(x, regions().to(device), SIZE, SCALE), maps().to(device).requires_grad_(),
        nondet_tol=1e-12, fast_mode=True)


def test_regions_without_area_are_zero_and_take_no_gradient(device):
    rois = torch.tensor([[0.0, 8, 8, 8, 8], [0, 20, 20, 4, 4], [1, 500, 500, 600, 600]], device=device)
    for function in (
        lambda x: roi_pool(x, rois[1:], SIZE, SCALE),
        lambda x: roi_align(x, rois, SIZE, SCALE, 0, 'max'),
        lambda x: roi_align(x, rois, SIZE, SCALE, 0, 'avg'),
    ):
        out, grad = with_gradients(function, maps(torch.float32).to(device) - 3)
        assert not out.any() and not grad.any()


def test_without_regions(device):
    rois = torch.zeros(0, 5, device=device)
    for function in (
        lambda x: roi_pool(x, rois, SIZE, SCALE),
        lambda x: roi_align(x, rois, SIZE, SCALE, 0, 'max'),
        lambda x: roi_align(x, rois, SIZE, SCALE, 0, 'avg'),
    ):
        out, grad = with_gradients(function, maps(torch.float32).to(device))
        assert out.shape == (0, 3, *SIZE) and not grad.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(device, dtype):
    """Half boxes are coarse, so float32 gets the same; where a maximum lies is kept in half, so its gradient differs"""
    images, rois = maps(torch.float32).to(device, dtype), regions(dtype=torch.float32).to(device, dtype)
    for function in (
        lambda x, rois: roi_pool(x, rois, SIZE, SCALE),
        lambda x, rois: roi_align(x, rois, SIZE, SCALE, 0, 'max'),
        lambda x, rois: roi_align(x, rois, SIZE, SCALE, 0, 'avg'),
    ):
        out, grad = with_gradients(lambda x, run=function: run(x, rois), images)
        exact = function(images.float(), rois.float())
        assert out.dtype == grad.dtype == dtype and grad.any()
        torch.testing.assert_close(out, exact.to(dtype))
        with torch.autocast(device.type, dtype):
            torch.testing.assert_close(function(images.float(), rois.float()), exact)


def test_wrong_shapes_are_refused(device, our_operators):
    import mmcv._ext

    x, rois = maps(torch.float32).to(device), torch.zeros(4, 5, device=device)
    sizes = dict(aligned_height=3, aligned_width=2, spatial_scale=1.0, sampling_ratio=0, pool_mode=1, aligned=True)
    none = x.new_zeros(0)
    with pytest.raises(ValueError, match=r'4 rois of 3 channels, pooled to 3x2, are not \(4, 3, 2, 2\)'):
        mmcv._ext.roi_align_forward(x, rois, x.new_zeros(4, 3, 2, 2), none, none, **sizes)
    with pytest.raises(ValueError, match=r'rois are \(4, 4\), not \(number, 5\)'):
        mmcv._ext.roi_align_forward(x, rois[:, :4], x.new_zeros(4, 3, 3, 2), none, none, **sizes)


@needs_compiled
@pytest.mark.parametrize('seed', range(24))
def test_as_compiled(seed):
    """A region has an extent here: the compiled maximum of no samples is -10000."""
    aligned, mode, ratio = seed % 2 == 1, ('avg', 'max')[seed // 2 % 2], seed // 4 % 3
    dtype = (torch.float32, torch.float64)[seed // 12]
    rois = regions(20, seed, dtype)
    ours, compiled = ours_and_compiled(lambda: with_gradients(
        lambda x: roi_align(x, rois, (7, 5), SCALE, ratio, mode, aligned), maps(dtype)))
    assert largest_difference(ours, compiled) < 1e-5
