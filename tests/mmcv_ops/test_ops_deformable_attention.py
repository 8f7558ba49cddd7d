"""The operators of deformable attention, which mmcv runs on CUDA, against mmcv's function for CPUs."""

import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from mmcv_ops.deformable_attention import deformable_attention
from torch.library import opcheck

from tests.helpers.operators import with_gradients

pytestmark = pytest.mark.usefixtures('our_operators')

SHAPES = torch.tensor([(6, 9), (3, 5), (1, 1)])
STARTS = torch.tensor([0, 54, 69])


def tensors(batch=2, queries=7, dtype=torch.float64) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    value = torch.randn(batch, 70, 3, 4, generator=random, dtype=torch.float64)
    locations = 1.6 * torch.rand(batch, queries, 3, 3, 2, 2, generator=random, dtype=torch.float64) - 0.3
    weights = torch.rand(batch, queries, 3, 3, 2, generator=random, dtype=torch.float64)
    return [x.to(dtype) for x in (value, locations, weights)]


def attend(value, locations, weights) -> torch.Tensor:
    shapes, starts = SHAPES.to(value.device), STARTS.to(value.device)
    return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)


def reference(value, locations, weights) -> torch.Tensor:
    return multi_scale_deformable_attn_pytorch(value, SHAPES.to(value.device), locations, weights)


def test_it_is_mmcvs_function(device):
    inputs = [x.to(device) for x in tensors()]
    for a, b in zip(with_gradients(attend, *inputs), with_gradients(reference, *inputs), strict=True):
        assert b.abs().max() > 0.01
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        attend, [x.requires_grad_() for x in inputs], nondet_tol=1e-10, fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(device, dtype):
    inputs = [x.to(device) for x in tensors(dtype=dtype)]
    exact = with_gradients(attend, *(x.float() for x in inputs))
    for a, b in zip(with_gradients(attend, *inputs), exact, strict=True):
        assert a.dtype == dtype
        assert (a.float() - b).norm() < 4 * torch.finfo(dtype).eps * b.norm()


@pytest.mark.parametrize(('batch', 'queries'), [(0, 7), (2, 0)])
def test_empty(device, batch, queries):
    out, *grads = with_gradients(attend, *(x.to(device) for x in tensors(batch, queries)))
    assert out.shape == (batch, queries, 12) and not any(grad.any() for grad in grads)


def test_shapes_that_do_not_fit_the_tokens_are_refused():
    value, locations, weights = tensors()
    with pytest.raises(RuntimeError, match='split'):  # a GPU does not read them on the host
        attend(value[:, 1:], locations, weights)
    with pytest.raises(ValueError, match='70 tokens, value has 69'):
        deformable_attention(value[:, 1:], SHAPES.tolist(), locations, weights)


def test_operators_are_registered_as_pytorch_asks(device):
    value, *others = (x.to(device) for x in tensors(dtype=torch.bfloat16))
    others = [SHAPES.to(device), *(x.float().requires_grad_() for x in others)]
    opcheck(torch.ops.mmcv_ops.deformable_attention.default, (value.requires_grad_(), *others))
    inputs = [torch.ones_like(value[:, :7]).flatten(2), value, *others]
    opcheck(torch.ops.mmcv_ops.deformable_attention_backward.default, tuple(x.detach() for x in inputs))


def test_second_derivatives_are_refused(device):
    value, *others = (x.to(device).requires_grad_() for x in tensors())
    grad, = torch.autograd.grad(
        deformable_attention(value, SHAPES.tolist(), *others).square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match='differentiate twice'):
        grad.sum().backward()
