"""Learning rates by depth, and a moving average of the weights, both only when asked for."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from deit_detr.errors import UserError  # first: beside some packages mmpretrain needs its help
from tests.helpers.paths import REPO

# isort: split
from mmpretrain.models import VisionTransformer

SCHEDULES = REPO / 'configs/_base_/schedules'


class Detector(BaseModel):
    """A small ViT, and something behind it."""

    def __init__(self):
        super().__init__()
        arch = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)
        self.backbone = VisionTransformer(arch=arch, img_size=32, patch_size=8, out_type='avg_featmap')
        self.head = nn.Linear(16, 4)

    def forward(self, inputs, mode='loss'):
        return dict(loss=self.head(self.backbone(inputs)[0]).square().mean())


def build_optimizer(model, **paramwise_cfg):
    init_default_scope('mmdet')
    cfg = Config.fromfile(SCHEDULES / 'detr_12e.py').optim_wrapper
    cfg.paramwise_cfg.update(paramwise_cfg)
    return build_optim_wrapper(model, cfg).optimizer


def rates(model, **paramwise_cfg) -> dict[str, float]:
    names = {param: name for name, param in model.named_parameters()}
    groups = build_optimizer(model, **paramwise_cfg).param_groups
    found = {names[param]: group['lr'] for group in groups for param in group['params']}
    assert found.keys() == set(names.values()) and sum(len(group['params']) for group in groups) == len(names)
    return found


def test_each_layer_learns_slower_than_the_one_above():
    found = rates(Detector(), layer_decay_rate=0.7)
    powers = {
        'head': None, 'backbone.ln': 0, 'backbone.layers.2': 1, 'backbone.layers.1': 2, 'backbone.layers.0': 3,
        'backbone.patch_embed': 4, 'backbone.pos_embed': 4, 'backbone.cls_token': 4}
    for name, rate in found.items():
        power = next(power for start, power in powers.items() if name.startswith(start))
        assert rate == pytest.approx(1e-4 if power is None else 1e-5 * 0.7**power), name


def test_no_decay_unless_asked_for():
    model = Detector()
    assert sorted(set(rates(model).values())) == pytest.approx([1e-5, 1e-4])
    assert rates(model) == rates(model, layer_decay_rate=1.0)
    assert len(build_optimizer(model).param_groups) == 2


def test_rate_and_backbone_are_checked():
    with pytest.raises(UserError, match='layer_decay_rate has to be above 0 and at most 1, not 70'):
        rates(Detector(), layer_decay_rate=70)
    model = Detector()
    model.backbone = nn.Linear(16, 16)
    with pytest.raises(UserError, match='Linear has no get_layer_depth'):
        rates(model, layer_decay_rate=0.7)


@pytest.mark.parametrize('averaged', [False, True])
def test_moving_average_is_one_option(tmp_path, averaged):
    """The checkpoint holds the average: after 3 steps, 0.5 of the last weights, 0.25 of those before, and so on."""
    cfg = Config.fromfile(SCHEDULES / 'detr_12e.py')
    cfg.merge_from_dict(dict(default_scope='mmdet', work_dir=str(tmp_path), experiment_name=tmp_path.name))
    cfg.merge_from_dict({'default_hooks.checkpoint': dict(type='CheckpointHook', interval=1)})
    if averaged:  # as behind --cfg-options
        cfg.merge_from_dict({'default_hooks.ema.type': 'EMAHook', 'default_hooks.ema.momentum': 0.5})
    images = [dict(inputs=torch.randn(3, 32, 32)) for _ in range(3)]
    history = []

    class Recorder(Detector):
        def train_step(self, data, optim_wrapper):
            result = super().train_step(data, optim_wrapper)
            history.append(self.head.weight.detach().clone())
            return result

    runner = Runner(
        Recorder(), cfg.work_dir, experiment_name=cfg.experiment_name, default_scope='mmdet', cfg=cfg,
        train_dataloader=torch.utils.data.DataLoader(images), train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=cfg.optim_wrapper, default_hooks=cfg.default_hooks)
    runner.train()
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    assert ('ema_state_dict' in saved) == averaged
    expected = 0.25 * history[0] + 0.25 * history[1] + 0.5 * history[2] if averaged else history[2]
    torch.testing.assert_close(saved['state_dict']['head.weight'], expected, rtol=0, atol=1e-6)
    assert not torch.equal(history[1], history[2])
