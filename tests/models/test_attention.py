"""Fused attention against mmcv's; with dropout, in blocks of queries, against the whole matrix."""

import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention

from deit_detr.models.attention import FusedAttention, attention_with_dropout, draw_kept

#: 20 queries and keys: two groups of denoising queries do not attend to each other, other queries to neither.
GROUPS = torch.zeros(20, 20, dtype=torch.bool)
GROUPS[6:, :6] = GROUPS[:3, 3:6] = GROUPS[3:6, :3] = True


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
@pytest.mark.parametrize('attn_mask', [None, GROUPS], ids=['all', 'groups'])
def test_masks_are_those_of_mmcv(attn_mask, padded):
    torch.manual_seed(0)
    # without dropout_layer, mmcv's takes the dropout of the module built before it in this process
    plain = MultiheadAttention(24, 3, batch_first=True, dropout_layer=None)
    fused = FusedAttention(plain)
    query, pos = torch.randn(2, 20, 24, requires_grad=True), torch.randn(2, 20, 24)
    padding = torch.zeros(2, 20, dtype=torch.bool)
    padding[1, 15:] = True
    results = []
    for module in (plain, fused):
        out = module(
            query, query_pos=pos, attn_mask=attn_mask, key_padding_mask=padding if padded else None,
            reference_points=None)
        results.append([out, *torch.autograd.grad(out.sin().sum(), [query, *plain.parameters()])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_other_masks_are_refused():
    fused = FusedAttention(MultiheadAttention(24, 3, batch_first=True))
    for mask in (torch.zeros(20, 20), torch.zeros(6, 20, 20, dtype=torch.bool)):
        with pytest.raises(ValueError, match='boolean attn_mask'):
            fused(torch.randn(2, 20, 24), attn_mask=mask)


@pytest.mark.parametrize('masked', ['nothing', 'padding', 'groups'])
@pytest.mark.parametrize('block', [7, 20, 256])
def test_blocks_are_the_whole_matrix(block, masked):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 20, 8, generator=generator, requires_grad=True) for _ in range(3)]
    takes_part = torch.ones(2, 1, 1, 20, dtype=torch.bool)
    takes_part[1, ..., 15:] = masked == 'nothing'
    if masked == 'groups':
        takes_part = takes_part & ~GROUPS

    torch.manual_seed(5)
    out = attention_with_dropout(*inputs, None if masked == 'nothing' else takes_part, dropout=0.3, block=block)
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
    # four neighbours share a draw: they must not be correlated
    flat = kept.flatten()
    for distance in (1, 2, 3, 4):
        both = (flat[distance:] & flat[:-distance]).float().mean()
        assert abs(both - (1 - dropout) ** 2) < 8 * spread
