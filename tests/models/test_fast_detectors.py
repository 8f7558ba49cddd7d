"""The fast relatives of DETR compute what mmdet's classes compute: losses, gradients, predictions."""

import copy

import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from mmengine.config import Config
from mmengine.registry import init_default_scope

from deit_detr.datasets.noise import make_batch
from deit_detr.measuring.benchmark import build_model
from tests.helpers.paths import REPO

RECIPES = {
    'conditional-detr': 'ConditionalDETR', 'dab-detr': 'DABDETR', 'deformable-detr': 'DeformableDETR', 'dino': 'DINO'}
SMALL = {
    'model.num_queries': 12,
    'model.test_cfg.max_per_img': 12,
    'model.backbone.init_cfg': None,
    'model.encoder.num_layers': 2,
    'model.decoder.num_layers': 2,
    'model.encoder.layer_cfg.ffn_cfg.feedforward_channels': 64,
    'model.decoder.layer_cfg.ffn_cfg.feedforward_channels': 64,
}


def build(recipe: str, plain: bool = False) -> torch.nn.Module:
    """A small model of a recipe without dropout; of one seed, so that the twins start from the same weights."""
    cfg = Config.fromfile(REPO / f'projects/deit_detr/configs/{recipe}_deit-tiny_8xb2-12e_scannet.py')
    init_default_scope(cfg.default_scope)
    cfg.merge_from_dict(SMALL)
    cfg.model.backbone.arch = dict(embed_dims=192, num_layers=2, num_heads=3, feedforward_channels=64)
    if plain:
        cfg.model.type = RECIPES[recipe]
    return build_model(cfg, dropout=False)


@pytest.fixture(scope='module', params=RECIPES)
def twins(request):
    return build(request.param, plain=True), build(request.param)


def images(*sizes_and_boxes: tuple[int, int, int]) -> dict:
    """A batch of (height, width, number of boxes)."""
    single = [make_batch(1, (height, width), boxes) for height, width, boxes in sizes_and_boxes]
    return {key: [item for data in single for item in data[key]] for key in ('inputs', 'data_samples')}


BATCHES = {
    'unpadded': images((64, 96, 3), (64, 96, 5)),
    'padded': images((64, 96, 3), (48, 64, 5)),
    'no boxes': images((64, 96, 0), (64, 96, 0)),
}


def losses_and_gradients(model, data):
    model.train().zero_grad()
    torch.manual_seed(7)  # of DINO's noise
    losses = model(**model.data_preprocessor(copy.deepcopy(data), training=True), mode='loss')
    model.parse_losses(losses)[0].backward()
    return losses, {name: param.grad.clone() for name, param in model.named_parameters()}


def test_one_seed_gives_one_model_and_checkpoints_go_both_ways(twins):
    state_a, state_b = (model.state_dict() for model in twins)
    assert type(twins[0]) is not type(twins[1])
    assert list(state_a) == list(state_b)
    assert all(torch.equal(state_a[key], state_b[key]) for key in state_a)
    twins[0].load_state_dict(state_b, strict=True)
    twins[1].load_state_dict(state_a, strict=True)


@pytest.mark.parametrize('name', BATCHES)
def test_training_is_equal(twins, name):
    (losses_a, gradients_a), (losses_b, gradients_b) = (
        losses_and_gradients(model, BATCHES[name]) for model in twins)
    assert list(losses_a) == list(losses_b)
    for key, loss in losses_a.items():
        torch.testing.assert_close(losses_b[key], loss, rtol=1e-5, atol=1e-5, msg=key)
    assert gradients_a.keys() == gradients_b.keys()
    largest = max(gradient.norm() for gradient in gradients_a.values())
    for key, gradient in gradients_a.items():
        assert (gradients_b[key] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6 * largest, key


@pytest.mark.parametrize('name', ['unpadded', 'padded'])
def test_predictions_are_equal(twins, name):
    found = []
    for model in twins:
        with torch.no_grad():
            found.append([sample.pred_instances for sample in model.eval().test_step(copy.deepcopy(BATCHES[name]))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b.scores, a.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(b.bboxes, a.bboxes, rtol=0, atol=1e-3)
        assert torch.equal(b.labels, a.labels)


def test_heads_and_losses_stay_in_float32(twins):
    """Losses near those without autocast, and none in bfloat16, as some of the plain classes' are.

    The two-stage models choose a few other tokens, whose scores are almost equal.
    """
    model = twins[1]
    losses, _ = losses_and_gradients(model, BATCHES['padded'])
    with torch.autocast('cpu', torch.bfloat16):
        losses_16, gradients_16 = losses_and_gradients(model, BATCHES['padded'])
        with torch.no_grad():
            found = model.eval().test_step(copy.deepcopy(BATCHES['padded']))
    for key, loss in losses.items():
        assert losses_16[key].dtype == torch.float32
        torch.testing.assert_close(losses_16[key], loss, rtol=0.01 if 'dn_' in key else 0.1, atol=0, msg=key)
    assert all(gradient.isfinite().all() for gradient in gradients_16.values())
    assert all(sample.pred_instances.bboxes.dtype == torch.float32 for sample in found)


@pytest.mark.parametrize('recipe', RECIPES)
def test_no_plain_attention_is_left(recipe):
    plain = {MultiheadAttention, MultiScaleDeformableAttention}
    assert not plain & {type(module) for module in build(recipe).modules()}
    assert plain & {type(module) for module in build(recipe, plain=True).modules()}
