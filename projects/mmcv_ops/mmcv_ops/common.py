"""What the operators share: the type they compute in, and gradients by computing again."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def wide(x: Tensor, *others: Tensor) -> Tensor:
    """A tensor in the type that operators compute in: that of all the tensors, at least float32."""
    return x.to(functools.reduce(torch.promote_types, (y.dtype for y in (x, *others)), torch.float32))


def as_operator(function: Callable) -> Callable:
    """Run a function as a compiled operator runs: without autograd, which mmcv does itself, and without autocast."""
    @functools.wraps(function)
    def run(*args, **kwargs):
        device = next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a function's inputs, by computing it again.

    Args:
        function (Callable): Takes the inputs.
        inputs (Sequence[Tensor]): Of a floating type.
        upstream (Tensor): Gradient of the result, in the result's shape.

    Returns:
        tuple[Tensor, ...]: One of each input's shape.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        return torch.autograd.grad(function(*leaves), leaves, upstream)
