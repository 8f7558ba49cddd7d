"""The windowed ViT differs from the plain one only in layers that attend inside windows."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from deit_detr.checkpoints.pretrained import count_loaded_tensors, read_pretrained
from deit_detr.models.windowed_vit import Windows

ARCH = dict(embed_dims=24, num_layers=4, num_heads=3, feedforward_channels=48)
SIZES = [(64, 96), (80, 112), (75, 110), (16, 16), (16, 208)]  # in pixels; stride 16, windows of at most 3x4 tokens


def build(type: str, **options) -> torch.nn.Module:  # noqa: A002
    init_default_scope('mmdet')
    torch.manual_seed(0)
    cfg = dict(arch=ARCH, img_size=64, patch_size=16, with_cls_token=False, out_type='featmap') | options
    model = MODELS.build(dict(cfg, type=type))
    model.init_weights()
    with torch.no_grad():
        for param in model.parameters():  # also what starts as ones and zeros
            param.add_(torch.randn_like(param), alpha=0.1)
    model.eval()  # mmpretrain's returns nothing
    return model


def plain(**options):
    return build('mmpretrain.VisionTransformer', **options)


def windowed(global_layers, window_size=(3, 4), **options):
    return build('WindowedViT', global_layers=global_layers, window_size=window_size, **options)


def images(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_weights_are_those_of_the_plain_one():
    a, b = plain(), windowed([1, 3])
    assert list(a.state_dict()) == list(b.state_dict())
    b.load_state_dict(a.state_dict(), strict=True)
    a.load_state_dict(b.state_dict(), strict=True)


def test_pretrained_weights_arrive(deit_checkpoint):
    model = MODELS.build(dict(
        type='WindowedViT', arch='deit-tiny', img_size=224, window_size=14, global_layers=[2, 5, 8, 11],
        init_cfg=dict(type='Pretrained', checkpoint=str(deit_checkpoint), prefix='backbone.')))
    model.init_weights()
    equal, total = count_loaded_tensors(model, read_pretrained(str(deit_checkpoint)), 'backbone.')
    assert equal >= 0.99 * total and total == len(model.state_dict())


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('options', [
    dict(global_layers=[0, 1, 2, -1]), dict(global_layers=[], window_size=99), dict(global_layers=[1], window_size=13),
], ids=['all layers global', 'one window', 'one window and a global layer'])
def test_equals_the_plain_one(options, size):
    """Outputs and gradients do not depend on the order and padding of tokens."""
    a, b = plain(), windowed(**options)
    x = images(*size)
    maps = [model(x)[-1] for model in (a, b)]
    assert maps[0].shape == (2, 24, -(-size[0] // 16), -(-size[1] // 16))
    torch.testing.assert_close(maps[1], maps[0], rtol=0, atol=1e-5)
    weights = torch.randn(maps[0].shape, generator=torch.Generator().manual_seed(2))
    gradients = [
        torch.autograd.grad((m * weights).sum(), list(model.parameters()))
        for m, model in zip(maps, (a, b), strict=True)]
    for of_a, of_b in zip(*gradients, strict=True):
        torch.testing.assert_close(of_b, of_a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_window_layers_are_the_plain_layers_on_each_window(size):
    """Compare with loops over windows of the map."""
    model, reference = windowed([1, 3]), plain()
    tokens, (rows, columns) = reference.patch_embed(images(*size))
    tokens = tokens + reference.resize_pos_embed(reference.pos_embed, (4, 4), (rows, columns), 'bicubic', 0)
    x = tokens.unflatten(1, (rows, columns))
    for index, layer in enumerate(reference.layers):
        x = x.clone()
        # as few windows as there can be, all alike but the last ones
        height, width = (
            s if index in (1, 3) else -(-s // -(-s // most)) for s, most in zip((rows, columns), (3, 4), strict=True))
        for top in range(0, rows, height):
            for left in range(0, columns, width):
                window = x[:, top:top + height, left:left + width].clone()
                x[:, top:top + height, left:left + width] = layer(window.flatten(1, 2)).view_as(window)
    expected = reference.ln1(x).permute(0, 3, 1, 2)
    torch.testing.assert_close(model(images(*size))[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('global_layers', [[], [2]])
def test_windows_do_not_see_each_other(global_layers):
    """Change the lower right of four windows of 3x4 tokens."""
    model = windowed(global_layers)
    x = images(96, 128)
    changed = x.clone()
    changed[:, :, 48:, 64:] += 1
    touched = (model(changed)[0] - model(x)[0]).abs().amax((0, 1)) > 0
    if global_layers:
        assert touched.all()
    else:
        assert touched[3:, 4:].all() and touched.sum() == 12


def test_maps_of_several_layers_pass_the_final_norm():
    a = plain(out_indices=[0, 1, 3])
    b = windowed([0, 1, 2, 3], out_indices=[0, 1, 3])
    of_a, of_b = a(images(80, 112)), b(images(80, 112))
    assert len(of_b) == 3
    for index in range(3):
        expected = of_a[index] if index == 2 else a.ln1(of_a[index].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(of_b[index], expected, rtol=0, atol=1e-5)


def test_maps_without_a_final_norm():
    a, b = plain(final_norm=False, out_indices=[0, 3]), windowed([0, 1, 2, 3], final_norm=False, out_indices=[0, 3])
    assert list(a.state_dict()) == list(b.state_dict())
    for of_a, of_b in zip(a(images(80, 112)), b(images(80, 112)), strict=True):
        torch.testing.assert_close(of_b, of_a, rtol=0, atol=1e-5)


@pytest.mark.parametrize('size, largest', [((64, 128), (2, 4)), ((80, 112), (3, 4)), ((16, 16), (1, 1))], ids=str)
def test_a_number_of_windows_is_a_window_of_that_size(size, largest):
    """Two windows in each direction, in maps of 4x8, 5x7 and 1x1 tokens."""
    a, b = windowed([1], window_size=largest), windowed([1], num_windows=2)
    assert torch.equal(a(images(*size))[0], b(images(*size))[0])


def test_only_attention_sees_what_fills_windows_up(monkeypatch):
    """75x110 pixels are 5x7 tokens: four windows of 3x4, one row and one column of which are filled up and masked."""
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def watch(q, k, v, takes_part=None, **kwargs):
        seen.append((q.shape[0], q.shape[2], takes_part is not None))
        return attend(q, k, v, takes_part, **kwargs)

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', watch)
    model = windowed([1, 3])
    computed = set()
    for layer in model.layers:
        layer.ffn.register_forward_pre_hook(lambda module, args: computed.add(args[0].shape))
    model(images(75, 110))
    assert seen == [(8, 12, True), (2, 35, False)] * 2 and computed == {(2, 35, 24)}
    seen.clear()
    model(images(96, 128))
    assert seen == [(8, 12, False), (2, 48, False)] * 2, 'windows that come out even need no mask'


def test_drop_path_drops_in_training_only():
    model = windowed([1, 3], drop_path_rate=0.9)
    x = images(80, 112)
    still = model(x)[0]
    assert torch.equal(model(x)[0], still)
    model.train()
    assert not torch.allclose(model(x)[0], still)


def test_class_token_is_refused():
    for options in (dict(with_cls_token=True), dict(with_cls_token=True, out_type='cls_token')):
        with pytest.raises(ValueError, match='with_cls_token=False'):
            windowed([1], **copy.deepcopy(options))


@given(rows=st.integers(1, 20), columns=st.integers(1, 20), most=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(deadline=None)
def test_windows_cut_and_join(rows, columns, most):
    windows = Windows((rows, columns), most, torch.device('cpu'))
    x = torch.arange(2 * rows * columns).view(2, rows * columns, 1)
    parts = windows.split(x)
    number, side = windows.number, windows.side[0] * windows.side[1]
    assert parts.shape == (2 * number, side, 1) and number == -(-rows // most[0]) * -(-columns // most[1])
    assert windows.side[0] <= most[0] and windows.side[1] <= most[1]
    assert windows.is_map == (number == 1)
    assert torch.equal(windows.join(parts), x)

    mask = windows.mask(2)
    if number * side == rows * columns:
        assert mask is None
        mask = torch.ones(2 * number, 1, 1, side, dtype=torch.bool)
    assert mask.flatten(1).any(1).all(), 'a window without tokens would be NaN'
    for window, tokens in zip(mask[:, 0, 0], parts[..., 0], strict=True):
        y, x = tokens[window] // columns, tokens[window] % columns
        height, width = y.max() - y.min() + 1, x.max() - x.min() + 1
        assert height <= most[0] and width <= most[1] and height * width == window.sum(), 'a rectangle'
        assert tokens[window].diff().gt(0).all(), 'by rows'
