"""Checkpoints of LW-DETR's authors, converted, give the logits, boxes and losses of their implementation.

The golden values in ``tests/data/lw_detr_golden.npz`` come from https://github.com/Atten4Vis/LW-DETR at commit d5e6e6c,
run on a CPU with torch 2.11.0 and timm 1.0.31; ``MSDeformAttn.export()`` replaces the compiled operator by theirs in
PyTorch. The model is that of ``scripts/lwdetr_tiny_coco_eval.sh``, and in training that of ``..._train.sh``. Each of
its tensors has the values of :func:`seeded`; images are resized with Pillow and normalised with ImageNet's mean and
standard deviation. The file holds all boxes, and the logits of every 16th class of COCO.
"""

import argparse
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from PIL import Image

import deit_detr
from deit_detr.checkpoints.fit import check_fit
from deit_detr.config_file import recipe_path
from deit_detr.errors import UserError
from deit_detr.migration.lw_detr import RECIPE, convert_lw_detr
from tests.helpers.paths import REPO

GOLDEN = REPO / 'tests/data/lw_detr_golden.npz'
COCO_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
NUM_PARAMETERS = 12_052_002  # of the reference
FLAGS = dict(
    window_block_indexes=[0, 2, 4], out_feature_indexes=[1, 3, 5], sa_nheads=8, ca_nheads=16, dec_n_points=2,
    lite_refpoint_refine=True, bbox_reparam=True)
#: Name -> photographs, or the seeds of drawn images; height and width.
INPUTS = {
    'drawn': ([0, 1], 384, 512),
    'square': (['scene0000_00/color/000000.jpg'], 640, 640),
    'wide': (['scene0000_00/color/000100.jpg'], 448, 704),
    'tall': (['scene0000_00/color/000200.jpg'], 768, 512),
    'two': (['scene0000_00/color/000300.jpg', 'scene0000_01/color/000000.jpg'], 512, 640),
}
#: Boxes (cx, cy, w, h) and labels of the two drawn images.
OBJECTS = [
    ([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.2], [0.5, 0.5, 0.8, 0.9]], [0, 56, 60]),
    ([[0.25, 0.75, 0.1, 0.15]], [24]),
]


