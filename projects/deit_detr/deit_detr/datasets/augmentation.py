"""Strong augmentation of training images: mosaic, mixup, zoom-out, IoU crop and photometric distortion."""

import logging
from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmdet.datasets.transforms import PhotoMetricDistortion
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from torch.utils.data import Dataset

from deit_detr.datasets.wrappers import unwrap
from deit_detr.errors import UserError

#: Grey of mmdet's mosaic, close to the mean that the models subtract.
FILL = 114
#: A mosaic's tiles have this size, relative to a quarter of the image; its centre lies in this part of the image.
TILE_SIZES, CENTRE = (0.5, 1.5), (0.4, 0.6)
#: The crop overlaps one box at least by one of these IoUs; it is one of so many that are tried.
CROP_IOUS, CROP_TRIALS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9), 40
#: Share of the second image in a mixup.
MIXUP_WEIGHTS = (0.45, 0.55)


class Picture(NamedTuple):
    """An image with its boxes.

    Attributes:
        pixels: (height, width, 3).
        boxes: (N, 4), as x1, y1, x2, y2 in pixels.
        labels: (N,), indices of classes.
        ignored: (N,), whether a box is a crowd.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray


class Augmentation:
    """A step after the loading steps of a pipeline, for the first part of a training.

    It follows EdgeCrafter's ECDet (TMLR 2026) and DEIM (arXiv 2412.04234), but mixes single images instead of batches,
    and does not rotate, which loosens boxes. The size of an image stays, except with ``iou_crop``, and the rest of a
    recipe's pipeline resizes it as before. Everything is drawn from NumPy's global generator and nothing is cached, so
    under ``ResumableTrainLoop`` an image depends on seed, epoch and index alone.

    Each argument is the probability of a change for an image; all are off by default. A mosaic is neither zoomed out
    nor cropped.

    Args:
        dataset (BaseDataset): The data set, from which the other images of mosaic and mixup are drawn.
        mosaic (float): Four images in the place of one, each half as large, times 0.5 to 1.5.
        mixup (float): The mean of two images, with the boxes of both.
        zoom_out (float): The image up to ``zoom_most`` times smaller, somewhere on a grey one.
        iou_crop (float): A random part, with the boxes whose centres are in it.
        photometric (float): mmdet's ``PhotoMetricDistortion``: brightness, contrast, saturation, hue, colour channels.
        mix_until (float): Share of the training, 0..1, after which mosaic and mixup stop.
        until (float): Share of the training after which everything stops. An epoch that has begun goes on.
        zoom_most (float): At least 1; small objects vanish in small images that are zoomed out far.

    Raises:
        UserError: If a probability or share is not in 0..1, ``zoom_most`` is below 1, or the pipeline does not begin by
            loading an image and boxes.
    """

    def __init__(
        self, dataset: BaseDataset, mosaic: float = 0.0, mixup: float = 0.0, zoom_out: float = 0.0,
        iou_crop: float = 0.0, photometric: float = 0.0, mix_until: float = 0.5, until: float = 0.9,
        zoom_most: float = 4.0,
    ) -> None:
        self.dataset, self.mosaic, self.mixup, self.zoom_out = dataset, mosaic, mixup, zoom_out
        self.iou_crop, self.photometric, self.mix_until, self.until = iou_crop, photometric, mix_until, until
        wrong = [f'{name}={value!r}' for name, value in vars(self).items() if name != 'dataset' and not (
            isinstance(value, int | float) and 0 <= value <= 1)]
        if wrong or zoom_most < 1:
            wrong = ', '.join([*wrong, f'zoom_most={zoom_most!r}'])
            raise UserError(f'augment of the training data has {wrong}: each has to be in 0..1, zoom_most at least 1')
        self.zoom_most = zoom_most
        self.distort = PhotoMetricDistortion()
        # shared, because workers that are kept for several epochs read it
        self.progress = torch.zeros((), dtype=torch.float64).share_memory_()
        steps = dataset.pipeline.transforms
        self.loading = list(takewhile(lambda step: type(step).__name__.startswith('Load'), steps))
        if not any(getattr(step, 'with_bbox', False) and not getattr(step, 'with_mask', False)
                   for step in self.loading):
            raise UserError(
                'augment of the training data needs a pipeline that begins with LoadImageFromFile and '
                'LoadAnnotations(with_bbox=True), without masks')
        steps.insert(len(self.loading), self)

    def __call__(self, results: dict) -> dict:
        """Change the image and the boxes of a loaded sample."""
        share = float(self.progress)
        if share >= self.until:
            return results
        mixed = share < self.mix_until
        picture = _picture(results)
        if mixed and _happens(self.mosaic):
            picture = make_mosaic([picture, *(self._other() for _ in range(3))])
        else:
            picture = zoom_out(picture, self.zoom_most) if _happens(self.zoom_out) else picture
            picture = iou_crop(picture) if _happens(self.iou_crop) else picture
        if mixed and _happens(self.mixup):
            picture = mix(picture, self._other())
        pixels = picture.pixels
        if _happens(self.photometric):
            pixels = self.distort(dict(img=pixels))['img'].round().clip(0, 255).astype(pixels.dtype)
        return dict(
            results, img=pixels, img_shape=pixels.shape[:2],
            gt_bboxes=HorizontalBoxes(torch.from_numpy(picture.boxes.astype(np.float32))),
            gt_bboxes_labels=picture.labels, gt_ignore_flags=picture.ignored)

    def _other(self) -> Picture:
        results = self.dataset.get_data_info(np.random.randint(len(self.dataset)))
        for step in self.loading:
            results = step(results)
        return _picture(results)

    def ends(self) -> Iterator[tuple[str, float]]:
        """Yield the changes that are on, in words, with the share of the training after which they stop."""
        names = ('mosaic', 'mixup', 'zoom_out', 'iou_crop', 'photometric')
        for end, group in ((min(self.mix_until, self.until), names[:2]), (self.until, names[2:])):
            on = [name for name in group if getattr(self, name)]
            if on:
                yield ', '.join(on), end


def augmentations(dataset: Dataset) -> list[Augmentation]:
    """Return the augmentations of a data set, which may have wrappers around it."""
    return [step for _, leaf in unwrap(dataset) for step in getattr(getattr(leaf, 'pipeline', None), 'transforms', ())
            if isinstance(step, Augmentation)]


def set_progress(dataset: Dataset, share: float) -> None:
    """Tell a data set's augmentations, also those in its workers, how much of the training is done, 0..1."""
    for step in augmentations(dataset):
        before = float(step.progress)
        step.progress.fill_(share)
        for what, end in step.ends():
            if before < end <= float(step.progress):
                print_log(f'{what}: off from here', logger='current', level=logging.INFO)


