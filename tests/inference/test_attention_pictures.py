"""Attention pictures: recomputed weights against those of the model, and their places in the image."""

import copy
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmdet.models.layers.transformer.utils import ConditionalAttention
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from torch import nn

import deit_detr
from deit_detr.errors import UserError
from deit_detr.inference.attention import (
    Attention,
    cross_attention,
    draw_attention,
    self_attention,
)
from deit_detr.inference.attention_probe import AttentionProbe, sampling_points, weights_of_conditional
from deit_detr.models.attention import FusedAttention
from deit_detr.models.ec_vit import ECViT, F
from deit_detr.models.windowed_vit import WindowedViT
from tests.helpers.paths import REPO
from tests.helpers.tiny_detector import save_tiny

DETR = REPO / 'projects/deit_detr/configs/detr_deit-tiny_1xb8-50e_mini-scannet.py'
FAST = REPO / 'projects/deit_detr/configs/detr-fast_deit-tiny_1xb8-50e_mini-scannet.py'
MINI_RECIPES = sorted((REPO / 'projects/deit_detr/configs').glob('*mini-scannet.py'))
EC_DETR = REPO / 'projects/deit_detr/configs/ec-detr_deit-tiny_8xb4-12e_scannet.py'
TOOL = REPO / 'tools/analysis_tools/attention.py'


