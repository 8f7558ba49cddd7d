"""Attention with dropout in blocks of queries, against the whole matrix."""

import pytest
import torch

from deit_detr.models.attention import attention_with_dropout, draw_kept


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('block', [7, 20, 256])
def test_blocks_are_the_whole_matrix(block, padded):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 20, 8, generator=generator, requires_grad=True) for _ in range(3)]
    takes_part = torch.ones(2, 1, 1, 20, dtype=torch.bool)
    takes_part[1, ..., 15:] = not padded

    torch.manual_seed(5)
    out = attention_with_dropout(*inputs, takes_part if padded else None, dropout=0.3, block=block)
    torch.manual_seed(5)
    kept = draw_kept((2, 3, 20, 20), 0.3)
    q, k, v = inputs
    weights = (q @ k.mT / 8**0.5).masked_fill(~takes_part, -torch.inf).softmax(-1)
    expected = (weights * kept / 0.7) @ v
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    for a, b in zip(torch.autograd.grad(out.sin().sum(), inputs),
                    torch.autograd.grad(expected.sin().sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize('dropout', [0.1, 0.5])
def test_draws_are_independent_with_the_right_rate(dropout):
    torch.manual_seed(0)
    kept = draw_kept((1001, 999), dropout)
    assert kept.shape == (1001, 999) and kept.dtype == torch.bool
    spread = (dropout * (1 - dropout) / kept.numel()) ** 0.5
    assert abs(kept.float().mean() - (1 - dropout)) < 4 * spread
    # four neighbours share a draw: no two of them may be correlated
    flat = kept.flatten()
    for distance in (1, 2, 3, 4):
        both = (flat[distance:] & flat[:-distance]).float().mean()
        assert abs(both - (1 - dropout) ** 2) < 8 * spread
