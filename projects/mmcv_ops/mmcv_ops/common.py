"""Helpers of the operators: the type of computation, and gradients by recomputation."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def wide(x: Tensor, *others: Tensor) -> Tensor:
    """Return ``x`` in the type of computation: the common type of all tensors, at least float32."""
    return x.to(functools.reduce(torch.promote_types, (y.dtype for y in (x, *others)), torch.float32))


def as_operator(function: Callable) -> Callable:
    """Make a function run like a compiled operator: without autograd, which mmcv adds itself, and autocast."""
    @functools.wraps(function)
    def run(*args, **kwargs):
        device = next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    """Recompute a function and return the gradients of its inputs.

    Args:
        function (Callable): The function of the inputs.
        inputs (Sequence[Tensor]): Tensors of a floating type.
        upstream (Tensor): Gradient of the result.

    Returns:
        tuple[Tensor, ...]: The gradient of each input.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        return torch.autograd.grad(function(*leaves), leaves, upstream)
