"""Mosaic, mixup, zoom-out, crop and distortion: every box still encloses what it enclosed."""

import json

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from PIL import Image

from deit_detr.datasets import augmentation as aug
from deit_detr.datasets.checked_coco import CheckedCocoDataset
from deit_detr.engine.resume.train_loop import seed_all
from deit_detr.errors import UserError
from tests.helpers.drawn_coco import draw_coco
from tests.helpers.paths import REPO

ALL = dict(mosaic=0.5, mixup=0.5, zoom_out=0.5, iou_crop=0.8, photometric=0.5)
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)], np.uint8)


def picture(label: int, generator: np.random.Generator, width: int = 96, height: int = 72) -> aug.Picture:
    """A black picture with a rectangle of the label's colour."""
    pixels = np.zeros((height, width, 3), np.uint8)
    left, top = generator.integers(0, width // 2), generator.integers(0, height // 2)
    right, bottom = left + generator.integers(12, width // 2), top + generator.integers(12, height // 2)
    pixels[top:bottom, left:right] = COLOURS[label]
    boxes = np.array([[left, top, right, bottom]], float)
    return aug.Picture(pixels, boxes, np.array([label]), np.array([label == 3]))


def tight_box(pixels: np.ndarray, label: int, weight: float = 1.0) -> np.ndarray:
    """The box around the pixels of a colour, or None."""
    palette = np.array([(0, 0, 0), (aug.FILL,) * 3, *COLOURS], float) * weight
    nearest = np.square(pixels[:, :, None].astype(float) - palette).sum(-1).argmin(-1)
    rows, columns = np.nonzero(nearest == label + 2)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) if len(rows) else None


def check(result: aug.Picture, labels: set[int]) -> int:
    """Compare each box with the pixels; return how many boxes there are."""
    assert set(result.labels) <= labels and len(set(result.labels)) == len(result.labels)
    for box, label, ignored in zip(result.boxes, result.labels, result.ignored, strict=True):
        assert ignored == (label == 3)
        seen = tight_box(result.pixels, label)
        assert seen is None and (box[2:] - box[:2]).min() < 2.5 or np.abs(box - seen).max() <= 1.01, (box, seen)
    for label in labels - set(result.labels):
        seen = tight_box(result.pixels, label)
        assert seen is None or (seen[2:] - seen[:2]).min() <= 2, 'a visible rectangle has a box'
    return len(result.boxes)


def test_boxes_of_a_mosaic_are_tight():
    generator = np.random.default_rng(0)
    number = 0
    for seed in range(60):
        np.random.seed(seed)
        sizes = generator.integers(60, 140, (4, 2))
        pictures = [picture(label, generator, *size) for label, size in enumerate(sizes)]
        result = aug.make_mosaic(pictures)
        assert result.pixels.shape == pictures[0].pixels.shape
        number += check(result, {0, 1, 2, 3})
    assert number > 180


def test_boxes_of_a_zoomed_picture_are_tight():
    generator = np.random.default_rng(0)
    for seed in range(40):
        np.random.seed(seed)
        result = aug.zoom_out(picture(seed % 4, generator), 2.5)
        assert result.pixels.shape == (72, 96, 3) and check(result, {seed % 4}) == 1


def test_boxes_of_a_crop_are_tight_and_it_keeps_its_promises():
    generator = np.random.default_rng(0)
    smaller = 0
    for seed in range(80):
        np.random.seed(seed)
        before = picture(seed % 4, generator, *((96, 72) if seed % 2 else (72, 96)))
        after = aug.iou_crop(before)
        height, width = after.pixels.shape[:2]
        assert check(after, {seed % 4}) == 1, 'a crop has the centre of a box'
        assert (width < height) == (seed % 2 == 0) and max(width, height) <= 2 * min(width, height)
        smaller += height * width < 72 * 96
    assert smaller > 25


def test_a_mixup_has_the_boxes_of_both():
    generator = np.random.default_rng(0)
    for seed in range(40):
        np.random.seed(seed)
        one, other = picture(0, generator), picture(1, generator, *generator.integers(50, 150, 2))
        result = aug.mix(one, other)
        assert list(result.labels) == [0, 1] and np.array_equal(result.boxes[0], one.boxes[0])
        for box, channel in zip(result.boxes, (0, 1), strict=True):
            rows, columns = np.nonzero(result.pixels[..., channel] > 60)
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(box - seen).max() <= 1.01
        assert np.array_equal(one.pixels[..., 1], np.zeros((72, 96))), 'the original is not changed'


def test_pictures_without_boxes():
    empty = aug.Picture(np.zeros((72, 96, 3), np.uint8), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
    for seed in range(10):
        np.random.seed(seed)
        for result in (
                aug.make_mosaic([empty] * 4), aug.zoom_out(empty, 4), aug.iou_crop(empty), aug.mix(empty, empty)):
            assert result.boxes.shape == (0, 4) and result.labels.shape == result.ignored.shape == (0,)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """Six drawn images, the last without boxes."""
    root = tmp_path_factory.mktemp('drawn')
    categories = [dict(id=i, name=name) for i, name in enumerate(('one', 'two', 'three', 'four'))]
    draw_coco(root / 'train.json', root / 'train', categories, number=6)
    content = json.loads((root / 'train.json').read_text())
    content['annotations'] = [box for box in content['annotations'] if box['image_id'] != 50]
    (root / 'train.json').write_text(json.dumps(content))
    return root


def build(root, augment: dict | None) -> CheckedCocoDataset:
    register_all_modules()
    return CheckedCocoDataset(
        data_root=str(root), ann_file='train.json', data_prefix=dict(img='train/'),
        metainfo=dict(classes=('one', 'two', 'three', 'four')), augment=augment, pipeline=[
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')])


def test_classes_stay_with_their_colours(drawn):
    colours = np.random.default_rng(1).integers(0, 256, (4, 3))[:, ::-1]  # images are read as BGR
    dataset = build(drawn, dict(mosaic=0.5, zoom_out=0.5, zoom_most=2, iou_crop=0.8))
    checked = 0
    for index in range(5):
        for seed in range(8):
            seed_all(seed, index)
            sample = dataset[index]
            pixels, boxes = sample['inputs'].permute(1, 2, 0).numpy(), sample['data_samples'].gt_instances
            for (left, top, right, bottom), label in zip(
                    boxes.bboxes.numpy(), boxes.labels.numpy(), strict=True):
                if min(right - left, bottom - top) >= 6:  # JPEG and resizing blur the edges
                    centre = pixels[int((top + bottom) / 2), int((left + right) / 2)].astype(int)
                    assert np.abs(colours - centre).sum(1).argmin() == label
                    checked += 1
    assert checked > 100


def test_sample_depends_on_its_seeds_alone(drawn):
    samples = []
    for order in (range(6), reversed(range(6))):
        dataset, of_order = build(drawn, ALL), {}
        for index in order:
            seed_all(3, index)
            of_order[index] = dataset[index]
        samples.append(of_order)
    for index in range(6):
        one, other = (of_order[index] for of_order in samples)
        assert torch.equal(one['inputs'], other['inputs'])
        assert torch.equal(*(sample['data_samples'].gt_instances.bboxes.tensor for sample in (one, other)))


def test_it_stops_at_its_shares_of_the_training(drawn):
    dataset = build(drawn, dict(mosaic=1.0, zoom_out=1.0, mix_until=8 / 16, until=0.9))
    step = dataset.pipeline.transforms[2]
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aug, 'make_mosaic', lambda pictures: calls.append('mosaic') or pictures[0])
        patch.setattr(aug, 'zoom_out', lambda picture, most: calls.append('zoom') or picture)
        for epoch in (0, 7, 8, 14, 15):
            aug.set_progress(dataset, epoch / 16)
            dataset[0]
    assert calls == ['mosaic', 'mosaic', 'zoom', 'zoom'] and aug.augmentations(dataset) == [step]
    assert list(step.ends()) == [('mosaic', 0.5), ('zoom_out', 0.9)]
    plain = build(drawn, None)
    assert torch.equal(dataset[1]['inputs'], plain[1]['inputs'])


@pytest.mark.parametrize('augment, message', [
    (dict(mosaic=2), r'mosaic=2.*0\.\.1'), (dict(mixup=0.5, zoom_most=0.5), 'zoom_most=0.5')])
def test_mistakes_are_named(augment, message, drawn):
    with pytest.raises(UserError, match=message):
        build(drawn, augment)


def test_masks_are_refused(drawn):
    dataset = build(drawn, None)
    dataset.pipeline.transforms[1].with_mask = True
    with pytest.raises(UserError, match='without masks'):
        aug.Augmentation(dataset, mosaic=1.0)


@pytest.mark.parametrize('recipe', [
    'lw-detr_deit-tiny_1xb4-16e_mini-scannet', 'dino_deit-tiny_8xb2-12e_scannet', 'lw-detr_deit-tiny_1xb32-12e_scannet',
    'pure_python/detr_deit_tiny_8xb1_150e_scannet'])
def test_every_pipeline_of_the_recipes_takes_it(recipe, mini_scannet):
    register_all_modules()
    cfg = Config.fromfile(REPO / f'projects/deit_detr/configs/{recipe}.py').train_dataloader.dataset
    cfg.update(data_root=f'{mini_scannet}/', augment=ALL)
    dataset = DATASETS.build(cfg)
    for seed in range(6):
        seed_all(seed)
        sample = dataset[seed]
        boxes, (height, width) = sample['data_samples'].gt_instances.bboxes, sample['inputs'].shape[1:]
        boxes = getattr(boxes, 'tensor', boxes)
        assert sample['inputs'].dtype == torch.uint8 and sample['data_samples'].img_shape == (height, width)
        assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0
        assert (boxes <= torch.tensor([width, height] * 2)).all()


def test_nothing_is_cached(drawn):
    dataset = build(drawn, dict(mixup=1.0))
    seed_all(0)
    before = dataset[0]['inputs'].float()
    for path in (drawn / 'train').glob('*.jpg'):
        Image.open(path).point(lambda value: 255 - value).save(path)
    seed_all(0)
    assert (before - dataset[0]['inputs']).abs().mean() > 10
