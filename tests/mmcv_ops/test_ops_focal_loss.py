"""Focal losses against their definition, written out in float64."""

import math

import pytest
import torch
from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss

pytestmark = pytest.mark.usefixtures('our_operators')

ROWS, CLASSES = 9, 4
TARGET = torch.tensor([0, 1, 2, 3, 4, 4, -1, -100, 1])  # 4 is background, and so are negative ones
WEIGHT = torch.tensor([0.5, 2.0, 1.5, 3.0], dtype=torch.float64)


def logits(dtype=torch.float64) -> torch.Tensor:
    return (4 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


def sigmoid_losses(scores, target, gamma, alpha, weight=None) -> torch.Tensor:
    losses = torch.zeros(scores.shape, dtype=torch.float64)
    for row, label in enumerate(target.tolist()):
        for column in range(scores.shape[1]):
            p = 1 / (1 + math.exp(-scores[row, column]))
            right = label == column
            loss = -alpha * (1 - p) ** gamma * math.log(p) if right else -(1 - alpha) * p**gamma * math.log(1 - p)
            factor = weight[label] if weight is not None and 0 <= label < scores.shape[1] else 1
            losses[row, column] = factor * loss
    return losses


@pytest.mark.parametrize('weight', [None, WEIGHT], ids=['all equal', 'weighted'])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.75)])
def test_sigmoid(device, gamma, alpha, weight):
    weight_there = None if weight is None else weight.to(device)
    expected = sigmoid_losses(logits(), TARGET, gamma, alpha, weight)
    args = (TARGET.to(device), gamma, alpha, weight_there)
    out = sigmoid_focal_loss(logits().to(device), *args, 'none')
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(sigmoid_focal_loss(logits().to(device), *args, 'sum').cpu(), expected.sum())
    torch.testing.assert_close(sigmoid_focal_loss(logits().to(device), *args).cpu(), expected.sum() / ROWS)
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, *args, 'none'), logits().to(device).requires_grad_())


@pytest.mark.parametrize('weight', [None, WEIGHT], ids=['all equal', 'weighted'])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.0, 0.5), (0.5, 1.0)])
def test_softmax(device, gamma, alpha, weight):
    target = TARGET.where(TARGET < CLASSES, 0)
    expected = torch.zeros(ROWS, dtype=torch.float64)
    for row, label in enumerate(target.tolist()):
        if label >= 0:
            p = float(logits()[row].softmax(0)[label])
            factor = 1 if weight is None else float(weight[label])
            expected[row] = -factor * alpha * (1 - p) ** gamma * math.log(p)
    args = (target.to(device), gamma, alpha, None if weight is None else weight.to(device))
    torch.testing.assert_close(
        softmax_focal_loss(logits().to(device), *args, 'none').cpu(), expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(
        lambda x: softmax_focal_loss(x, *args, 'sum'), logits().to(device).requires_grad_())


def test_softmax_of_a_sure_score_has_a_gradient(device):
    x = torch.tensor([[200.0, 0.0]], device=device, requires_grad=True)
    for gamma in (0.0, 0.5, 2.0):
        loss = softmax_focal_loss(x, torch.tensor([0], device=device), gamma, 0.25, None, 'sum')
        assert torch.autograd.grad(loss, x)[0].tolist() == [[0, 0]]


def test_sure_and_wrong_scores_keep_their_loss(device):
    x = torch.tensor([[16.0], [17.0], [30.0], [100.0]], device=device)
    background = torch.ones(4, dtype=torch.long, device=device)
    losses = sigmoid_focal_loss(x, background, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(losses, 0.75 * x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(device, dtype):
    x = logits(dtype).to(device)
    for function, target in ((sigmoid_focal_loss, TARGET), (softmax_focal_loss, TARGET.where(TARGET < CLASSES, 0))):
        leaf = x.clone().requires_grad_()
        losses = function(leaf, target.to(device), 2.0, 0.25, None, 'none')
        grad, = torch.autograd.grad(losses.sum() if function is sigmoid_focal_loss else function(
            leaf, target.to(device), 2.0, 0.25, None, 'sum'), leaf)
        exact = function(x.float(), target.to(device), 2.0, 0.25, None, 'none')
        assert losses.dtype == grad.dtype == dtype
        # softmax itself is mmcv's, in the type of the logits
        tolerance = torch.finfo(dtype).eps * (1 if function is sigmoid_focal_loss else 60)
        torch.testing.assert_close(losses.float(), exact, rtol=tolerance, atol=tolerance)


def test_no_rows(device):
    x = torch.zeros(0, CLASSES, device=device, requires_grad=True)
    target = torch.zeros(0, dtype=torch.long, device=device)
    for function in (sigmoid_focal_loss, softmax_focal_loss):
        loss = function(x, target, 2.0, 0.25, None, 'sum')
        assert loss == 0 and torch.autograd.grad(loss, x)[0].shape == x.shape


def test_wrong_targets_are_refused_on_a_cpu():
    x = torch.zeros(2, CLASSES)
    with pytest.raises(ValueError, match='a target is 5, but the largest class is 4'):
        sigmoid_focal_loss(x, torch.tensor([0, 5]))
    with pytest.raises(ValueError, match='a target is 4, but the largest class is 3'):
        softmax_focal_loss(x, torch.tensor([0, 4]))