def image_of(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def detr_files(tmp_path_factory) -> tuple[Path, Path]:
    return save_tiny(tmp_path_factory.mktemp('detr'), DETR)


@pytest.fixture(scope='module')
def detr(detr_files):
    return deit_detr.load(*detr_files, device='cpu')


@pytest.fixture(scope='module')
def dino(tmp_path_factory):
    return deit_detr.load(*save_tiny(tmp_path_factory.mktemp('dino')), device='cpu')


@pytest.mark.parametrize('layer', [0, -1])
def test_plain_attention_is_what_the_model_computed(detr, layer):
    computed = []
    module = detr.model.decoder.layers[layer].cross_attn
    with module.attn.register_forward_hook(lambda _module, _inputs, output: computed.append(output[1])):
        shown = cross_attention(detr, image_of(160, 120), score_thr=0, layer=layer, max_detections=100)
    probe = AttentionProbe(detr, image_of(160, 120), module)
    queries = probe.queries_of(probe.sample.pred_instances)
    assert sorted(queries) == list(range(100)), 'every query is one detection in DETR'
    weights = np.stack([attention.weights for attention in shown]).reshape(100, -1)
    np.testing.assert_allclose(weights, computed[0][0][queries].numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=0, atol=1e-5)
    assert weights.shape == (100, 15 * 20)


def test_encoder_attention_is_what_the_model_computed(detr):
    computed = []
    module = detr.model.encoder.layers[0].self_attn
    with module.attn.register_forward_hook(lambda _module, _inputs, output: computed.append(output[1])):
        (shown,) = self_attention(detr, image_of(160, 120), [(79.9, 60)], layer=0)
    token = 7 * 20 + 9  # at (159.8, 120) of 320 x 240, tokens of 16 pixels
    np.testing.assert_allclose(shown.weights.ravel(), computed[0][0, token].numpy(), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('compiled', ['', 'compile=dict(backend="eager")'])
def test_fused_attention_shows_the_same(detr, detr_files, tmp_path, compiled):
    config, _ = save_tiny(tmp_path, FAST, compiled)
    fast = deit_detr.load(config, detr_files[1], device='cpu')
    assert isinstance(fast.model.decoder.layers[1].cross_attn, FusedAttention)
    image = image_of(200, 133)
    fast(image)  # compiles the model if it is to be compiled
    for function, arguments in (
            (cross_attention, dict(score_thr=0, max_detections=5)),
            (self_attention, dict(points=[(20, 30), (199, 132)])),
            (self_attention, dict(points=[(20, 30)], part='backbone', layer=2))):
        for a, b in zip(function(detr, image, **arguments), function(fast, image, **arguments), strict=True):
            np.testing.assert_allclose(a.weights, b.weights, rtol=0, atol=1e-5)
            assert a.title == b.title


def test_backbone_attention_is_a_softmax(detr):
    image = image_of(160, 120)
    layer = detr.model.backbone.layers[1]
    caught = []
    with layer.attn.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0])):
        (shown,) = self_attention(detr, image, [(159, 0)], 'backbone', 1)
    q, k, _ = layer.attn.qkv(caught[0]).reshape(300, 3, 3, 64).permute(1, 2, 0, 3).detach()
    weights = (q @ k.mT / 8).softmax(-1).mean(0)
    np.testing.assert_allclose(shown.weights.ravel(), weights[19].numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize('width, height', [(160, 120), (150, 113), (64, 301), (501, 77)])
def test_every_token_is_at_its_place(detr, width, height):
    """The hottest pixel of a token's map lies in that token, for each token whose centre is in the image."""
    probe = AttentionProbe(detr, image_of(width, height), detr.model.encoder.layers[0].self_attn)
    rows, columns = probe.grid
    model_height, model_width = probe.sample.img_shape
    assert (rows, columns) == (-(-model_height // 16), -(-model_width // 16))
    for token in range(0, rows * columns, 3):
        row, column = divmod(token, columns)
        if row * 16 + 12 > model_height or column * 16 + 12 > model_width:
            continue
        one = torch.zeros(rows, columns)
        one[row, column] = 1
        heat = probe.heat(one)
        assert heat.shape == (height, width)
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        assert probe.token_at((x, y)) == token
        if row in (0, rows - 1) or column in (0, columns - 1):
            continue  # equally hot up to the border
        assert abs((x + 0.5) / width - (column + 0.5) * 16 / model_width) <= 1.5 / width + 1.5 / model_width
        assert abs((y + 0.5) / height - (row + 0.5) * 16 / model_height) <= 1.5 / height + 1.5 / model_height


@pytest.mark.parametrize('part', ['encoder', 'decoder'])
def test_deformable_samples_give_the_modules_output(dino, part):
    """The output of the module follows from the sampling points and weights, for reference points and boxes."""
    layer = getattr(dino.model, part).layers[0]
    module = layer.self_attn if part == 'encoder' else layer.cross_attn
    outputs = []
    with module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)):
        probe = AttentionProbe(dino, image_of(150, 113), module)
    inputs = probe.caught['inputs']
    query = inputs['query']
    value = module.value_proj(query if inputs['value'] is None else inputs['value'])
    with torch.no_grad():
        locations, weights = sampling_points(module, inputs, torch.arange(query.shape[1]))
        sampled = multi_scale_deformable_attn_pytorch(
            value.unflatten(-1, (module.num_heads, -1)), inputs['spatial_shapes'], locations[None], weights[None])
        torch.testing.assert_close(module.output_proj(sampled) + query, outputs[0], rtol=0, atol=1e-5)


def test_deformable_samples_lie_where_the_detections_are(dino):
    """Without offsets all samples are at the reference box, which this untrained head does not change."""
    module = dino.model.decoder.layers[-1].cross_attn
    kept = copy.deepcopy(module.sampling_offsets.state_dict())
    try:
        nn.init.zeros_(module.sampling_offsets.weight)
        nn.init.zeros_(module.sampling_offsets.bias)
        shown = cross_attention(dino, image_of(120, 90), score_thr=0, max_detections=20)  # 320 x 240: no padded tokens
    finally:
        module.sampling_offsets.load_state_dict(kept)
    assert len(shown) == 20
    inside = 0
    for attention in shown:
        x1, y1, x2, y2 = attention.box
        assert attention.samples.shape == (8 * 2 * 4, 3) and attention.heat is None
        assert attention.samples[:, 2].sum() == pytest.approx(1, abs=1e-5)
        if x1 > 0 and x2 < 120 and y1 > 0 and y2 < 90:  # not clipped
            inside += 1
            # strides 16 and 32: 240 is not a multiple of 32, the second map reaches 16 pixels beyond the input
            centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
            for level, beyond in enumerate((1, 256 / 240)):
                found = attention.samples.reshape(8, 2, 4, 3)[:, level, :, :2].reshape(-1, 2)
                np.testing.assert_allclose(found, np.tile(centre * [1, beyond], (32, 1)), rtol=0, atol=0.05)
    assert inside > 3


@pytest.mark.parametrize('is_first', [True, False])
def test_conditional_attention_gives_the_modules_output(is_first):
    torch.manual_seed(0)
    module = ConditionalAttention(32, 4, cross_attn=True).eval()
    inputs = dict(
        query=torch.randn(1, 5, 32), key=torch.randn(1, 12, 32), query_pos=torch.randn(1, 5, 32),
        ref_sine_embed=torch.randn(1, 5, 32), key_pos=torch.randn(1, 12, 32), attn_mask=None,
        key_padding_mask=torch.arange(12)[None] > 9, is_first=is_first)
    with torch.no_grad():
        weights = weights_of_conditional(module, inputs)
        assert weights.shape == (5, 12) and (weights[:, 10:] == 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(5))
        # if all heads have the same values and projections, the output follows from the average weights
        module.v_proj.weight.copy_(module.v_proj.weight[:8].repeat(4, 1))
        module.v_proj.bias.copy_(module.v_proj.bias[:8].repeat(4))
        module.out_proj.weight.copy_(module.out_proj.weight[:, :8].repeat(1, 4))
        expected = inputs['query'] + module.out_proj(weights @ module.v_proj(inputs['key']))
        torch.testing.assert_close(module(**inputs), expected, rtol=0, atol=1e-5)
    assert 'forward_attn' not in vars(module)


def test_windowed_backbone(detr):
    """Global layers show what the plain backbone shows; other layers attend to the window of the point."""
    windowed = copy.copy(detr)
    windowed.model = copy.deepcopy(detr.model)
    cfg = dict(detr.cfg.model.backbone, window_size=(4, 6), global_layers=[0, 1])
    for key in ('type', 'init_cfg'):
        cfg.pop(key)
    windowed.model.backbone = WindowedViT(**cfg)
    windowed.model.backbone.eval()
    windowed.model.backbone.load_state_dict(detr.model.backbone.state_dict())
    image = image_of(150, 113)  # 15 x 20 tokens: windows of 4 x 5, and one row is added
    points = [(5, 5), (149, 112), (70, 60)]
    for a, b in zip(*(self_attention(x, image, points, 'backbone', 1) for x in (detr, windowed)), strict=True):
        np.testing.assert_allclose(a.weights, b.weights, rtol=0, atol=1e-5)
    for attention, (row, column) in zip(
            self_attention(windowed, image, points, 'backbone', 2), [(0, 0), (3, 3), (1, 1)], strict=True):
        assert attention.weights.sum() == pytest.approx(1, abs=1e-5)
        inside = attention.weights[row * 4:row * 4 + 4, column * 5:column * 5 + 5]
        assert inside.size == (15 if row == 3 else 20)
        assert (inside > 0).all() and inside.sum() == pytest.approx(1, abs=1e-5)


def test_rotary_backbone(detr):
    """The weights are those of the rotated queries and keys; the register token has the rest of the sum."""
    rotary = copy.copy(detr)
    rotary.model = copy.deepcopy(detr.model)
    rotary.model.backbone = ECViT(arch=detr.cfg.model.backbone.arch, out_indices=[2])
    rotary.model.backbone.eval()
    attend = F.scaled_dot_product_attention
    with mock.patch.object(F, 'scaled_dot_product_attention', side_effect=attend) as called:
        (shown,) = self_attention(rotary, image_of(160, 120), [(159, 0)], 'backbone', 1)
    q, k, _ = called.call_args_list[1].args
    weights = (q @ k.mT / 8).softmax(-1)[0].mean(0)
    np.testing.assert_allclose(shown.weights.ravel(), weights[20, 1:].detach().numpy(), rtol=0, atol=1e-6)
    assert shown.weights.sum() < 1


def test_samples_of_a_level_that_comes_several_times(tmp_path):
    recipe = tmp_path / 'recipe.py'
    recipe.write_text(
        f"_base_ = '{EC_DETR}'\n"
        'model = dict(backbone=dict(window_size=4, out_indices=[0, 2], global_layers=[0, 2]), num_queries=20)\n')
    detector = deit_detr.load(*save_tiny(tmp_path, recipe, 'test_cfg=dict(max_per_img=20)'), device='cpu')
    module = detector.model.decoder.layers[-1].cross_attn
    nn.init.normal_(module.sampling_offsets.weight, std=0.1)
    nn.init.normal_(module.attention_weights.weight, std=0.1)
    outputs = []
    with module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)):
        probe = AttentionProbe(detector, image_of(150, 113), module)
    inputs = probe.caught['inputs']
    with torch.no_grad():
        locations, weights = sampling_points(module, inputs, torch.arange(20))
        sampled = multi_scale_deformable_attn_pytorch(
            inputs['value'].unflatten(-1, (8, -1)), inputs['spatial_shapes'], locations[None], weights[None])
    torch.testing.assert_close(sampled, outputs[0], rtol=0, atol=1e-5)
    for attention in cross_attention(detector, image_of(150, 113), score_thr=0, max_detections=3):
        assert attention.samples.shape == (8 * 4 * 3, 3)  # levels 0, 1, 1 and 2
        assert attention.samples[:, 2].sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('recipe', MINI_RECIPES, ids=lambda path: path.stem)
