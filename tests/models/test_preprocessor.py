"""Images and samples that reach the model are those of mmdet's preprocessor, to the bit."""

import copy

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import PackDetInputs
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from torch.utils._python_dispatch import TorchDispatchMode

from deit_detr.datasets.noise import make_batch
from deit_detr.models.preprocessor import FastDataPreprocessor
from tests.helpers.small_models import noise

PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
BATCHES = {
    'one image': noise((48, 64, 2)), 'equal sizes': noise((48, 64, 2), (48, 64, 0), (48, 64, 5)),
    'other sizes': noise((48, 64, 2), (32, 80, 1), (48, 64, 3))}
BATCHES['a tensor'] = dict(BATCHES['equal sizes'], inputs=torch.stack(BATCHES['equal sizes']['inputs']))


@pytest.mark.parametrize('options', [
    dict(PIXELS, bgr_to_rgb=True), dict(PIXELS, rgb_to_bgr=True, pad_size_divisor=32, pad_value=3), dict(PIXELS),
    dict(bgr_to_rgb=True), dict(PIXELS, bgr_to_rgb=True, batch_augments=[
        dict(type='mmdet.BatchFixedSizePad', size=(80, 96), pad_mask=False)]),
], ids=['rgb', 'divisor', 'bgr', 'without mean', 'augmented'])
@pytest.mark.parametrize('name', BATCHES)
@pytest.mark.parametrize('training', [True, False])
def test_equals_mmdet(name, options, training):
    plain, fast = (
        MODELS.build(dict(copy.deepcopy(options), type=kind)).to(get_device())
        for kind in (DetDataPreprocessor, FastDataPreprocessor))
    expected, got = (kind(copy.deepcopy(BATCHES[name]), training) for kind in (plain, fast))
    assert torch.equal(expected['inputs'], got['inputs']) and got['inputs'].stride() == expected['inputs'].stride()
    assert got['inputs'].device == expected['inputs'].device
    assert_equal_samples(expected['data_samples'], got['data_samples'])


def assert_equal_samples(expected, got):
    for a, b in zip(expected, got, strict=True):
        assert a.metainfo == b.metainfo and set(a.all_keys()) == set(b.all_keys())
        for name, instances in a.items():
            for field, value in instances.items():
                other = b.get(name)[field]
                assert type(value) is type(other)
                value, other = (x.tensor if isinstance(x, HorizontalBoxes) else torch.as_tensor(
                    x.masks if isinstance(x, BitmapMasks) else x) for x in (value, other))
                assert torch.equal(value, other) and value.device == other.device and value.dtype == other.dtype


@pytest.mark.parametrize('boxtype2tensor', [True, False])
def test_samples_of_the_pipeline(boxtype2tensor):
    """Boxes to ignore, none at all, and masks, with which mmdet's way is taken; the batch itself stays as it is."""
    def sample(boxes, ignored, **fields):
        return PackDetInputs(meta_keys=())(dict(
            img=np.zeros((48, 64, 3), np.uint8), gt_bboxes=HorizontalBoxes(torch.rand(boxes, 4)),
            gt_bboxes_labels=np.arange(boxes), gt_ignore_flags=np.arange(boxes) < ignored, **fields))
    for samples in ([sample(4, 1), sample(0, 0), sample(2, 2)],
                    [sample(1, 0, gt_masks=BitmapMasks(np.ones((1, 48, 64), np.uint8), 48, 64)), sample(3, 0)]):
        data = pseudo_collate(samples)
        before = copy.deepcopy(data)
        plain, fast = (kind(**PIXELS, boxtype2tensor=boxtype2tensor).to(get_device())
                       for kind in (DetDataPreprocessor, FastDataPreprocessor))
        expected, got = (kind(copy.deepcopy(data), True)['data_samples'] for kind in (plain, fast))
        assert_equal_samples(expected, got)
        fast(data, True)
        assert all(isinstance(one.gt_instances.bboxes, HorizontalBoxes) for one in data['data_samples'])
        assert all(torch.equal(one.gt_instances.bboxes.tensor, other.gt_instances.bboxes.tensor) and
                   one.metainfo == other.metainfo
                   for one, other in zip(data['data_samples'], before['data_samples'], strict=True))


def test_grey_images_are_refused_as_by_mmdet():
    data = dict(inputs=[torch.zeros(1, 48, 64, dtype=torch.uint8)] * 2, data_samples=None)
    for kind in (DetDataPreprocessor, FastDataPreprocessor):
        with pytest.raises(AssertionError, match='shape of \\(3, H, W\\)'):
            kind(**PIXELS)(copy.deepcopy(data))


class Computations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += any(name in str(func) for name in ('index', 'flip', 'sub', 'div', 'stack', 'cat', 'pad'))
        return func(*args, **(kwargs or {}))


def test_work_does_not_grow_with_the_batch():
    counts = {}
    for kind in (DetDataPreprocessor, FastDataPreprocessor):
        for size in (2, 8):
            with Computations() as counter:
                kind(**PIXELS, bgr_to_rgb=True)(make_batch(size, (48, 64), 1), True)
            counts[kind, size] = counter.number
    assert counts[FastDataPreprocessor, 2] == counts[FastDataPreprocessor, 8] < 8 < counts[DetDataPreprocessor, 8]
