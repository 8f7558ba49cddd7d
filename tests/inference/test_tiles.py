"""Detection in tiles, with a detector that finds rectangles of its colours, and nothing that is small after scaling."""

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from deit_detr.errors import UserError
from deit_detr.inference.tiles import detect_in_tiles, tile_corners


class Rectangles:
    """Looks at 100 pixels of the longer side, as a detector with a fixed input size does; needs eight of an object."""

    def read(self, image):
        return image

    def __call__(self, images, score_thr=0.3, batch_size=1):
        if isinstance(images, list):
            return [self(image) for image in images]
        boxes, labels = [], []
        for label in (0, 1):
            _, _, stats, _ = cv2.connectedComponentsWithStats((images[..., label] > 128).astype(np.uint8))
            for x, y, width, height, _ in stats[1:]:
                if min(width, height) * 100 / max(images.shape[:2]) >= 8:
                    boxes.append([x, y, x + width, y + height])
                    labels.append(label)
        found = InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                             labels=torch.tensor(labels, dtype=torch.int64),
                             scores=torch.linspace(0.9, 0.5, len(boxes)))
        found.label_names = [f'class{label}' for label in labels]
        return DetDataSample(pred_instances=found)


@pytest.mark.parametrize('size, tile, overlap', [((1000, 700), 300, 0.25), ((300, 1000), 300, 0), ((64, 48), 100, 0.5),
                                                 ((301, 300), 300, 0.25)])
def test_tiles_cover_the_picture(size, tile, overlap):
    covered = np.zeros(size[::-1], int)
    corners = list(tile_corners(size, tile, overlap))
    for x1, y1, x2, y2 in corners:
        assert (x2 - x1, y2 - y1) == (min(tile, size[0]), min(tile, size[1]))
        covered[y1:y2, x1:x2] += 1
    assert covered.min() == 1 and len(set(corners)) == len(corners)
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in corners})
        assert all(b - a <= tile * (1 - overlap) + 1 for a, b in zip(starts, starts[1:], strict=False))


def test_small_and_large_things_once_each():
    rng = np.random.default_rng(0)
    picture, true = np.zeros((900, 1200, 3), np.uint8), []
    boxes = [(0, 100, 100, 700, 800)]  # over many tiles
    boxes += [(1, x, y, x + w, y + h) for x, y, w, h in zip(
        range(730, 1150, 70), rng.integers(0, 800, 6), rng.integers(30, 60, 6), rng.integers(30, 70, 6), strict=True)]
    boxes += [(0, 870, 600, 920, 660), (1, 865, 605, 915, 660)]  # classes in one place
    for label, x1, y1, x2, y2 in boxes:
        picture[y1:y2, x1:x2, label] = 255
        true.append((f'class{label}', float(x1), float(y1), float(x2), float(y2)))
    whole = Rectangles()(picture).pred_instances
    assert len(whole) == 1, 'the others are too small'
    found = detect_in_tiles(Rectangles(), 320, picture).pred_instances
    rows = [(name, *box) for name, box in zip(found.label_names, found.bboxes.tolist(), strict=True)]
    assert sorted(rows) == sorted(true)
    assert (found.scores.diff() <= 0).all()


def test_small_pictures_and_nothing():
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[10:40, 20:50, 0] = 255
    assert detect_in_tiles(Rectangles(), 100, picture).pred_instances.bboxes.tolist() == [[20, 10, 50, 40]]
    assert len(detect_in_tiles(Rectangles(), 32, np.zeros_like(picture)).pred_instances) == 0
    for tile, overlap in ((10, 0.25), (100, 1)):
        with pytest.raises(UserError, match='at least 32 pixels'):
            detect_in_tiles(Rectangles(), tile, picture, overlap=overlap)


def test_real_detector(detector, mini_frames):
    frames = [cv2.imread(str(path)) for path in sorted(mini_frames.glob('*/color/*.jpg'))[:2]]
    sample = detect_in_tiles(detector, 120, np.hstack(frames), 0.2)
    found = sample.pred_instances
    assert len(found.label_names) == len(found.scores) == len(found) > 0 and (found.bboxes[:, 2] > 160).any()
    assert detector.draw(np.hstack(frames), sample).size[0] >= 320