def test_every_kind_of_recipe_can_be_shown(recipe, tmp_path):
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'untrained.pth'
    config.write_text(f"_base_ = '{recipe}'\nmodel = dict(backbone=dict(init_cfg=None))\n")
    init_default_scope('mmdet')
    torch.save(dict(state_dict=MODELS.build(Config.fromfile(config).model).state_dict()), checkpoint)
    detector = deit_detr.load(config, checkpoint, device='cpu')
    rest = 1e-4 if getattr(detector.model.backbone, 'cls_token', None) is None else 0.02  # of a register token
    for attention in (
            *cross_attention(detector, image_of(160, 120), score_thr=0, max_detections=3),
            *self_attention(detector, image_of(160, 120), [(3, 4)], 'backbone')):
        weights = attention.samples[:, 2] if attention.weights is None else attention.weights
        assert weights.min() >= 0 and weights.sum() == pytest.approx(1, abs=rest) and weights.sum() < 1 + 1e-4
    if hasattr(detector.model.neck, 'layers'):  # the encoder of EC-DETR
        (attention,) = self_attention(detector, image_of(160, 120), [(3, 4)])
        assert attention.weights.sum() == pytest.approx(1, abs=1e-4)
    elif getattr(detector.model, 'encoder', None) is None:
        with pytest.raises(UserError, match='its encoder has no layers whose attention'):
            self_attention(detector, image_of(160, 120), [(3, 4)])