def seeded(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of a tensor of the reference: queries differ, and activations stay moderate."""
    if name.endswith('num_batches_tracked'):
        return torch.tensor(100)
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith('running_var'):
        value = np.exp(0.2 * normal)
    elif len(shape) == 1:
        value = 0.1 * normal + (name.endswith('weight') or 'gamma' in name)
    else:
        scales = {'query_feat.weight': 1, 'refpoint_embed.weight': 0.2, 'backbone.0.encoder.pos_embed': 0.5}
        value = normal * scales.get(name, 1 / np.prod(shape[1:]) ** 0.5)
    if 'class_embed' in name:
        value = 2 * value
        if name.endswith('bias'):
            value = value - 2
            value[sorted(set(range(91)) - set(COCO_IDS))] = -20  # as training leaves classes that never occur
    if name.endswith('sampling_offsets.bias'):
        value = 10 * value
    return torch.from_numpy(value.astype(np.float32))


def reference_tensors(layers=6, maps=3, decoder_layers=3, hidden=2048, groups=13, queries=100) -> dict:
    """All tensors of the reference's state dict; by default those of LW-DETR-tiny."""
    shapes = {'query_feat.weight': (groups * queries, 256), 'refpoint_embed.weight': (groups * queries, 4)}

    def add(prefix: str, out: int, *rest: int, bias: bool = True) -> None:
        shapes[f'{prefix}.weight'] = out, *rest
        if bias:
            shapes[f'{prefix}.bias'] = (out,)

    vit, projector, decoder = 'backbone.0.encoder', 'backbone.0.projector.stages.0', 'transformer.decoder'
    shapes[f'{vit}.pos_embed'] = 1, 197, 192
    add(f'{vit}.patch_embed.proj', 192, 3, 16, 16)
    for block in (f'{vit}.blocks.{index}' for index in range(layers)):
        shapes |= {f'{block}.{name}': (192,) for name in ('gamma_1', 'gamma_2', 'attn.q_bias', 'attn.v_bias')}
        add(f'{block}.attn.qkv', 576, 192, bias=False)
        for name, *shape in (
                ('norm1', 192), ('norm2', 192), ('attn.proj', 192, 192), ('mlp.fc1', 768, 192), ('mlp.fc2', 192, 768)):
            add(f'{block}.{name}', *shape)
    convs = {'cv1': (256, 192 * maps, 1, 1), 'cv2': (256, 640, 1, 1)}
    convs |= {f'm.{index}.cv{number}': (128, 128, 3, 3) for index in range(3) for number in (1, 2)}
    for conv, shape in convs.items():
        add(f'{projector}.0.{conv}.conv', *shape, bias=False)
        add(f'{projector}.0.{conv}.bn', shape[0])
        shapes |= {f'{projector}.0.{conv}.bn.running_{name}': shape[:1] for name in ('mean', 'var')}
        shapes[f'{projector}.0.{conv}.bn.num_batches_tracked'] = ()
    add(f'{projector}.1', 256)
    for layer in (f'{decoder}.layers.{index}' for index in range(decoder_layers)):
        shapes |= {f'{layer}.self_attn.in_proj_weight': (768, 256), f'{layer}.self_attn.in_proj_bias': (768,)}
        for name, *shape in (
                ('self_attn.out_proj', 256, 256), ('cross_attn.sampling_offsets', 64, 256),
                ('cross_attn.attention_weights', 32, 256), ('cross_attn.value_proj', 256, 256),
                ('cross_attn.output_proj', 256, 256), ('linear1', hidden, 256), ('linear2', 256, hidden),
                ('norm1', 256), ('norm2', 256), ('norm3', 256)):
            add(f'{layer}.{name}', *shape)
    add(f'{decoder}.norm', 256)
    add(f'{decoder}.ref_point_head.layers.0', 256, 512)
    add(f'{decoder}.ref_point_head.layers.1', 256, 256)
    heads = [('', '')] + [('transformer.enc_out_', f'.{group}') for group in range(groups)]
    for before, after in heads:
        add(f'{before}class_embed{after}', 91, 256)
        for index, out in enumerate((256, 256, 4)):
            add(f'{before}bbox_embed{after}.layers.{index}', out, 256)
    for group in range(groups):
        add(f'transformer.enc_output.{group}', 256, 256)
        add(f'transformer.enc_output_norm.{group}', 256)
    return {name: seeded(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope='module')
def published(tmp_path_factory) -> Path:
    """A file as LW-DETR's training writes it."""
    path = tmp_path_factory.mktemp('lw_detr') / 'LWDETR_tiny_60e_coco.pth'
    tensors = reference_tensors()
    buffers = 'running_mean', 'running_var', 'num_batches_tracked'
    assert sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(buffers)) == NUM_PARAMETERS
    torch.save(dict(model=tensors, optimizer={}, epoch=59, args=argparse.Namespace(**FLAGS)), path)
    return path


@pytest.fixture(scope='module')
def converted(published) -> Path:
    path = published.with_name('converted.pth')
    convert_lw_detr(published).save(path)
    return path


@pytest.fixture(scope='module')
def model(converted):
    return deit_detr.load(converted, device='cpu').model


def batch(model, images: list, height: int, width: int, training: bool = False) -> dict:
    samples = []
    for boxes, labels in OBJECTS[:len(images)]:
        centres, sides = (np.split(np.float32(boxes), 2, 1))
        corners = np.concatenate([centres - sides / 2, centres + sides / 2], 1) * np.float32([width, height] * 2)
        samples.append(DetDataSample(
            metainfo=dict(img_shape=(height, width)),
            gt_instances=InstanceData(bboxes=torch.from_numpy(corners), labels=torch.tensor(labels))))
    pixels = [np.asarray(image.resize((width, height), Image.BILINEAR))[..., ::-1] for image in images]
    inputs = [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in pixels]
    return model.data_preprocessor(dict(inputs=inputs, data_samples=samples), training)


def draw(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8))


def outputs(model, data: dict) -> dict:
    return model.forward_transformer(model.extract_feat(data['inputs']), data['data_samples'])


