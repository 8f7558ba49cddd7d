"""No backbone trains from scratch unnoticed: real runners with good and bad pretrained checkpoints."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel, PretrainedInit
from mmengine.runner import Runner

from deit_detr.checkpoints.pretrained import check_pretrained, compare_loaded
from deit_detr.engine.start.pretrained_check import PretrainedCheckHook
from deit_detr.errors import UserError  # first: beside some packages mmpretrain needs its help

# isort: split
from mmdet.models import ResNet, SwinTransformer
from mmpretrain.models import VisionTransformer


def build_vit(dims: int = 16, **options) -> VisionTransformer:
    arch = dict(embed_dims=dims, num_layers=2, num_heads=2, feedforward_channels=32)
    options = dict(img_size=32, patch_size=8, out_type='avg_featmap') | options
    return VisionTransformer(arch=arch, **options)


class Toy(BaseModel):
    def __init__(self, init_cfg=None, **options):
        super().__init__()
        self.backbone = build_vit(init_cfg=init_cfg, **options)

    def forward(self, inputs, mode='loss'):
        return dict(loss=self.backbone(inputs)[0].mean())


def build_runner(tmp_path, init_cfg, **options) -> Runner:
    return Runner(
        Toy(init_cfg, **options), str(tmp_path / 'work'), experiment_name=tmp_path.name, default_scope='mmengine',
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


def start_from(tmp_path, tensors: dict, nested: str = 'state_dict') -> str:
    """Train a Toy from a checkpoint of these tensors; return the log."""
    path = tmp_path / 'start.pth'
    torch.save({nested: tensors} if nested else tensors, path)
    runner = build_runner(tmp_path, None)
    runner._load_from = str(path)
    runner.train()
    return next((tmp_path / 'work').rglob('*.log')).read_text()


@pytest.mark.parametrize('change, message', [
    (lambda key: f'model.{key}', r"32 tensors are missing \(.*Its names begin with 'model.': save"),
    (lambda key: key.replace('backbone', 'encoder'), 'Nothing would be loaded: load_from needs a checkpoint of this'),
    (lambda key: f'bbox_head.transformer.{key}', 'mmdet2x_to_3x.py'),
    (lambda key: 'blocks.0.norm1.weight' if key.endswith('cls_token') else f'{key}.x', 'deit_to_mmpretrain.py'),
])
def test_training_does_not_start_from_a_checkpoint_of_which_nothing_fits(tmp_path, change, message):
    tensors = {change(key): value for key, value in Toy().state_dict().items()}
    with pytest.raises(UserError, match=f'^{tmp_path}/start.pth: does not fit the model: .*{message}'):
        start_from(tmp_path, tensors)


@pytest.mark.parametrize('nested', ['state_dict', 'model', ''])
def test_training_starts_from_a_whole_model(tmp_path, nested):
    tensors = {f'module.{key}': value for key, value in Toy().state_dict().items()}  # as DDP saves them
    log = start_from(tmp_path, tensors, nested)
    assert 'start.pth: 32 of 32 tensors of the model are loaded' in log
    assert 'WARNING - 32 tensors' not in log and 'do not match exactly' not in log


def test_training_from_a_part_says_what_was_left_out(tmp_path):
    """As when a detector of other classes is fine-tuned."""
    tensors = Toy().state_dict() | {'head.weight': torch.zeros(3)}
    tensors['backbone.layers.1.ln2.bias'] = torch.zeros(7)
    del tensors['backbone.layers.1.ln2.weight']
    log = start_from(tmp_path, tensors)
    assert 'start.pth: 30 of 32 tensors of the model are loaded' in log
    assert (
        'WARNING - 1 tensors are missing (backbone.layers.1.ln2.weight); 1 tensors are of another shape '
        '(backbone.layers.1.ln2.bias (7,) instead of (16,)); 1 tensors are not in the model (head.weight). The rest of '
        'the model keeps its initialization\n') in log


def save_vit(path, **options) -> str:
    tensors = build_vit(**options).state_dict()
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in tensors.items()}), path)
    return str(path)


@pytest.mark.parametrize('saved, own, advice', [
    (32, 32, None),
    (48, 48, None),
    (48, 32, 'is for images of 48x48, but model.backbone.img_size is 32x32, .*Set model.backbone.img_size=48;'),
    (32, 48, 'is for images of 32x32, but model.backbone.img_size is 48x48, .*Set model.backbone.img_size=32;'),
])
@pytest.mark.parametrize('start', ['init_cfg', 'load_from'])
def test_position_embedding_of_another_image_size_without_a_class_token(tmp_path, saved, own, advice, start):
    """What the check says is what happens: mmpretrain cannot resize it then."""
    path, plain = save_vit(tmp_path / 'vit.pth', img_size=saved), dict(img_size=own, with_cls_token=False)
    init_cfg = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    runner = build_runner(tmp_path, None, out_type='featmap', **plain)
    if start == 'load_from':
        runner._load_from = path
    else:
        runner.model.backbone.init_cfg = init_cfg
    if advice is None:
        check_pretrained(runner.model)
        runner.train()
        return
    if start == 'load_from':
        with pytest.raises(UserError, match=f'^{path}: does not fit the model: its position embedding {advice}'):
            runner.train()
    else:
        with pytest.raises(UserError, match=f'^{path}: does not fit model.backbone: its position embedding {advice}'):
            check_pretrained(runner.model)
        with pytest.raises(AssertionError):
            runner.train()


def test_resized_position_embedding_counts_as_loaded(tmp_path):
    """With a class token, mmpretrain resizes it."""
    path = save_vit(tmp_path / 'vit.pth', img_size=48)
    log = train(tmp_path, dict(type='Pretrained', checkpoint=path, prefix='backbone.'))
    assert 'backbone: 32 of 32 tensors pretrained' in log


@pytest.mark.parametrize('init_cfg', [
    [],
    [dict(type='Kaiming', layer='Conv2d')],
    [dict(type='Kaiming', layer='Conv2d'), dict(type='TruncNormal', layer='Linear', std=0.02)],
], ids=len)
def test_lists_of_initializers_without_weights(tmp_path, init_cfg):
    """As mmdet's ResNet makes one of ``init_cfg=None``."""
    assert 'everything trains from scratch' in train(tmp_path, init_cfg)


