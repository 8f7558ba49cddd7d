"""Checkpoints of EdgeCrafter, converted, give the logits, boxes and detections of its implementation.

The golden values in ``tests/data/ecdet_golden.npz`` come from https://github.com/Intellindust-AI-Lab/EdgeCrafter at
commit 706d037, run on a CPU with torch 2.11.0. The model is that of ``configs/ecdet/ecdet_s.yml``; each of its tensors
has the values of :func:`seeded`; ``tensors`` in the file holds their names and shapes. Images are resized with OpenCV
and normalised with ImageNet's mean and standard deviation. The file holds the logits of every 30th query and 8th class,
every 30th box, and the 20 best detections (score, label, x1, y1, x2, y2).

On maps that are not square, the reference's position encoding of its hybrid encoder mixes rows and columns up; for
these the golden values come from the reference with rows in the first half of the channels and columns in the second,
which changes nothing on square maps.
"""

import importlib.util
import re
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from torch import nn

import deit_detr
from deit_detr.checkpoints.pretrained import compare_loaded
from deit_detr.checkpoints.safe_loading import load_checkpoint_file
from deit_detr.config_file import recipe_path
from deit_detr.errors import UserError
from deit_detr.migration.ecdet import RECIPE, convert_ecdet
from deit_detr.models.ec_vit import ECViT
from tests.helpers.paths import REPO

GOLDEN = np.load(REPO / 'tests/data/ecdet_golden.npz')
#: Height, width, and photographs.
IMAGES = {
    'drawn': (256, 352, []),
    '640x640': (640, 640, ['scene0000_00/color/000300.jpg']),
    '480x640': (480, 640, ['scene0011_00/color/000000.jpg']),
    '320x448': (320, 448, ['scene0019_01/color/000200.jpg', 'scene0025_00/color/000100.jpg']),
}
#: What EdgeCrafter's files hold beside the tensors of :func:`seeded`.
CONSTANTS = {
    'decoder.up': torch.tensor([0.5]),
    'decoder.reg_scale': torch.tensor([4.0]),
    'decoder.anchors': torch.zeros(1, 8400, 4),
    'decoder.valid_mask': torch.ones(1, 8400, 1, dtype=torch.bool),
    'backbone.backbone.rope_embed.periods': 100 ** (2 * torch.arange(16) / 32),
} | {
    f'decoder.decoder.layers.{index}.cross_attn.num_points_scale': torch.tensor([1 / 3] * 3 + [1 / 6] * 6 + [1 / 3] * 3)
    for index in range(4)
}
#: Pattern in the name -> factor on the standard deviation of a weight; the first that is found counts.
GAINS = {
    r'dec_score_head|dec_bbox_head\.\d\.layers\.2': 2, r'reg_conf\.layers\.1': 3, r'self_attn\.out_proj': 0.5,
    r'sampling_offsets': 0.2, r'^backbone\..*(conv|patch_embed\.proj)\.weight': 1.4, r'pan_blocks': 1.25,
    r'conv\.weight': 0.85}