def _happens(probability: float) -> bool:
    return np.random.random() < probability


def _picture(results: dict) -> Picture:
    boxes = torch.as_tensor(getattr(results['gt_bboxes'], 'tensor', results['gt_bboxes'])).double()
    return Picture(
        results['img'], boxes.numpy().reshape(-1, 4), results['gt_bboxes_labels'], results['gt_ignore_flags'])


def make_mosaic(pictures: list[Picture]) -> Picture:
    """Put four pictures into the quarters of a canvas as large as the first.

    A tile touches the canvas' centre with a corner, keeps its aspect ratio, and is cut at the border.
    """
    height, width = pictures[0].pixels.shape[:2]
    canvas = np.full_like(pictures[0].pixels, FILL)
    zoom = np.random.uniform(*TILE_SIZES)
    centre = np.round(np.random.uniform(*CENTRE, 2) * (width, height)).astype(int)
    parts = []
    for picture, side in zip(pictures, ((1, 1), (0, 1), (1, 0), (0, 0)), strict=True):
        size = _fitted(picture, zoom * width / 2, zoom * height / 2)
        parts.append(_draw(canvas, picture, size, centre - side * size))
    return _joined(canvas, parts)


def zoom_out(picture: Picture, most: float) -> Picture:
    """Put a copy that is 1 to ``most`` times smaller somewhere on a canvas of the same size."""
    canvas = np.full_like(picture.pixels, FILL)
    full = np.array(canvas.shape[1::-1])
    size = _fitted(picture, *full / np.random.uniform(1, most))
    return _joined(canvas, [_draw(canvas, picture, size, np.random.randint(0, full - size + 1))])


