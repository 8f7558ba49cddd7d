"""Count how often a training step reads from the device, which on a GPU waits for it."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.small_models import prepared


class HostReads(TorchFunctionMode):
    """Count the calls with which Python reads a tensor's values, which on a GPU wait for it."""

    READS = {
        getattr(torch.Tensor, name) for name in (
            'cpu', 'item', 'tolist', 'nonzero', 'unique', '__bool__', '__float__', '__int__', '__index__')
    } | {torch.nonzero, torch.unique}

    def __init__(self):
        self.number = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.number += func in self.READS
        return func(*args, **(kwargs or {}))


class HostReadsInside(TorchDispatchMode):
    """Count operators that read values below Python, as backward functions may."""

    READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func in self.READS
        return func(*args, **(kwargs or {}))


def reads(model, data) -> int:
    """Count the reads of a forward pass, the losses and the backward pass."""
    model.train().zero_grad()
    inputs = prepared(model, data)
    with HostReads() as outside, HostReadsInside() as inside:
        losses = model(**inputs, mode='loss')
        sum(losses.values()).backward()
    return outside.number + inside.number
