"""The golden loss curve: a change that should not change numbers is shown not to.

Ten steps of the seed recipe's model and optimizer, and of its fast twin's, float32 on the CPU, on rooms rendered
here; dropout is off and the images keep their order. After a change that is meant to change the numbers, or of the
renderer, write it again:

    WRITE_GOLDEN_CURVE=1 python -m pytest tests/migration/test_golden_curve.py
"""

import os
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from tests.helpers.paths import REPO

CURVE = REPO / 'tests/data/golden_curve.txt'
STEPS = 10
RECIPES = ['detr_deit-tiny_8xb1-150e_scannet', 'detr-fast_deit-tiny_8xb1-150e_scannet']
NO_DROPOUT = {
    f'model.{coder}.layer_cfg.{name}': 0.0
    for coder, name in (
        ('encoder', 'self_attn_cfg.dropout'), ('encoder', 'ffn_cfg.ffn_drop'), ('decoder', 'self_attn_cfg.dropout'),
        ('decoder', 'cross_attn_cfg.dropout'), ('decoder', 'ffn_cfg.ffn_drop'))
}


def train_ten_steps(recipe: str, data_root: Path) -> list[float]:
    """The total loss before each of the first ten updates."""
    cfg = Config.fromfile(REPO / f'projects/deit_detr/configs/{recipe}.py')
    cfg.merge_from_dict(NO_DROPOUT)
    cfg.model.backbone.init_cfg = None
    loader_cfg = cfg.train_dataloader
    loader_cfg.update(
        batch_size=2, num_workers=0, persistent_workers=False, batch_sampler=None,
        sampler=dict(type='DefaultSampler', shuffle=False))
    loader_cfg.dataset.update(
        data_root=str(data_root), filter_cfg=None, pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs')])
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    loader = Runner.build_dataloader(loader_cfg, seed=0)
    return [float(model.train_step(batch, optim_wrapper)['loss']) for batch in islice(cycle(loader), STEPS)]


@pytest.fixture
def one_thread():
    """Sums then do not depend on the number of cores; it is also faster on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize('recipe', [pytest.param(RECIPES[0], marks=pytest.mark.slow), RECIPES[1]])
def test_losses_follow_the_golden_curve(recipe, mini_scannet, one_thread):
    losses = train_ten_steps(recipe, mini_scannet)
    if os.environ.get('WRITE_GOLDEN_CURVE') and recipe == RECIPES[0]:
        CURVE.write_text(''.join(f'{loss:.6f}\n' for loss in losses))
        pytest.skip(f'{CURVE} was written')
    np.testing.assert_allclose(losses, np.loadtxt(CURVE), rtol=5e-3)