def test_what_cannot_be_shown(detr):
    image = image_of(64, 48)
    for layer in (2, -3):
        with pytest.raises(UserError, match=f'layer {layer}: the decoder has 2 layers, 0 to 1'):
            cross_attention(detr, image, layer=layer)
    for point in ((64, 10), (10, 48), (-1, 10), (float('nan'), 1)):
        with pytest.raises(UserError, match='outside the image, which is 64x48'):
            self_attention(detr, image, [point])
    with pytest.raises(UserError, match="has to be 'encoder' or 'backbone'"):
        self_attention(detr, image, [(1, 1)], 'neck')
    assert cross_attention(detr, image, score_thr=1.1) == [], 'nothing is that confident'

    class Other(nn.Module):
        def forward(self, query, **_):
            return query

    other = copy.copy(detr)
    other.model = copy.deepcopy(detr.model)
    other.model.decoder.layers[1].cross_attn = Other()
    with pytest.raises(UserError, match='Other: this kind of attention is not supported'):
        cross_attention(other, image, score_thr=0)


def test_picture_shows_heat_where_it_is(detr):
    image = np.full((120, 160, 3), 90, np.uint8)
    heat = np.zeros((120, 160), np.float32)
    heat[20:40, 100:130] = 0.5
    samples = np.array([[30, 90, 0.9], [500, 500, 0.1]], np.float32)  # the second is outside
    picture = draw_attention(detr, image, [
        Attention('warm', heat=heat), Attention('dots', samples=samples, box=np.array([20, 80, 40, 100]))])
    assert picture.mode == 'RGB' and picture.size == (1440, 395)
    red, green, blue = np.asarray(picture).transpose(2, 0, 1)
    rows, columns = np.nonzero((red > 240) & (green > 240) & (blue < 190))  # the hottest colour
    for panel, (x, y) in enumerate([(115, 30), (30, 90)], 1):
        here = (columns >= 480 * panel) & (columns < 480 * (panel + 1))
        assert abs(columns[here].mean() - 480 * panel - 3 * x) < 10 and abs(rows[here].mean() - 35 - 3 * y) < 10
    assert columns.min() >= 480, 'the image itself stays as it is'


def test_command_line(detr_files, run, tmp_path):
    Image.fromarray(image_of(160, 120)).save(tmp_path / 'room.png')
    output = run(
        sys.executable, TOOL, *detr_files, 'room.png', '--point', 30, 40, '--part', 'backbone', '--out', 'a/b.jpg')
    assert output.strip() == 'a/b.jpg: (30, 40)'
    with Image.open(tmp_path / 'a/b.jpg') as picture:
        assert picture.width > 900
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == ['b.jpg']
