"""The simple feature pyramid: its sizes, and ViTDet's layers written out."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from deit_detr.models.simple_fpn import SimpleFPN


def build(**kwargs) -> SimpleFPN:
    init_default_scope('mmdet')
    torch.manual_seed(0)
    neck = MODELS.build(dict(type='SimpleFPN', out_channels=16) | kwargs)
    neck.init_weights()
    return neck


@pytest.mark.parametrize('size', [(6, 8), (5, 7), (1, 1)])
def test_sizes_are_those_of_the_strides_rounded_up(size):
    strides = [4, 8, 16, 32, 64]
    levels = build(in_channels=[8], strides=strides)((torch.randn(2, 8, *size),))
    assert [level.shape for level in levels] == [
        (2, 16, *(-(-side * 16 // stride) for side in size)) for stride in strides]


def test_levels_are_those_of_vitdet():
    neck, x = build(in_channels=[8], strides=[4, 8, 16, 32]), torch.randn(2, 8, 6, 8)
    weights = [list(level.parameters()) for level in neck.levels]

    def norm(x, weight, bias):  # over channels
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]

    def deconv(x, weight, bias):  # each token becomes 2x2, independently
        out = torch.einsum('nchw,cdij->ndhiwj', x, weight)
        return out.flatten(4).flatten(2, 3) + bias[:, None, None]

    quarter = deconv(F.gelu(norm(deconv(x, *weights[0][:2]), *weights[0][2:4])), *weights[0][4:6])
    half = deconv(x, *weights[1][:2])
    pooled = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax((3, 5))
    for level, resampled, params in zip(neck((x,)), (quarter, half, x, pooled), weights, strict=True):
        conv1, weight1, bias1, conv3, weight3, bias3 = params[-6:]
        expected = norm(torch.einsum('nchw,dc->ndhw', resampled, conv1[..., 0, 0]), weight1, bias1)
        expected = norm(F.conv2d(expected, conv3, padding=1), weight3, bias3)
        torch.testing.assert_close(level, expected, rtol=0, atol=1e-5)


def test_an_odd_border_is_not_left_out():
    pool = build(in_channels=[8], strides=[32]).levels[0][0]
    x = torch.zeros(1, 8, 5, 7)
    x[..., 4, 6] = 1
    pooled = pool(x)
    assert pooled.shape[-2:] == (3, 4) and (pooled[..., 2, 3] == 1).all() and pooled.sum() == 8


def test_several_layers_count_alike():
    """The backbone normalizes only its last layer: the scale of the others must not matter."""
    neck = build(in_channels=[8, 8, 8])
    inputs = [torch.randn(2, 8, 6, 8) for _ in range(3)]
    for a, b in zip(neck(inputs), neck([inputs[0] * 50, inputs[1], inputs[2]]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    without = neck([torch.zeros_like(inputs[0]), *inputs[1:]])
    assert all((a - b).abs().max() > 0.1 for a, b in zip(neck(inputs), without, strict=True))


def test_padding_changes_only_what_is_beside_it():
    """There are no statistics over the map: features far from the padding are the same in every batch."""
    neck, x = build(in_channels=[8]), torch.randn(1, 8, 12, 16)
    for a, b in zip(neck((x,)), neck((F.pad(x, (0, 8, 0, 8)),)), strict=True):
        a = a[..., :-1, :-1]
        torch.testing.assert_close(a, b[..., :a.shape[2], :a.shape[3]], rtol=0, atol=1e-5)


def test_wrong_strides_and_inputs_are_refused():
    with pytest.raises(ValueError, match='power of 2, not 12'):
        build(in_channels=[8], strides=[8, 12])
    with pytest.raises(ValueError, match='zip'):
        build(in_channels=[8])((torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4)))


def test_layers_come_from_the_backbone_as_a_list():
    init_default_scope('mmdet')
    backbone = MODELS.build(dict(
        type='mmpretrain.VisionTransformer', img_size=32, patch_size=16, out_indices=[0, -1], with_cls_token=False,
        out_type='featmap', arch=dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16)))
    levels = build(in_channels=[8, 8])(backbone(torch.randn(1, 3, 48, 64)))
    assert [level.shape[2:] for level in levels] == [(6, 8), (3, 4), (2, 2)]
