"""The weights of a model in the type of autocast, made by one operator for each layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmdet.structures import SampleList
from torch import Tensor, nn

#: Modules whose weights autocast casts.
CAST = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.MultiheadAttention)


class WeightsCastOnce:
    """Mixin for a detector: under autocast, one operator casts the weights of each layer and one their gradients.

    Autocast casts each weight and each of its gradients alone, which is a fifth of all operators of a step. The values
    are the same. The head is left out because it computes in float32.
    """

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Compute the losses as mmdet does."""
        with cast_weights(self, batch_inputs.device.type):
            return super().loss(batch_inputs, batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Predict as mmdet does."""
        with cast_weights(self, batch_inputs.device.type):
            return super().predict(batch_inputs, batch_data_samples, rescale)


@contextmanager
def cast_weights(model: nn.Module, device_type: str) -> Iterator[None]:
    """Replace the weights by copies in the type of autocast, if it is on, until the context ends.

    Args:
        model (nn.Module): The detector. Each of its layers is cast alone, so that the gradients of the last are ready
            for other processes while those of the first are computed.
        device_type (str): Type of the device, for autocast.
    """
    replaced = []
    try:
        for part in _parts(model) if torch.is_autocast_enabled(device_type) else ():
            places = [(module._parameters, name, weight) for module in _to_cast(part)
                      for name, weight in module._parameters.items()
                      if weight is not None and weight.dtype == torch.float32
                      and (weight.requires_grad or not torch.is_grad_enabled())]
            replaced += places
            casts = _Cast.apply(torch.get_autocast_dtype(device_type), *(weight for _, _, weight in places))
            for (parameters, name, _), cast in zip(places, casts, strict=True):
                parameters[name] = cast
        yield
    finally:
        for parameters, name, weight in replaced:
            parameters[name] = weight


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of backbone, encoder and decoder, and each child, whose layers are cast already then."""
    for part in model.children():
        if part is not model.bbox_head:
            yield from getattr(part, 'layers', ())
            yield part


def _to_cast(module: nn.Module) -> Iterator[nn.Module]:
    # A checkpointed layer, whose forward mmengine replaces, computes again after the weights are in place again. The
    # CUDA graphs of a compiled one read its weights at fixed addresses.
    if 'forward' not in vars(module) and module._compiled_call_impl is None:
        if isinstance(module, CAST):
            yield module
        for child in module.children():
            yield from _to_cast(child)


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, *weights):
        return _cast(weights, dtype)

    @staticmethod
    def backward(ctx, *grads):
        return None, *_cast(grads, torch.float32)


def _cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    casts = tuple(torch.empty_like(x, dtype=dtype) for x in tensors)
    if casts:
        torch._foreach_copy_(casts, tensors)
    return casts
