"""Deformable and masked convolutions and CARAFE against loops and plain convolutions, and mmcv's compiled operators."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import MaskedConv2d, carafe, carafe_naive, deform_conv2d, modulated_deform_conv2d
from torch import Tensor

from tests.helpers.operators import largest_difference, needs_compiled, ours_and_compiled, with_gradients

pytestmark = pytest.mark.usefixtures('our_operators')

STRIDE, PADDING, DILATION = (2, 1), (1, 2), (1, 2)
KERNEL, IN, OUT = (3, 2), (7, 6), (4, 8)
GROUPS = pytest.mark.parametrize(('group', 'deformable_group'), [(1, 1), (2, 1), (1, 4), (2, 2)])


def tensors(group=1, deformable_group=1, dtype=torch.float64, seed=0, batch=2) -> tuple[Tensor, ...]:
    """Input, offset, weight, mask and bias."""
    random = torch.Generator().manual_seed(seed)
    points = deformable_group * math.prod(KERNEL)
    shapes = (batch, 4, *IN), (batch, 2 * points, *OUT), (6, 4 // group, *KERNEL), (batch, points, *OUT), (6,)
    return tuple(torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes)


def deform(group, deformable_group):
    """Both kinds of deformable convolution, by the number of their inputs."""
    def run(input, offset, weight, mask=None, bias=None):
        settings = (STRIDE, PADDING, DILATION, group, deformable_group)
        if mask is None:
            return deform_conv2d(input, offset, weight, *settings)
        return modulated_deform_conv2d(input, offset, mask, weight, bias, *settings)

    return run


def between(image: Tensor, y: float, x: float) -> float:
    """Of one channel, with zeros around it."""
    total, top, left = 0.0, math.floor(y), math.floor(x)
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
            total += float(image[row, column]) * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def by_definition(group, deformable_group, input, offset, weight, mask=None, bias=None) -> Tensor:
    batch, channels = input.shape[:2]
    samples = torch.zeros(batch, channels, math.prod(KERNEL), *OUT, dtype=torch.float64)
    for image, channel, i, j in itertools.product(range(batch), range(channels), *map(range, OUT)):
        first = channel // (channels // deformable_group) * math.prod(KERNEL)
        for point, (row, column) in enumerate(itertools.product(*map(range, KERNEL))):
            y = i * STRIDE[0] - PADDING[0] + row * DILATION[0] + float(offset[image, 2 * (first + point), i, j])
            x = j * STRIDE[1] - PADDING[1] + column * DILATION[1] + float(offset[image, 2 * (first + point) + 1, i, j])
            factor = 1 if mask is None else float(mask[image, first + point, i, j])
            samples[image, channel, point, i, j] = factor * between(input[image, channel], y, x)
    parts = zip(samples.flatten(3).chunk(group, dim=1), weight.flatten(2).chunk(group), strict=True)
    out = torch.cat([torch.einsum('bcks,ock->bos', part, kernel) for part, kernel in parts], dim=1)
    return out.unflatten(2, OUT) + (0 if bias is None else bias[:, None, None])


@GROUPS
@pytest.mark.parametrize('number', [3, 4, 5], ids=['v1', 'v2 without bias', 'v2'])
def test_deformable(device, group, deformable_group, number):
    inputs = tensors(group, deformable_group)[:number]
    run = deform(group, deformable_group)
    there = [x.to(device).clone().requires_grad_() for x in inputs]
    torch.testing.assert_close(run(*there).cpu(), by_definition(group, deformable_group, *inputs))
    assert torch.autograd.gradcheck(run, there, nondet_tol=1e-10, fast_mode=True)


def test_without_offsets_it_is_a_convolution(device):
    inputs = [x.to(device) for x in tensors()]
    inputs[1].zero_()
    inputs[3].fill_(1)
    expected = F.conv2d(inputs[0], inputs[2], None, STRIDE, PADDING, DILATION)
    torch.testing.assert_close(deform(1, 1)(*inputs[:3]), expected)
    torch.testing.assert_close(deform(1, 1)(*inputs), expected + inputs[4][:, None, None])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('number', [3, 5], ids=['v1', 'v2'])
def test_half_is_computed_in_float32(device, dtype, number):
    inputs = [x.to(device) for x in tensors(dtype=dtype)[:number]]
    run = deform(1, 1)
    exact = with_gradients(run, *(x.float() for x in inputs))
    for a, b in zip(with_gradients(run, *inputs), exact, strict=True):
        assert a.dtype == dtype and b.abs().max() > 0.1
        assert (a.float() - b).norm() < 4 * torch.finfo(dtype).eps * b.norm()
    with torch.autocast(device.type, dtype):
        # a GPU adds gradients up in any order
        allowed = 0 if device.type == 'cpu' else 1e-5
        assert largest_difference(with_gradients(run, *(x.float() for x in inputs)), exact) <= allowed


def test_groups_that_torchvision_would_guess_differently_are_refused(device):
    input, offset, weight, mask, bias = (x.to(device) for x in tensors(2, 2))
    with pytest.raises(ValueError, match='the input has 4 channels, not 1 groups of 2'):
        deform(1, 2)(input, offset, weight)
    with pytest.raises(ValueError, match=r'the offset has 24 channels, not 2 \* 1 \* 3 \* 2'):
        deform(2, 1)(input, offset, weight, mask, bias)


@needs_compiled
@GROUPS
@pytest.mark.parametrize('number', [3, 4, 5], ids=['v1', 'v2 without bias', 'v2'])
@pytest.mark.parametrize('seed', range(4))
def test_deformable_as_compiled(group, deformable_group, number, seed):
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
        inputs = tensors(group, deformable_group, dtype, seed)[:number]
        ours, compiled = ours_and_compiled(lambda inputs=inputs: with_gradients(
            deform(group, deformable_group), *inputs))
        assert largest_difference(ours, compiled) < tolerance


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(('kernel', 'padding'), [(1, 0), (3, 1), ((3, 5), (1, 2)), (3, 2)])
def test_masked(device, kernel, padding, dtype):
    torch.manual_seed(0)
    conv = MaskedConv2d(4, 5, kernel, padding=padding).to(device, dtype)
    x = torch.randn(1, 4, *IN, device=device, dtype=dtype)
    mask = (torch.rand(1, *IN, device=device) > 0.5).to(dtype)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        out, full = conv(x, mask), conv(x)
        assert not conv(x, torch.zeros_like(mask)).any()
    chosen = F.pad(mask > 0, (0, full.shape[3] - IN[1], 0, full.shape[2] - IN[0]))
    tolerance = dict(rtol=2e-3, atol=2e-3) if dtype == torch.float16 else {}  # the bias may come before the rounding
    torch.testing.assert_close(out, full * chosen, **tolerance)
    assert 0 < chosen.sum() < chosen.numel()


def test_a_mask_beyond_the_result_is_refused(device):
    conv = MaskedConv2d(4, 5, 3).to(device)
    with torch.no_grad(), pytest.raises(ValueError, match='a place of the mask is outside the map of 5x4'):
        conv(torch.zeros(1, 4, *IN, device=device), torch.ones(1, *IN, device=device))


def reassembled(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    batch, channels, height, width = features.shape
    out = torch.zeros(batch, channels, height * scale, width * scale, dtype=features.dtype)
    padded = F.pad(features, [kernel // 2] * 4)
    for channel, y, x in itertools.product(range(channels), range(height * scale), range(width * scale)):
        first = channel // (channels // groups) * kernel**2
        window = padded[:, channel, y // scale : y // scale + kernel, x // scale : x // scale + kernel].flatten(1)
        out[:, channel, y, x] = (window * masks[:, first : first + kernel**2, y, x]).sum(1)
    return out


@pytest.mark.parametrize(('kernel', 'groups', 'scale'), [(5, 1, 2), (3, 2, 3), (1, 4, 1)])
def test_carafe(device, kernel, groups, scale, monkeypatch):
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 3, 4, generator=random, dtype=torch.float64)
    masks = torch.randn(2, groups * kernel**2, 3 * scale, 4 * scale, generator=random, dtype=torch.float64)
    expected = reassembled(features, masks, kernel, groups, scale)
    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)  # the gradient of the naive one insists on it
    for function in (carafe, carafe_naive):
        there = [x.to(device).requires_grad_() for x in (features, masks)]
        torch.testing.assert_close(function(*there, kernel, groups, scale).cpu(), expected)
        assert torch.autograd.gradcheck(
            lambda x, y, run=function: run(x, y, kernel, groups, scale), there, nondet_tol=1e-10, fast_mode=True)
        with torch.autocast(device.type, torch.bfloat16):
            out = function(*(x.float() for x in there), kernel, groups, scale)
        torch.testing.assert_close(out.double().cpu(), expected, rtol=1e-5, atol=1e-5)
        half = function(*(x.to(device).half() for x in (features, masks)), kernel, groups, scale)
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.double().cpu(), expected, rtol=0.01, atol=0.01)
