"""Run the same call with the operators of mmcv_ops and with mmcv's compiled ones, if mmcv has them."""

from collections.abc import Callable
from unittest import mock

import mmcv._ext
import pytest
import torch
from mmcv_ops import OPERATORS
from torch import Tensor

COMPILED = {
    name: getattr(mmcv._ext, name) for name in OPERATORS} if mmcv._ext.__file__.endswith(('.so', '.pyd')) else {}
needs_compiled = pytest.mark.skipif(not COMPILED, reason='needs a compiled mmcv')


def ours_and_compiled(call: Callable):
    """Return the results of a call of mmcv.ops with each."""
    results = []
    for operators in (OPERATORS, COMPILED):
        with mock.patch.multiple(mmcv._ext, create=True, **operators):
            results.append(call())
    return results


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return a function's result and the gradients of its inputs, for an upstream gradient of different values."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Return the largest absolute difference; infinite where only one of two values is NaN."""
    assert len(a) == len(b)
    differences = [0.0]
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        x, y = x.double(), y.double()
        difference = (x - y).abs().nan_to_num(torch.inf).masked_fill((x == y) | (x.isnan() & y.isnan()), 0)
        differences.append(float(difference.max()) if x.numel() else 0.0)
    return max(differences)


def random_boxes(number: int, generator: torch.Generator, size: float = 100, dtype=torch.float32) -> Tensor:
    """Draw boxes ``(x1, y1, x2, y2)``; every eighth repeats the one before, and some have integer coordinates."""
    corners = size * torch.rand(number, 2, 2, generator=generator, dtype=dtype)
    corners[::3] = corners[::3].round()
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    boxes[7::8] = boxes[6::8][: len(boxes[7::8])]
    return boxes
