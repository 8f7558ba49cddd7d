"""DeiT weights keep their meaning: the converted model computes what DeiT's own formulas compute."""

import pytest
import torch
from torch.nn import functional as F

from deit_detr.migration.deit import convert_deit  # first: with some packages mmpretrain needs its help

# isort: split
from mmpretrain.models import DeiTClsHead, DistilledVisionTransformer, VisionTransformer

from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file, save_checkpoint_file
from deit_detr.errors import UserError

ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
PATCH, IMAGE = 8, 32


def deit_weights(distilled: bool) -> dict:
    """Random weights under the names that DeiT's authors and timm use."""
    dims, hidden, extra = ARCH['embed_dims'], ARCH['feedforward_channels'], 2 if distilled else 1
    shapes = {
        'cls_token': (1, 1, dims), 'pos_embed': (1, extra + (IMAGE // PATCH) ** 2, dims),
        'patch_embed.proj.weight': (dims, 3, PATCH, PATCH), 'patch_embed.proj.bias': (dims,),
        'norm.weight': (dims,), 'norm.bias': (dims,), 'head.weight': (10, dims), 'head.bias': (10,),
    }
    if distilled:
        shapes |= {'dist_token': (1, 1, dims), 'head_dist.weight': (10, dims), 'head_dist.bias': (10,)}
    for index in range(ARCH['num_layers']):
        layer = {
            'norm1': (dims,), 'norm2': (dims,), 'attn.qkv': (3 * dims, dims), 'attn.proj': (dims, dims),
            'mlp.fc1': (hidden, dims), 'mlp.fc2': (dims, hidden)}
        for name, shape in layer.items():
            shapes |= {f'blocks.{index}.{name}.weight': shape, f'blocks.{index}.{name}.bias': shape[:1]}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def deit_forward(weights: dict, images: torch.Tensor) -> torch.Tensor:
    """All tokens after the last norm, (batch, tokens, dims), as the paper defines them."""
    dims, heads = ARCH['embed_dims'], ARCH['num_heads']

    def linear(x, name):
        return F.linear(x, weights[f'{name}.weight'], weights[f'{name}.bias'])

    def norm(x, name):
        return F.layer_norm(x, (dims,), weights[f'{name}.weight'], weights[f'{name}.bias'], eps=1e-6)

    patches = F.conv2d(images, weights['patch_embed.proj.weight'], weights['patch_embed.proj.bias'], stride=PATCH)
    tokens = [weights[name].expand(len(images), 1, dims) for name in ('cls_token', 'dist_token') if name in weights]
    x = torch.cat([*tokens, patches.flatten(2).transpose(1, 2)], 1) + weights['pos_embed']
    for block in (f'blocks.{index}' for index in range(ARCH['num_layers'])):
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in linear(norm(x, f'{block}.norm1'), f'{block}.attn.qkv').chunk(3, -1))
        attention = (q @ k.transpose(-2, -1) / (dims // heads) ** 0.5).softmax(-1)
        x = x + linear((attention @ v).transpose(1, 2).flatten(2), f'{block}.attn.proj')
        x = x + linear(F.gelu(linear(norm(x, f'{block}.norm2'), f'{block}.mlp.fc1')), f'{block}.mlp.fc2')
    return norm(x, 'norm')


def load_part(module: torch.nn.Module, state_dict: dict, prefix: str) -> torch.nn.Module:
    module.load_state_dict(
        {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}, strict=True)
    module.eval()
    return module


def build_vit(cls: type = VisionTransformer, **options) -> torch.nn.Module:
    return cls(arch=ARCH, img_size=IMAGE, patch_size=PATCH, **options)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_features_of_deit(tmp_path, images, suffix):
    weights = deit_weights(distilled=False)
    source = tmp_path / f'deit.{suffix}'
    if suffix == 'pth':
        torch.save({'model': weights}, source)
    else:
        pytest.importorskip('safetensors.torch').save_file(weights, source)
    conversion = convert_deit(str(source))
    assert not conversion.dropped and len(conversion.state_dict) == len(weights)
    backbone = load_part(build_vit(out_type='raw'), conversion.state_dict, 'backbone.')
    torch.testing.assert_close(backbone(images)[0], deit_forward(weights, images), atol=1e-5, rtol=0)


def test_distilled_deit_in_full(tmp_path, images):
    weights = deit_weights(distilled=True)
    torch.save(weights, tmp_path / 'deit.pth')
    conversion = convert_deit(str(tmp_path / 'deit.pth'), keep_distillation=True)
    backbone = load_part(build_vit(DistilledVisionTransformer), conversion.state_dict, 'backbone.')
    head = load_part(DeiTClsHead(num_classes=10, in_channels=ARCH['embed_dims']), conversion.state_dict, 'head.')
    tokens = deit_forward(weights, images)
    logits = [
        F.linear(tokens[:, index], weights[f'{name}.weight'], weights[f'{name}.bias'])
        for index, name in enumerate(('head', 'head_dist'))]
    torch.testing.assert_close(head(backbone(images)), sum(logits) / 2, atol=1e-5, rtol=0)


def test_distilled_deit_without_its_token(tmp_path, images):
    weights = deit_weights(distilled=True)
    torch.save(weights, tmp_path / 'deit.pth')
    conversion = convert_deit(str(tmp_path / 'deit.pth'))
    assert conversion.dropped.keys() == {
        'dist_token', 'head_dist.weight', 'head_dist.bias', 'second position of pos_embed'}
    plain = {name: value for name, value in weights.items() if name not in conversion.dropped}
    plain['pos_embed'] = torch.cat([weights['pos_embed'][:, :1], weights['pos_embed'][:, 2:]], 1)
    backbone = load_part(build_vit(out_type='raw'), conversion.state_dict, 'backbone.')
    torch.testing.assert_close(backbone(images)[0], deit_forward(plain, images), atol=1e-5, rtol=0)


def test_real_weights_there_and_back(tmp_path, deit_checkpoint):
    original = find_state_dict(load_checkpoint_file(deit_checkpoint), deit_checkpoint)
    timm = {}
    for key, value in original.items():
        for new, old in (
                ('backbone.layers.', 'blocks.'), ('patch_embed.projection.', 'patch_embed.proj.'),
                ('.ffn.layers.0.0.', '.mlp.fc1.'), ('.ffn.layers.1.', '.mlp.fc2.'), ('backbone.ln1.', 'norm.'),
                ('.ln', '.norm'), ('head.layers.head.', 'head.'), ('backbone.', '')):
            key = key.replace(new, old)
        timm[key] = value
    assert 'blocks.11.norm2.weight' in timm
    save_checkpoint_file(timm, tmp_path / 'timm.pth')
    back = convert_deit(str(tmp_path / 'timm.pth')).state_dict
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) for key in original)


def test_unknown_tensors_are_listed(tmp_path):
    torch.save(deit_weights(False) | {'blocks.0.ls1.gamma': torch.ones(24)}, tmp_path / 'deit3.pth')
    with pytest.raises(UserError, match=r'blocks\.0\.ls1\.gamma'):
        convert_deit(str(tmp_path / 'deit3.pth'))


def test_mmpretrain_layout_is_recognised(tmp_path):
    torch.save({'state_dict': {'backbone.pos_embed': torch.zeros(1, 5, 8)}}, tmp_path / 'mm.pth')
    with pytest.raises(UserError, match='mmpretrain layout already'):
        convert_deit(str(tmp_path / 'mm.pth'))
