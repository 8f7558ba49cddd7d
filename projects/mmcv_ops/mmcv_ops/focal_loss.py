"""Focal loss (arXiv 1708.02002) of logits and of softmax scores, and its gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcv_ops.common import wide

TINY = torch.finfo(torch.float32).tiny


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float) -> None:
    """Compute the loss of each class of each row.

    It is computed from the logit. The compiled operator uses the logarithm of a rounded probability, and jumps from 17
    to 87 in float32 for confident wrong scores.

    Args:
        input (Tensor): Logits, ``(rows, classes)``.
        target (Tensor): Class of each row, int64 ``(rows,)``; other numbers up to ``classes`` are background.
        weight (Tensor): Weight of a row by its target, ``(classes,)``, 1 for background. Empty: no weights.
        output (Tensor): Receives the losses, ``(rows, classes)``.
        gamma (float): Focusing parameter, at least 0.
        alpha (float): Weight of the target class; other classes have ``1 - alpha``.

    Raises:
        ValueError: If a target is larger than the number of classes, on a CPU; on other devices it is background.
    """
    logits, _, factor = _towards_target(input, target, weight, alpha)
    output.copy_(-factor * torch.sigmoid(-logits).pow(gamma) * F.logsigmoid(logits))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float) -> None:
    """Write the derivative of each loss of :func:`sigmoid_focal_loss_forward` by its logit into ``grad_input``."""
    logits, sign, factor = _towards_target(input, target, weight, alpha)
    wrong = torch.sigmoid(-logits)
    grad = wrong - gamma * torch.sigmoid(logits) * F.logsigmoid(logits)
    grad_input.copy_(-sign * factor * wrong.pow(gamma) * grad)


def _towards_target(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits of the right answer (this class, or not this class), their sign and the factor of their loss."""
    classes = input.shape[1]
    _check_targets(target, classes)
    right = target[:, None] == torch.arange(classes, device=target.device)
    logits = wide(input)
    sign = torch.where(right, 1, -1).to(logits)
    factor = torch.where(right, alpha, 1 - alpha).to(logits)
    if weight.numel():
        is_class = (target >= 0) & (target < classes)
        factor *= torch.where(is_class, wide(weight)[target.clamp(0, classes - 1)], 1)[:, None]
    return sign * logits, sign, factor


def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float) -> None:
    """Compute the loss of each row.

    Args:
        softmax (Tensor): Scores, ``(rows, classes)``.
        target (Tensor): Class of each row, int64 ``(rows,)``; rows with negative targets have no loss.
        weight (Tensor): Weight of a row by its target, ``(classes,)``. Empty: no weights.
        output (Tensor): Receives the losses, ``(rows,)``.
        gamma (float): Focusing parameter, at least 0.
        alpha (float): Factor of all losses.

    Raises:
        ValueError: If a target is not less than the number of classes, on a CPU; the compiled operator would read the
            next row. On a GPU an assertion of PyTorch stops the process.
    """
    score, _, factor = _score_of_target(softmax, target, weight)
    output.copy_(-alpha * factor * (1 - score).pow(gamma) * score.clamp(min=TINY).log())


def softmax_focal_loss_backward(
    softmax: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float,
) -> None:
    """Write the gradients of :func:`softmax_focal_loss_forward`.

    ``buff`` (rows,) receives the derivative by the logarithm of the target's score, ``grad_input`` (rows, classes)
    the derivative by the logits.
    """
    score, index, factor = _score_of_target(softmax, target, weight)
    wrong = (1 - score).clamp(min=TINY)  # the exponent may be negative
    grad = gamma * wrong.pow(gamma - 1) * score * score.clamp(min=TINY).log() - wrong.pow(gamma)
    grad = alpha * factor * grad
    buff.copy_(grad)
    right = index[:, None] == torch.arange(softmax.shape[1], device=target.device)
    grad_input.copy_(grad[:, None] * (right.to(grad) - wide(softmax)))


def _score_of_target(softmax: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _check_targets(target, softmax.shape[1] - 1)
    index = target.clamp(min=0)
    factor = (target >= 0).to(wide(softmax))
    if weight.numel():
        factor *= weight[index]
    return wide(softmax).gather(1, index[:, None])[:, 0], index, factor


def _check_targets(target: Tensor, largest: int) -> None:
    # not on a GPU, where every loss would wait for the device
    if target.device.type == 'cpu' and target.numel() and target.max() > largest:
        raise ValueError(f'a target is {int(target.max())}, but the largest class is {largest}')
