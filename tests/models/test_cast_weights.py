"""Weights cast by one operator have the values and gradients of autocast, and are in place again after the step."""

import copy
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import turn_on_activation_checkpointing

from deit_detr.measuring.operators import OperatorCounter
from deit_detr.models import cast_weights
from tests.helpers.small_models import BATCHES, build_small, losses_and_gradients, prepared

RECIPES = (
    'detr-fast_deit-tiny_8xb1-150e_scannet', 'lw-detr_deit-tiny_8xb4-12e_scannet',
    'ec-detr_deit-tiny_8xb4-12e_scannet', 'dino_deit-tiny_8xb2-12e_scannet', 'dab-detr_deit-tiny_8xb2-12e_scannet')
#: Windows that do not divide the map, and all layers.
WINDOWS = {
    'model.backbone.window_size': 4, 'model.backbone.out_indices': [0, 1], 'model.backbone.global_layers': [1],
    'model.neck.in_channels': [192, 192]}


def build(recipe: str) -> torch.nn.Module:
    return build_small(recipe, WINDOWS if recipe[:2] in ('lw', 'ec') else {})


def step(model: torch.nn.Module) -> tuple[dict, dict, int]:
    with OperatorCounter() as counter, torch.autocast('cpu', torch.bfloat16):
        losses, gradients = losses_and_gradients(model, BATCHES['padded'])
    return losses, gradients, counter.counts().casts


@pytest.mark.parametrize('checkpointing', [False, True], ids=['', 'checkpointing'])
@pytest.mark.parametrize('recipe', RECIPES)
def test_values_and_gradients_of_autocast(recipe, checkpointing):
    model = build(recipe)
    if checkpointing:
        turn_on_activation_checkpointing(model, ['backbone.layers.0', 'backbone.layers.1'])
    before = {name: (id(weight), weight.clone()) for name, weight in model.named_parameters()}
    losses, gradients, casts = step(model)
    for name, weight in model.named_parameters():
        assert id(weight) == before[name][0] and torch.equal(weight, before[name][1])
    with mock.patch.object(cast_weights, 'cast_weights', lambda *args: nullcontext()):
        expected, expected_gradients, more_casts = step(model)
    assert casts < 0.7 * more_casts
    for name, loss in losses.items():
        assert torch.equal(loss, expected[name]), name
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-6, atol=0, msg=name)


def test_checkpointed_layers_in_a_distributed_training(tmp_path):
    """Where layers compute again in the backward pass, no gradient reaches a weight twice."""
    model = build(RECIPES[0])
    turn_on_activation_checkpointing(model, ['backbone.layers.0', 'backbone.layers.1'])
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        distributed = MMDistributedDataParallel(model.train())
        with torch.autocast('cpu', torch.bfloat16):
            sum(distributed(**prepared(model, BATCHES['padded']), mode='loss').values()).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(weight.grad is not None for weight in model.parameters())


def test_predictions_of_autocast():
    model = build(RECIPES[1]).eval()
    found = []
    for cast in (cast_weights.cast_weights, lambda *args: nullcontext()):
        with mock.patch.object(cast_weights, 'cast_weights', cast), torch.autocast('cpu', torch.bfloat16), \
                torch.no_grad(), OperatorCounter() as counter:
            results = model.test_step(copy.deepcopy(BATCHES['padded']))
        found.append((results, counter.counts().casts))
    (few, casts), (expected, more_casts) = found
    assert casts < 0.7 * more_casts
    for a, b in zip(few, expected, strict=True):
        assert torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes)
        assert torch.equal(a.pred_instances.scores, b.pred_instances.scores)


def test_frozen_weights_get_no_gradient_and_errors_restore_all():
    model = build(RECIPES[0])
    model.backbone.layers[0].requires_grad_(False)
    state = model.state_dict()
    with pytest.raises(KeyError), torch.autocast('cpu', torch.bfloat16), cast_weights.cast_weights(model, 'cpu'):
        assert model.encoder.layers[0].ffn.layers[1].weight.dtype == torch.bfloat16
        assert model.backbone.layers[0].attn.qkv.weight.dtype == torch.float32
        assert model.bbox_head.fc_cls.weight.dtype == torch.float32
        raise KeyError
    assert all(weight.data_ptr() == state[name].data_ptr() for name, weight in model.named_parameters())