@pytest.mark.parametrize('listed', [True, False])
def test_pretrained_in_a_list_or_as_a_class(tmp_path, checkpoint, listed):
    """mmpretrain's transformer then draws its position embedding again after loading."""
    init_cfg = dict(type='Pretrained' if listed else PretrainedInit, checkpoint=checkpoint, prefix='backbone.')
    init_cfg = [dict(type='Kaiming', layer='Conv2d'), init_cfg] if listed else init_cfg
    check_pretrained(Toy(init_cfg))
    with pytest.raises(UserError, match=r'but 1 of 32 tensors do not equal it .* one dict whose type is the string'):
        train(tmp_path, init_cfg)


def test_pretrained_in_the_list_of_a_resnet(tmp_path):
    """It arrives, also from an old checkpoint without the counters of batch norms."""
    path = tmp_path / 'resnet.pth'
    torch.manual_seed(1)
    tensors = ResNet(18).state_dict()
    torch.save({key: value for key, value in tensors.items() if 'num_batches' not in key}, path)
    model = Toy()
    model.backbone = ResNet(18, init_cfg=[
        dict(type='Constant', val=1, layer='BatchNorm2d'), dict(type='Pretrained', checkpoint=str(path))])
    model.init_weights()
    assert compare_loaded(model) == [f'backbone: 100 of 120 tensors pretrained, from {path}']


def test_backbones_that_convert_their_checkpoint_are_left_alone(tmp_path):
    """mmdet's Swin reads the names of its original project."""
    path = tmp_path / 'swin.pth'
    torch.save(dict(model={'patch_embed.proj.bias': torch.full((12,), 7.0)}), path)
    init_cfg = ConfigDict(type='Pretrained', checkpoint=str(path))
    model = Toy()
    model.backbone = SwinTransformer(
        embed_dims=12, depths=(1, 1), num_heads=(1, 1), strides=(4, 2), out_indices=(1,), convert_weights=True,
        init_cfg=init_cfg)
    assert not model.is_init
    found = check_pretrained(model)
    model.init_weights()
    assert (model.backbone.patch_embed.projection.bias == 7).all()
    assert found == compare_loaded(model) == [f'backbone: SwinTransformer converts {path} itself, which is not checked']
