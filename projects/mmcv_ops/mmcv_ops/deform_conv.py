"""Deformable convolution without (arXiv 1703.06211) and with (arXiv 1811.11168) modulation."""

from collections.abc import Callable

import torchvision
from torch import Tensor

from mmcv_ops.common import gradients, wide


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, kW: int, kH: int,
    dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int, group: int, deformable_group: int,
    im2col_step: int) -> None:
    """Convolve with a kernel whose sampling points are shifted by offsets.

    Args:
        input (Tensor): ``(batch, channels, height, width)``.
        weight (Tensor): ``(out_channels, channels / group, kH, kW)``.
        offset (Tensor): (dy, dx) of each point, in pixels: ``(batch, 2 * deformable_group * kH * kW, out_height,
            out_width)``.
        output (Tensor): Receives the result, ``(batch, out_channels, out_height, out_width)``.
        columns (Tensor): Not used.
        ones (Tensor): Not used.
        kW (int): Width of the kernel.
        kH (int): Height of the kernel.
        dW (int): Horizontal stride.
        dH (int): Vertical stride.
        padW (int): Columns of zeros on the left and on the right.
        padH (int): Rows of zeros above and below.
        dilationW (int): Horizontal dilation.
        dilationH (int): Vertical dilation.
        group (int): Number of groups of the convolution.
        deformable_group (int): Number of groups of channels with separate offsets.
        im2col_step (int): Not used.

    Raises:
        ValueError: If numbers of channels or kernel sizes do not match.
    """
    convolve = _convolution(
        input, offset, weight, (kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    output.copy_(convolve(wide(input), wide(offset), wide(weight)))


def deform_conv_backward_input(
    input: Tensor, offset: Tensor, grad_output: Tensor, grad_input: Tensor, grad_offset: Tensor, weight: Tensor,
    columns: Tensor, kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
    group: int, deformable_group: int, im2col_step: int) -> None:
    """Write the gradients of :func:`deform_conv_forward` into ``grad_input`` and ``grad_offset``."""
    convolve = _convolution(
        input, offset, weight, (kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    grads = gradients(
        lambda *inputs: convolve(*inputs, wide(weight)), (wide(input), wide(offset)), wide(grad_output))
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor, offset: Tensor, grad_output: Tensor, grad_weight: Tensor, columns: Tensor, ones: Tensor, kW: int,
    kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int, group: int,
    deformable_group: int, scale: float, im2col_step: int) -> None:
    """Write ``scale`` times the gradient of :func:`deform_conv_forward` into ``grad_weight``."""
    convolve = _convolution(
        input, offset, grad_weight, (kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    grad, = gradients(
        lambda weight: convolve(wide(input), wide(offset), weight), [wide(grad_weight)], wide(grad_output))
    grad_weight.copy_(scale * grad)


def modulated_deform_conv_forward(
    input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, output: Tensor,
    columns: Tensor, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
    dilation_h: int, dilation_w: int, group: int, deformable_group: int, with_bias: bool) -> None:
    """Convolve as :func:`deform_conv_forward`, with a factor for each sample and, if ``with_bias``, a bias.

    ``mask`` has the factors, ``(batch, deformable_group * kernel_h * kernel_w, out_height, out_width)``.
    """
    convolve = _convolution(
        input, offset, weight, (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w),
        group, deformable_group)
    inputs = (input, offset, weight, mask, bias) if with_bias else (input, offset, weight, mask)
    output.copy_(convolve(*map(wide, inputs)))


def modulated_deform_conv_backward(
    input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, columns: Tensor,
    grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor, grad_offset: Tensor, grad_mask: Tensor,
    grad_output: Tensor, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
    dilation_h: int, dilation_w: int, group: int, deformable_group: int, with_bias: bool) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward` into the tensors ``grad_*`` of its inputs."""
    convolve = _convolution(
        input, offset, weight, (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w),
        group, deformable_group)
    inputs = (input, offset, weight, mask, bias) if with_bias else (input, offset, weight, mask)
    grads = gradients(convolve, [wide(x) for x in inputs], wide(grad_output))
    targets = (grad_input, grad_offset, grad_weight, grad_mask, grad_bias)
    for target, grad in zip(targets, grads, strict=False):
        target.copy_(grad)


def _convolution(
    input: Tensor, offset: Tensor, weight: Tensor, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int], group: int, deformable_group: int) -> Callable[..., Tensor]:
    """Check the groups, which torchvision infers from shapes; return a function of (input, offset, weight, ...)."""
    if weight.shape[2:] != kernel:
        raise ValueError(f'the weight is {tuple(weight.shape)}, but the kernel is {kernel[0]}x{kernel[1]}')
    if input.shape[1] != group * weight.shape[1]:
        raise ValueError(f'the input has {input.shape[1]} channels, not {group} groups of {weight.shape[1]}')
    if offset.shape[1] != 2 * deformable_group * kernel[0] * kernel[1]:
        raise ValueError(
            f'the offset has {offset.shape[1]} channels, not 2 * {deformable_group} * {kernel[0]} * {kernel[1]}')

    def convolve(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None, bias: Tensor | None = None):
        return torchvision.ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)

    return convolve
