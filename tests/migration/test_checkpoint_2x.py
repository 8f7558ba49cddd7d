"""The converter of 2.x checkpoints: each tensor is mapped, dropped with a reason, or refused."""

import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from deit_detr.errors import UserError
from deit_detr.migration.checkpoint_2x import convert_checkpoint_2x
from deit_detr.migration.config_2x import convert_config_2x
from tests.helpers.fork_server import start
from tests.helpers.paths import REPO

TOOL = REPO / 'tools/model_converters/mmdet2x_to_3x.py'


def to_2x(key: str, before_2_11: bool = False) -> str:
    """Return the 2.x name of a 3.x key: the inverse mapping, written independently."""
    if key.startswith(('encoder.', 'decoder.')):
        key = 'bbox_head.transformer.' + key
        for new, old, very_old in (
                ('.self_attn.', '.attentions.0.', '.self_attn.'),
                ('.cross_attn.', '.attentions.1.', '.multihead_attn.'),
                ('.ffn.', '.ffns.0.', '.ffn.'), ('.decoder.post_norm.', '.decoder.post_norm.', '.decoder.norm.')):
            key = key.replace(new, very_old if before_2_11 else old)
        return key
    if key.startswith('query_embedding.'):
        return 'bbox_head.' + key
    return key.replace('neck.convs.0.conv.', 'bbox_head.input_proj.')


@pytest.fixture(scope='module')
def resnet_detr() -> torch.nn.Module:
    """A small DETR with a ResNet, from the converted 2.x config."""
    text = convert_config_2x(REPO / 'tests/data/legacy_2x/detr_r50_8x2_150e_coco.py').text
    cfg = Config.fromstring(text, '.py')
    cfg.merge_from_dict(dict(model=dict(
        backbone=dict(depth=18, init_cfg=None), neck=dict(in_channels=[512]), encoder=dict(num_layers=1),
        decoder=dict(num_layers=2))))
    init_default_scope('mmdet')
    return MODELS.build(cfg.model)


@pytest.fixture
def small() -> dict:
    """The smallest set of tensors of a 2.x DETR with a ViT that the converter accepts."""
    return {
        'backbone.cls_token': torch.zeros(1, 1, 8),
        'backbone.pos_embed': torch.arange(5.0)[None, :, None].expand(1, 5, 8).clone(),
        'bbox_head.input_proj.weight': torch.rand(8, 8, 1, 1),
        'bbox_head.query_embedding.weight': torch.rand(4, 8),
        'bbox_head.fc_cls.weight': torch.rand(21, 8),
    }


def write(tmp_path: Path, state_dict: dict, **rest) -> str:
    torch.save(dict(state_dict=state_dict, **rest), tmp_path / 'old.pth')
    return str(tmp_path / 'old.pth')


@pytest.mark.parametrize('before_2_11', [False, True])
@pytest.mark.parametrize('wrapper', ['', 'module.'])
def test_resnet_detr_loads_strictly(resnet_detr, tmp_path, wrapper, before_2_11):
    expected = resnet_detr.state_dict()
    old = {wrapper + to_2x(key, before_2_11): value for key, value in expected.items()}
    old[f'{wrapper}bbox_head.loss_cls.class_weight'] = torch.ones(81)
    conversion = convert_checkpoint_2x(write(tmp_path, old))
    assert conversion.state_dict.keys() == expected.keys()
    assert all(torch.equal(conversion.state_dict[key], value) for key, value in expected.items())
    assert list(conversion.dropped) == ['bbox_head.loss_cls.class_weight']
    resnet_detr.load_state_dict(conversion.state_dict, strict=True)


def test_class_token(small, tmp_path):
    source = write(tmp_path, small)
    without = convert_checkpoint_2x(source)
    assert 'backbone.cls_token' not in without.state_dict
    assert without.state_dict['backbone.pos_embed'][0, :, 0].tolist() == [1, 2, 3, 4]
    kept = convert_checkpoint_2x(source, keep_cls_token=True)
    assert kept.state_dict['backbone.pos_embed'][0, :, 0].tolist() == [0, 1, 2, 3, 4]
    assert 'backbone.cls_token' in kept.state_dict and not kept.dropped
    with pytest.raises(UserError, match='add --keep-cls-token'):
        convert_checkpoint_2x(write(tmp_path, small, meta=dict(config='backbone=dict(with_cls_token=True)')))


def test_ema_copies(small, tmp_path):
    copies = {f'ema_{key.replace(".", "_")}': value + 1 for key, value in small.items()}
    source = write(tmp_path, small | copies)
    plain = convert_checkpoint_2x(source)
    assert torch.equal(plain.state_dict['query_embedding.weight'], small['bbox_head.query_embedding.weight'])
    assert set(copies) <= plain.dropped.keys()
    averaged = convert_checkpoint_2x(source, use_ema_copies=True)
    assert torch.equal(averaged.state_dict['query_embedding.weight'], copies['ema_bbox_head_query_embedding_weight'])
    assert averaged.state_dict['backbone.pos_embed'].shape == (1, 4, 8)
    with pytest.raises(UserError, match='ema_nothing_of_this'):
        convert_checkpoint_2x(write(tmp_path, small | {'ema_nothing_of_this': torch.zeros(1)}))
    with pytest.raises(UserError, match='no ema_'):
        convert_checkpoint_2x(write(tmp_path, small), use_ema_copies=True)


def test_everything_else_of_the_checkpoint_is_accounted_for(small, tmp_path):
    meta = dict(epoch=3, iter=9, CLASSES=('wall', 'floor'), PALETTE=[(1, 2, 3), (4, 5, 6)], seed=1)
    conversion = convert_checkpoint_2x(write(tmp_path, small, meta=meta, optimizer={}, amp={}))
    assert conversion.meta == dict(
        epoch=3, iter=9, dataset_meta=dict(classes=('wall', 'floor'), palette=[(1, 2, 3), (4, 5, 6)]))
    assert {'meta.seed', 'optimizer', 'amp'} <= conversion.dropped.keys()


def test_command_line_lists_what_is_left_and_writes_nothing(small, tmp_path):
    source = write(tmp_path, small | {'bbox_head.mask_head.weight': torch.zeros(1), 'neck.x': torch.zeros(1)})
    run = start(sys.executable, TOOL, source, tmp_path / 'new.pth', cwd=tmp_path, merged=False)
    assert run.returncode == 2
    assert 'bbox_head.mask_head.weight' in run.stderr and 'neck.x' in run.stderr and 'Traceback' not in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['old.pth']


@pytest.mark.parametrize('state_dict, message', [
    ({'encoder.layers.0.norms.0.weight': torch.zeros(1)}, '3.x keys already'),
    ({'backbone.conv1.weight': torch.zeros(1)}, 'not a whole 2.x DETR'),
])
def test_other_models_are_refused(tmp_path, state_dict, message):
    with pytest.raises(UserError, match=message):
        convert_checkpoint_2x(write(tmp_path, state_dict))
