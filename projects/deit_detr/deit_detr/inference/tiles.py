"""Detection in tiles: small things in large pictures, which the detector would shrink away."""

from collections.abc import Iterator

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torchvision.ops import box_iou

from deit_detr.errors import UserError
from deit_detr.inference.detector import Detector, ImageInput

#: Share of a tile's side within which a box that ends at an inner border counts as cut by it.
_CUT = 0.01
#: IoU from which boxes of one class in different tiles are one object.
_SAME = 0.5


def tile_corners(size: tuple[int, int], tile: int, overlap: float = 0.25) -> Iterator[tuple[int, int, int, int]]:
    """Yield the corners (x1, y1, x2, y2) of tiles that cover a picture.

    Args:
        size: Width and height of the picture in pixels.
        tile: Side of a tile in pixels; a smaller picture has smaller tiles.
        overlap: Least share of a side that neighbours have in common, 0 to 0.9. An object no larger than this lies
            whole in some tile.
    """
    starts = []
    for side in size:
        room = max(side - tile, 0)
        number = -(-room // max(1, int(tile * (1 - overlap)))) + 1
        starts.append([round(room * index / max(number - 1, 1)) for index in range(number)])
    width, height = size
    for y in starts[1]:
        for x in starts[0]:
            yield x, y, min(x + tile, width), min(y + tile, height)


def detect_in_tiles(
    detector: Detector, tile: int, image: ImageInput, score_thr: float = 0.3, overlap: float = 0.25,
    batch_size: int = 1,
) -> DetDataSample:
    """Detect the objects in a picture and in each of its tiles, without doubles.

    As in SAHI ([arXiv 2202.06934](https://arxiv.org/abs/2202.06934)), except for how tiles are joined: a box that an
    inner border of its tile cuts is dropped, since the object lies whole in the next tile or, if it is larger than the
    overlap, in the picture. Of boxes of one class with IoU of at least 0.5 from different tiles the best stays. Boxes
    of the same tile do not suppress each other.

    Args:
        detector: The detector.
        tile: Side of a tile in pixels.
        image: The picture, see :meth:`Detector.__call__`.
        score_thr: Minimum score of a detection, in 0..1.
        overlap: Least share of a side that neighbours have in common, 0 to 0.9.
        batch_size: Tiles in a batch.

    Returns:
        DetDataSample: As of calling the detector.

    Raises:
        UserError: If the image cannot be read, or ``tile`` or ``overlap`` is out of range.
    """
    if tile < 32 or not 0 <= overlap <= 0.9:
        raise UserError(f'tiles of {tile} pixels with an overlap of {overlap:g}: a tile has at least 32 pixels, and '
                        'the overlap is 0 to 0.9')
    picture = detector.read(image)
    height, width = picture.shape[:2]
    whole = detector(image, score_thr)
    corners = list(tile_corners((width, height), tile, overlap))
    if len(corners) == 1:
        return whole
    samples = detector([picture[y1:y2, x1:x2] for x1, y1, x2, y2 in corners], score_thr, batch_size)
    parts = [(whole.pred_instances, torch.full((len(whole.pred_instances),), -1))]
    for number, ((x1, y1, x2, y2), sample) in enumerate(zip(corners, samples, strict=True)):
        found = sample.pred_instances
        inner = torch.tensor([x1 > 0, y1 > 0, x2 < width, y2 < height])
        boxes, margin = found.bboxes, _CUT * tile
        ends = torch.stack([boxes[:, 0] < margin, boxes[:, 1] < margin, boxes[:, 2] > x2 - x1 - margin,
                            boxes[:, 3] > y2 - y1 - margin], 1)
        found = found[~(ends & inner).any(1)]
        found.bboxes = found.bboxes + found.bboxes.new_tensor([x1, y1, x1, y1])
        parts.append((found, torch.full((len(found),), number)))
    found = InstanceData.cat([part for part, _ in parts])
    kept = _without_doubles(found.bboxes, found.scores, found.labels, torch.cat([tiles for _, tiles in parts]))
    return DetDataSample(metainfo=whole.metainfo, pred_instances=found[kept])


def _without_doubles(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, tiles: torch.Tensor,
) -> torch.Tensor:
    """Return the rows of the detections to keep, best first."""
    order = scores.argsort(descending=True, stable=True)
    boxes, labels, tiles = boxes[order], labels[order], tiles[order]
    double = (box_iou(boxes, boxes) >= _SAME) & (labels[:, None] == labels) & (tiles[:, None] != tiles)
    kept = torch.ones(len(order), dtype=torch.bool)
    for row in range(len(order)):
        if kept[row]:
            kept[row + 1:] &= ~double[row, row + 1:]
    return order[kept]