def seeded(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of a tensor of the reference: queries differ, and activations stay moderate."""
    value = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith('running_var'):
        value = np.exp(0.2 * value)
    elif name.endswith('sampling_offsets.bias'):
        value = 2 * value
    elif len(shape) == 1:
        value = 0.1 * value + name.endswith('weight') - 4 * ('dec_score_head' in name)
    elif name.endswith('denoising_class_embed.weight'):
        value[-1] = 0
    elif not name.endswith('register_token'):
        gain = next((gain for pattern, gain in GAINS.items() if re.search(pattern, name)), 1)
        value = gain * value / np.prod(shape[1:]) ** 0.5
    return torch.from_numpy(value.astype(np.float32))


def reference_tensors() -> dict[str, torch.Tensor]:
    """A state dict of the reference, complete."""
    tensors = dict(CONSTANTS)
    for line in GOLDEN['tensors']:
        name, *shape = line.split()
        tensors[name] = seeded(name, tuple(map(int, shape)))
        if name.endswith('running_var'):
            tensors[name.replace('running_var', 'num_batches_tracked')] = torch.tensor(0)
    return tensors


def drawn(height: int, width: int) -> np.ndarray:
    """A picture of boxes in front of a gradient, RGB."""
    rng = np.random.default_rng(0)
    picture = np.empty((height, width, 3))
    picture[:] = np.linspace(0, 255, width)[:, None] * rng.uniform(0, 1, 3)
    for _ in range(12):
        (y, x), (h, w) = rng.uniform(0, 0.8, 2), rng.uniform(0.1, 0.4, 2)
        picture[int(y * height):int((y + h) * height), int(x * width):int((x + w) * width)] = rng.uniform(0, 255, 3)
    return picture


@pytest.fixture(scope='module')
def tensors() -> dict[str, torch.Tensor]:
    return reference_tensors()


@pytest.fixture(scope='module')
def published(tensors, tmp_path_factory) -> Path:
    """A file as EdgeCrafter's training writes it."""
    path = tmp_path_factory.mktemp('ecdet') / 'ecdet_s.pth'
    other = {name: tensor + 1 for name, tensor in tensors.items() if name == 'decoder.dec_score_head.0.bias'}
    torch.save(dict(model=tensors | other, ema=dict(module=tensors, updates=9), last_epoch=73), path)
    return path


@pytest.fixture(scope='module')
def detector(published):
    """Loaded without a config."""
    path = published.with_name('converted.pth')
    convert_ecdet(published).save(path)
    return deit_detr.load(path, device='cpu')


@pytest.mark.parametrize('name', [
    'drawn', *(pytest.param(name, marks=pytest.mark.slow) for name in IMAGES if name != 'drawn')])
@torch.no_grad()
def test_logits_boxes_and_detections_are_those_of_the_reference(detector, name, request):
    height, width, sources = IMAGES[name]
    folder = request.getfixturevalue('indoor_photos') if sources else None
    pictures = [
        cv2.resize(cv2.imread(str(folder / source)), (width, height))[..., ::-1] for source in sources
    ] or [drawn(height, width)]
    normed = (np.stack(pictures) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    images = torch.from_numpy(normed.astype(np.float32)).permute(0, 3, 1, 2)
    samples = [
        DetDataSample(metainfo=dict(img_shape=(height, width), batch_input_shape=(height, width))) for _ in images]
    model = detector.model
    outputs = model.forward_transformer(model.extract_feat(images), samples)
    logits, boxes = model.bbox_head(**outputs, layers=slice(-1, None))
    np.testing.assert_allclose(boxes[0, :, ::30], GOLDEN[f'{name}_boxes'], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[0, :, ::30, ::8], GOLDEN[f'{name}_logits'], rtol=0, atol=1e-4)

    found = model.bbox_head.predict(samples, rescale=False, **outputs)
    for one, golden in zip(found, GOLDEN[f'{name}_found'], strict=True):
        golden[:, 2:] = golden[:, 2:].clip(0, [width, height] * 2)  # the reference leaves boxes outside the image
        assert len(one) == 300 and one.labels[:20].tolist() == golden[:, 1].tolist()
        np.testing.assert_allclose(one.scores[:20], golden[:, 0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.bboxes[:20], golden[:, 2:], rtol=0, atol=0.01)


def test_parameters_meta_and_classes(detector, tensors, published):
    buffers = ('running_mean', 'running_var')
    theirs = 2 + sum(
        tensor.numel() for name, tensor in tensors.items() if name not in CONSTANTS and not name.endswith(buffers)
        and not name.endswith('num_batches_tracked'))
    assert theirs == 9_884_102
    # without the two constants and the padding row of the denoising labels
    assert sum(param.numel() for param in detector.model.parameters()) == theirs - 2 - 192
    meta = load_checkpoint_file(published.with_name('converted.pth'))['meta']
    assert meta['recipe'] == RECIPE and tuple(meta['dataset_meta']['classes']) == detector.classes
    assert detector.classes[0] == 'person' and len(detector.classes) == 80
    assert len(detector(np.zeros((60, 90, 3), np.uint8), score_thr=0).pred_instances) == 300


def test_averaged_weights_count(published, tensors):
    conversion = convert_ecdet(published)
    key = 'decoder.dec_score_head.0.bias'
    assert torch.equal(conversion.state_dict['bbox_head.cls_branches.0.bias'], tensors[key])
    assert {'model', 'last_epoch', 'decoder.up', 'decoder.anchors'} < conversion.dropped.keys()
    renamed = len(tensors) + 1 - len(CONSTANTS)  # the padding row is dropped, the rest of its tensor is not
    assert len(conversion.state_dict) == renamed - 1


def test_backbone_alone(tensors, published, tmp_path):
    prefix = 'backbone.backbone.'
    torch.save({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)},
               tmp_path / 'ecvitt.pth')
    alone, whole = convert_ecdet(tmp_path / 'ecvitt.pth'), convert_ecdet(published).state_dict
    expected = {key for key in whole if key.startswith('backbone.')}
    assert alone.state_dict.keys() == expected and not alone.meta
    assert all(torch.equal(alone.state_dict[key], whole[key]) for key in expected)

    alone.save(tmp_path / 'ecvit-tiny.pth')
    model = nn.Module()
    model.backbone = ECViT(arch='deit-tiny', out_indices=[10, 11], init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'ecvit-tiny.pth'), prefix='backbone.'))
    model.backbone.init_weights()
    (line,) = compare_loaded(model)
    assert f'backbone: {len(expected)} of {len(expected)} tensors pretrained' in line