@pytest.mark.parametrize('name', INPUTS)
@torch.no_grad()
def test_logits_and_boxes_are_those_of_the_reference(model, name, request):
    sources, height, width = INPUTS[name]
    if name == 'drawn':
        images = [draw(seed) for seed in sources]
    else:
        folder = request.getfixturevalue('indoor_photos')
        images = [Image.open(folder / source).convert('RGB') for source in sources]
    logits, boxes = model.bbox_head(**outputs(model, batch(model, images, height, width)))
    golden = np.load(GOLDEN)
    np.testing.assert_allclose(boxes[-1, :, 0], golden[f'{name}_boxes'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits[-1, :, 0, :, ::16], golden[f'{name}_logits'], rtol=0, atol=1e-4)


def test_a_training_step_has_the_losses_of_the_reference(converted):
    """With all groups of queries."""
    model = deit_detr.load(recipe_path(RECIPE), converted, 'cpu').model.train()
    data = batch(model, [draw(0), draw(1)], 384, 512, training=True)
    with torch.no_grad():
        found = outputs(model, data)
        logits, boxes = model.bbox_head(found['hidden_states'], found['boxes'])
        losses = model.bbox_head.loss(**found, batch_data_samples=data['data_samples'])
    golden = np.load(GOLDEN)
    np.testing.assert_allclose(boxes[-1, :, -1], golden['last_group_boxes'], rtol=0, atol=5e-5)
    np.testing.assert_allclose(logits[-1, :, -1, :, ::16], golden['last_group_logits'], rtol=0, atol=3e-4)
    assert len(losses) == 12
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(golden[name].item(), rel=1e-4), name


def test_parameters_and_meta(model, converted):
    assert sum(param.numel() for param in model.parameters()) == pytest.approx(NUM_PARAMETERS, rel=0.02)
    meta = torch.load(converted, weights_only=True)['meta']
    assert meta['recipe'] == RECIPE and 'LWDETRHead' in meta['cfg']
    assert meta['dataset_meta']['classes'] == model.dataset_meta['classes']


#: A recipe of the same architecture whose files are small, and the sizes of its tensors.
SMALL = '''
_base_ = '{base}'
model = dict(
    num_queries=3, num_groups=2,
    backbone=dict(arch=dict(num_layers=2), global_layers=[1], out_indices=[1]),
    neck=dict(in_channels=[192]),
    decoder=dict(num_layers=1, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=16))))
'''
SMALL_SIZES = dict(layers=2, maps=1, decoder_layers=1, hidden=16, groups=2, queries=3)
SMALL_FLAGS = FLAGS | dict(window_block_indexes=[0], out_feature_indexes=[1])


def convert_small(folder: Path, change=None, flags: dict | None = None, **options):
    tensors = reference_tensors(**SMALL_SIZES)
    if change:
        change(tensors)
    (folder / 'small.py').write_text(SMALL.format(base=recipe_path(RECIPE)))
    args = argparse.Namespace(**SMALL_FLAGS | (flags or {}))
    torch.save({'model': tensors, 'args': args, 'ema_model': {f'module.{k}': v + 1 for k, v in tensors.items()}},
               folder / 'small.pth')
    return convert_lw_detr(folder / 'small.pth', folder / 'small.py', **options)


def test_averaged_weights_on_request(tmp_path):
    conversion = convert_small(tmp_path, weights='ema_model')
    name = 'backbone.0.encoder.patch_embed.proj.bias'
    found = conversion.state_dict['backbone.patch_embed.projection.bias']
    torch.testing.assert_close(found, seeded(name, (192,)) + 1)
    assert 'model' in conversion.dropped
    assert 'num_groups=2' in conversion.meta['cfg'] and 'recipe' not in conversion.meta


def test_weights_of_objects365(tmp_path):
    def change(tensors):
        for name in [name for name in tensors if 'class_embed' in name]:
            tensors[name] = seeded(name.replace('class', 'x'), (366, *tensors[name].shape[1:]))
        expected.append(tensors['class_embed.weight'][1:])

    expected = []
    conversion = convert_small(tmp_path, change)
    classes = conversion.meta['dataset_meta']['classes']
    assert len(classes) == 365 and classes[2] == 'Chair' and 'cfg' not in conversion.meta
    assert torch.equal(conversion.state_dict['bbox_head.fc_cls.weight'], expected[0])


CHANGES = {
    'unknown': (lambda t: t.update({'extra.weight': torch.zeros(1)}), 'no rule for 1 tensors.*extra.weight'),
    'missing in a group': (lambda t: t.pop('transformer.enc_output.1.bias'), r'missing: transformer.*_output.1.bias$'),
    'missing': (lambda t: t.pop('bbox_embed.layers.0.bias'), 'missing .bbox_head.reg_branch.layers.0.bias'),
    'missing bias': (lambda t: t.pop('backbone.0.encoder.blocks.1.attn.v_bias'), r'missing: .*blocks.1.attn.v_bias$'),
    'classes': (lambda t: t.update({'class_embed.bias': torch.zeros(7)}), r'7 classes; only .* COCO \(91\)'),
    'shape': (lambda t: t.update({'query_feat.weight': torch.zeros(7, 256)}), 'other shapes'),
    'width': (lambda t: t.update({'transformer.decoder.norm.bias': torch.zeros(7)}), r'norm.bias \(7,\) instead'),
}


@pytest.mark.parametrize('change, message', CHANGES.values(), ids=CHANGES)
def test_other_tensors_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=f'(?s)small.pth: .*{message}'):
        convert_small(tmp_path, change)


def test_an_unconverted_file_names_the_tool(model):
    with pytest.raises(UserError, match='has the layout of LW-DETR: convert it with tools/.*/lw_detr_to_mmdet.py'):
        check_fit(model.state_dict(), reference_tensors(**SMALL_SIZES), 'small.pth')


def test_other_architectures_are_refused(tmp_path):
    with pytest.raises(UserError, match=r'small.pth: .*ca_nheads is 8, not 16; lite_refpoint_refine is False, not T'):
        convert_small(tmp_path, flags=dict(ca_nheads=8, lite_refpoint_refine=False))
    with pytest.raises(UserError, match="small.pth: has no 'average'; it holds 'model', 'args', 'ema_model'"):
        convert_small(tmp_path, weights='average')
    with pytest.raises(UserError, match='dino.*is not a recipe of a published LW-DETR'):
        convert_lw_detr(tmp_path / 'small.pth', recipe_path('dino_deit-tiny_8xb2-12e_coco.py'))
