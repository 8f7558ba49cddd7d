"""The fast relatives of DETR compute what mmdet's classes compute: losses, gradients, predictions."""

import copy

import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention

from tests.helpers.small_models import BATCHES, assert_equal_training, build_small, losses_and_gradients

RECIPES = {
    'conditional-detr': 'ConditionalDETR', 'dab-detr': 'DABDETR', 'deformable-detr': 'DeformableDETR', 'dino': 'DINO'}


def build(recipe: str, plain: bool = False) -> torch.nn.Module:
    return build_small(f'{recipe}_deit-tiny_8xb2-12e_scannet', {'model.type': RECIPES[recipe]} if plain else {})


@pytest.fixture(scope='module', params=RECIPES)
def twins(request):
    return build(request.param, plain=True), build(request.param)


def test_one_seed_gives_one_model_and_checkpoints_go_both_ways(twins):
    state_a, state_b = (model.state_dict() for model in twins)
    assert type(twins[0]) is not type(twins[1])
    assert list(state_a) == list(state_b)
    assert all(torch.equal(state_a[key], state_b[key]) for key in state_a)
    twins[0].load_state_dict(state_b, strict=True)
    twins[1].load_state_dict(state_a, strict=True)


@pytest.mark.parametrize('name', ['unpadded', 'padded', 'no boxes'])
def test_training_is_equal(twins, name):
    assert_equal_training(*twins, BATCHES[name], loss_rtol=1e-5, grad_rtol=1e-3, grad_atol=1e-6)


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