CHANGES = {
    'unknown': (lambda t: t.update({'decoder.decoder.segmentation_head.x': torch.zeros(1)}), 'segmentation_head.x'),
    'missing': (lambda t: t.pop('decoder.pre_bbox_head.layers.1.bias'), 'bbox_head.first_branch.2.bias missing'),
    'shape': (lambda t: t.update({'encoder.lateral_convs.0.norm.bias': torch.zeros(7)}),
              r'neck.laterals.0.bn.bias \(7,\) instead of \(192,\)'),
    'constant': (lambda t: t.update({'decoder.reg_scale': torch.tensor([8.0])}),
                 r'decoder.reg_scale is \[8.0\], but \[4.0\] here'),
    'twice': (lambda t: t.update({'register_token': torch.zeros(1, 1, 192)}), 'no rule for 1 tensors.*register_token'),
}


@pytest.mark.parametrize('change, message', CHANGES.values(), ids=CHANGES)
def test_other_tensors_are_named(tensors, tmp_path, change, message):
    tensors = dict(tensors)
    change(tensors)
    torch.save(dict(model=tensors), tmp_path / 'other.pth')
    with pytest.raises(UserError, match=f'(?s)other.pth: .*{message}'):
        convert_ecdet(tmp_path / 'other.pth')


def test_other_classes_have_no_names(tensors, tmp_path):
    tensors = {
        key: value[:5] if 'score_head' in key else value[-6:] if 'denoising_class' in key else value
        for key, value in tensors.items()}
    torch.save(dict(model=tensors), tmp_path / 'five.pth')
    conversion = convert_ecdet(tmp_path / 'five.pth')
    assert len(conversion.state_dict['bbox_head.cls_branches.3.bias']) == 5 and not conversion.meta


def test_recipe_is_in_the_checkout():
    assert recipe_path(RECIPE).is_file()
    with pytest.raises(UserError, match='other.py: no such recipe'):
        recipe_path('other.py')


def test_demo_by_name(published, tmp_path, monkeypatch):
    """With the file in PyTorch's cache folder, as after a download."""
    spec = importlib.util.spec_from_file_location('demo', REPO / 'tools/demo.py')
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    folder = tmp_path / 'hub/checkpoints'
    folder.mkdir(parents=True)
    (folder / 'ecdet_s.pth').symlink_to(published)
    cv2.imwrite(str(tmp_path / 'room.png'), drawn(120, 160).astype(np.uint8))
    options = [f'--out-dir={tmp_path}/out', '--score-thr=0.9', '--device=cpu']
    monkeypatch.setattr(sys, 'argv', ['demo.py', 'ecdet-s-coco', f'{tmp_path}/room.png', *options])
    demo.main()
    assert (tmp_path / 'out/room.png').is_file()
