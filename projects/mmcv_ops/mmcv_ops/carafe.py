"""Content-aware upsampling (CARAFE, arXiv 1905.02188)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcv_ops.common import gradients, wide


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> None:
    """Upsample by weighted sums of the window around each pixel, ``scale_factor ** 2`` for each pixel.

    Args:
        features (Tensor): ``(batch, channels, height, width)``.
        masks (Tensor): Weights, ``(batch, group_size * kernel_size ** 2, height * scale_factor, width *
            scale_factor)``.
        output (Tensor): Receives the sums, ``(batch, channels, height * scale_factor, width * scale_factor)``.
        kernel_size (int): Side of a window, odd.
        group_size (int): Number of groups of channels with separate weights.
        scale_factor (int): At least 1.
    """
    output.copy_(_upsample(wide(features), wide(masks, features), kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    grad_output: Tensor, features: Tensor, masks: Tensor, grad_features: Tensor, grad_masks: Tensor, kernel_size: int,
    group_size: int, scale_factor: int) -> None:
    """Write the gradients of :func:`carafe_naive_forward` into ``grad_features`` and ``grad_masks``."""
    grads = gradients(
        lambda *inputs: _upsample(*inputs, kernel_size, group_size, scale_factor),
        (wide(features), wide(masks, features)), wide(grad_output, features))
    grad_features.copy_(grads[0])
    grad_masks.copy_(grads[1])


def carafe_forward(
    features: Tensor, masks: Tensor, rfeatures: Tensor, routput: Tensor, rmasks: Tensor, output: Tensor,
    kernel_size: int, group_size: int, scale_factor: int) -> None:
    """Upsample as :func:`carafe_naive_forward`; ``rfeatures`` keeps the features, other buffers are not used."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    grad_output: Tensor, rfeatures: Tensor, masks: Tensor, rgrad_output: Tensor, rgrad_input_hs: Tensor,
    rgrad_input: Tensor, rgrad_masks: Tensor, grad_input: Tensor, grad_masks: Tensor, kernel_size: int,
    group_size: int, scale_factor: int) -> None:
    """Write the gradients of :func:`carafe_forward`; buffers with names in ``rgrad*`` are not used."""
    carafe_naive_backward(
        grad_output, rfeatures, masks, grad_input, grad_masks, kernel_size, group_size, scale_factor)


def _upsample(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    height, width = features.shape[2:]
    windows = F.unfold(features, kernel, padding=kernel // 2).unflatten(2, (height, width))
    windows = windows.unflatten(1, (groups, -1, kernel**2))
    masks = masks.unflatten(3, (width, scale)).unflatten(2, (height, scale)).unflatten(1, (groups, kernel**2))
    out = torch.einsum('bgckhw,bgkhiwj->bgchiwj', windows, masks)
    return out.flatten(5, 6).flatten(3, 4).flatten(1, 2)
