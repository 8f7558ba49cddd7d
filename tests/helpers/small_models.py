"""Small models of the recipes, batches of noise for them, and the comparison of how two of them train."""

import copy

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from deit_detr.datasets.noise import make_batch
from deit_detr.measuring.variants import build_model
from tests.helpers.paths import REPO

NUM_QUERIES = 12
SMALL = {
    'model.num_queries': NUM_QUERIES, 'model.test_cfg.max_per_img': NUM_QUERIES, 'model.backbone.init_cfg': None,
    'model.decoder.num_layers': 2, 'model.decoder.layer_cfg.ffn_cfg.feedforward_channels': 64}
SMALL_ENCODER = {'model.encoder.num_layers': 2, 'model.encoder.layer_cfg.ffn_cfg.feedforward_channels': 64}


def build_small(recipe: str, options: dict | None = None) -> nn.Module:
    """Build a small model of a recipe, without dropout and with the weights of one seed: twins start alike.

    Args:
        recipe: The name of its file, without ``.py``.
        options: Changes of the config, as ``--cfg-options`` takes them.
    """
    cfg = Config.fromfile(REPO / f'projects/deit_detr/configs/{recipe}.py')
    init_default_scope(cfg.default_scope)
    cfg.merge_from_dict(SMALL | (SMALL_ENCODER if 'encoder' in cfg.model else {}) | (options or {}))
    cfg.model.backbone.arch = dict(embed_dims=192, num_layers=2, num_heads=3, feedforward_channels=64)
    return build_model(cfg, dropout=False)


def noise(*sizes_and_boxes: tuple[int, int, int]) -> dict:
    """Make a batch with one image of noise for each ``(height, width, number of boxes)``."""
    single = [make_batch(1, (height, width), boxes) for height, width, boxes in sizes_and_boxes]
    return {key: [item for data in single for item in data[key]] for key in ('inputs', 'data_samples')}


BATCHES = {
    'unpadded': noise((64, 96, 3), (64, 96, 5)),
    'padded': noise((64, 96, 3), (48, 64, 5), (64, 80, 1)),
    'no boxes': noise((64, 96, 0), (64, 96, 0)),
    'one box': noise((64, 96, 1)),
    'one image without': noise((64, 80, 0), (64, 96, 4)),
    'more boxes than queries': noise((64, 96, NUM_QUERIES + 7), (64, 96, 2)),
}


def prepared(model: nn.Module, data: dict, training: bool = True) -> dict:
    """Return a batch as the model's ``forward`` takes it; the batch itself stays as it is."""
    return model.data_preprocessor(copy.deepcopy(data), training=training)


def losses_and_gradients(model: nn.Module, data: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the losses of a training step and each parameter's gradient, by name."""
    model.train().zero_grad()
    torch.manual_seed(7)  # DINO draws noise
    losses = model(**prepared(model, data), mode='loss')
    model.parse_losses(losses)[0].backward()
    return losses, {name: param.grad.clone() for name, param in model.named_parameters()}


def assert_equal_training(
    plain: nn.Module, fast: nn.Module, data: dict, loss_rtol: float = 0, grad_rtol: float = 1e-4, grad_atol: float = 0,
) -> None:
    """Two models with the same weights have the same losses and gradients.

    Args:
        plain: The reference.
        fast: What is compared with it.
        data: A batch.
        loss_rtol: Relative error of a loss, beside an absolute one of 1e-5.
        grad_rtol: Norm of the difference of a parameter's gradients, relative to that of the gradient.
        grad_atol: What is added to it, relative to the largest norm of all gradients.
    """
    (losses_a, gradients_a), (losses_b, gradients_b) = (losses_and_gradients(model, data) for model in (plain, fast))
    assert list(losses_a) == list(losses_b)
    for name, loss in losses_a.items():
        # mmdet's losses with synchronized averages are vectors of one element
        torch.testing.assert_close(losses_b[name].squeeze(), loss.squeeze(), rtol=loss_rtol, atol=1e-5, msg=name)
    assert gradients_a.keys() == gradients_b.keys()
    largest = max(gradient.norm() for gradient in gradients_a.values())
    for name, gradient in gradients_a.items():
        assert (gradients_b[name] - gradient).norm() <= grad_rtol * gradient.norm() + grad_atol * largest, name
