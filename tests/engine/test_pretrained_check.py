"""No backbone trains from scratch unnoticed: real runners with good and bad pretrained checkpoints."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner

from deit_detr.checkpoints.pretrained import check_pretrained
from deit_detr.engine.start.pretrained_check import PretrainedCheckHook
from deit_detr.errors import UserError  # first: beside some packages mmpretrain needs its help

# isort: split
from mmpretrain.models import VisionTransformer


def build_vit(dims: int = 16, **options) -> VisionTransformer:
    arch = dict(embed_dims=dims, num_layers=2, num_heads=2, feedforward_channels=32)
    return VisionTransformer(arch=arch, img_size=32, patch_size=8, out_type='avg_featmap', **options)


class Toy(BaseModel):
    def __init__(self, init_cfg=None):
        super().__init__()
        self.backbone = build_vit(init_cfg=init_cfg)

    def forward(self, inputs, mode='loss'):
        return dict(loss=self.backbone(inputs)[0].mean())


def build_runner(tmp_path, init_cfg) -> Runner:
    return Runner(
        Toy(init_cfg), str(tmp_path / 'work'), experiment_name=tmp_path.name, default_scope='mmengine',
        train_dataloader=torch.utils.data.DataLoader([dict(inputs=torch.zeros(3, 32, 32))]),
        train_cfg=dict(by_epoch=False, max_iters=1), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[PretrainedCheckHook()], default_hooks=dict(checkpoint=None))


def train(tmp_path, init_cfg) -> str:
    build_runner(tmp_path, init_cfg).train()
    return next((tmp_path / 'work').rglob('*.log')).read_text()


@pytest.fixture
def checkpoint(tmp_path) -> str:
    path = tmp_path / 'good.pth'
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in build_vit().state_dict().items()}), path)
    return str(path)


def test_good_checkpoint_is_reported(tmp_path, checkpoint):
    log = train(tmp_path, dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.'))
    number = len(build_vit().state_dict())
    assert f'backbone: {number} of {number} tensors pretrained, from {checkpoint}' in log


def test_nothing_pretrained_is_reported(tmp_path):
    assert 'everything trains from scratch' in train(tmp_path, None)


def other_architecture(path):
    torch.save({f'backbone.{key}': value for key, value in build_vit(dims=8).state_dict().items()}, path)


def timm_layout(path):
    torch.save({'model': {'cls_token': torch.zeros(1), 'blocks.0.norm1.weight': torch.zeros(1)}}, path)


def something_else(path):
    torch.save({'fc.weight': torch.zeros(1)}, path)


@pytest.mark.parametrize('make, message', [
    (other_architecture, r'of another shape \(backbone.cls_token \(1, 1, 8\) instead of \(1, 1, 16\)'),
    (timm_layout, 'deit_to_mmpretrain.py'),
    (something_else, r'tensors are not in model.backbone \(fc.weight\). Set model.backbone.init_cfg'),
    (lambda path: path.write_text('<html>404</html>'), 'web page'),
    (lambda path: path.write_bytes(b'PK\x03\x04' + bytes(100)), 'truncated'),
    (lambda path: None, 'no such checkpoint file'),
])
def test_bad_checkpoint_stops_training(tmp_path, make, message):
    path = tmp_path / 'bad.pth'
    make(path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    with pytest.raises(UserError, match=message) as caught:
        check_pretrained(Toy(init_cfg))
    assert str(path) in str(caught.value)
    if make in (timm_layout, something_else):  # mmengine itself stops where no name has the prefix
        init_cfg = dict(type='Pretrained', checkpoint=str(path))
    with pytest.raises(UserError, match=message) as caught:  # as without PreflightHook
        train(tmp_path, init_cfg)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('prefix, shown', [(None, "''"), ('encoder.', "'encoder.'")])
def test_wrong_prefix_names_the_right_one(tmp_path, checkpoint, prefix, shown):
    init_cfg = dict(type='Pretrained', checkpoint=checkpoint, prefix=prefix)
    message = f"init_cfg.prefix has to be 'backbone.' and is {shown}"
    with pytest.raises(UserError, match=message):
        check_pretrained(Toy(init_cfg))
    with pytest.raises(UserError if prefix is None else AssertionError, match=message if prefix is None else prefix):
        train(tmp_path, init_cfg)


def test_weights_initialized_again_after_loading(tmp_path, checkpoint, monkeypatch):
    def init_weights(self):
        super(VisionTransformer, self).init_weights()
        torch.nn.init.ones_(self.pos_embed)

    monkeypatch.setattr(VisionTransformer, 'init_weights', init_weights)
    with pytest.raises(UserError, match='initializes model.backbone again'):
        train(tmp_path, dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.'))


def test_cached_web_page_behind_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub/checkpoints'
    cache.mkdir(parents=True)
    (cache / 'deit.pth').write_text('<html>portal</html>')
    with pytest.raises(UserError, match=f'{cache}/deit.pth: this is a web page'):
        check_pretrained(Toy(dict(type='Pretrained', checkpoint='https://example.invalid/deit.pth')))


def test_evaluation_does_not_need_the_pretrained_weights(tmp_path):
    runner = build_runner(tmp_path, dict(type='Pretrained', checkpoint=str(tmp_path / 'none.pth')))
    runner.call_hook('before_run')  # as Runner.test does, without a training loop