def mix(picture: Picture, other: Picture) -> Picture:
    """Blend another picture, as large as fits, into the middle of a picture."""
    canvas = picture.pixels.copy()
    full = np.array(canvas.shape[1::-1])
    size = _fitted(other, *full)
    weight = np.random.uniform(*MIXUP_WEIGHTS)
    return _joined(canvas, [picture, _draw(canvas, other, size, (full - size) // 2, weight)])


def iou_crop(picture: Picture) -> Picture:
    """Cut out a random part that overlaps one of the boxes by a random IoU at least; keep boxes by their centres.

    It is 0.3 to 1 times as wide and as high, at most twice as long as wide (SSD, arXiv 1512.02325), and upright only if
    the picture is, because batches are made of images of one orientation. If none of the parts that are tried fits,
    the picture stays as it is.
    """
    full = np.array(picture.pixels.shape[1::-1])
    least = np.random.choice(CROP_IOUS)
    sizes = np.maximum((full * np.random.uniform(0.3, 1, (CROP_TRIALS, 2))).astype(int), 1)
    starts = (np.random.random((CROP_TRIALS, 2)) * (full - sizes + 1)).astype(int)
    ratios = sizes[:, 0] / sizes[:, 1]
    fits = (ratios >= 0.5) & (ratios <= 2) & ((ratios < 1) == (full[0] < full[1]))
    if len(picture.boxes):
        low, high = picture.boxes[None, :, :2], picture.boxes[None, :, 2:]
        begin, end = starts[:, None], (starts + sizes)[:, None]
        inside = (((low + high) / 2 > begin) & ((low + high) / 2 < end)).all(-1)
        shared = (np.minimum(high, end) - np.maximum(low, begin)).clip(0).prod(-1)
        ious = shared / ((high - low).prod(-1) + sizes.prod(-1)[:, None] - shared)
        fits &= inside.any(1) & (ious.max(1) >= least)
    if not fits.any():
        return picture
    chosen = int(fits.argmax())
    (left, top), (right, bottom) = starts[chosen], starts[chosen] + sizes[chosen]
    pixels = np.ascontiguousarray(picture.pixels[top:bottom, left:right])
    if len(picture.boxes):
        picture = Picture(pixels, *(values[inside[chosen]] for values in picture[1:]))
    return _joined(pixels, [picture._replace(boxes=picture.boxes - (left, top, left, top))])


def _fitted(picture: Picture, width: float, height: float) -> np.ndarray:
    """Return the width and height of a picture, scaled to fit into a rectangle."""
    size = np.array(picture.pixels.shape[1::-1])
    return np.maximum(np.round(size * min(width / size[0], height / size[1])).astype(int), 1)


def _draw(canvas: np.ndarray, picture: Picture, size: np.ndarray, start: np.ndarray, weight: float = 1.0) -> Picture:
    """Draw a picture on a canvas, where that is; return the picture with its boxes on the canvas.

    Args:
        canvas: (height, width, 3), changed in place.
        picture: The picture.
        size: Its width and height on the canvas.
        start: x and y of its corner on the canvas; it may reach beyond.
        weight: Share of the picture in the result, 0..1.
    """
    pixels = cv2.resize(picture.pixels, tuple(map(int, size)))
    (left, top), (right, bottom) = np.maximum(start, 0), np.minimum(start + size, canvas.shape[1::-1])
    if left < right and top < bottom:
        pixels = pixels[top - start[1] : bottom - start[1], left - start[0] : right - start[0]]
        part = canvas[top:bottom, left:right]
        part[:] = pixels if weight == 1 else cv2.addWeighted(part, 1 - weight, pixels, weight, 0)
    scale = size / np.array(picture.pixels.shape[1::-1])
    return picture._replace(boxes=picture.boxes * np.tile(scale, 2) + np.tile(start, 2))


def _joined(canvas: np.ndarray, parts: list[Picture]) -> Picture:
    """Return a canvas with the boxes of its parts, cut at its border; those below a pixel are left out."""
    boxes, labels, ignored = (np.concatenate(values) for values in list(zip(*parts, strict=True))[1:])
    height, width = canvas.shape[:2]
    boxes = boxes.clip(0, (width, height, width, height))
    kept = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
    return Picture(canvas, boxes[kept], labels[kept], ignored[kept])
