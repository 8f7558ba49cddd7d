"""Rotated boxes against Shapely's polygons, and against mmcv's compiled operators."""

import math

import pytest
import torch
from mmcv.ops import box_iou_rotated, nms_rotated
from shapely import Polygon

from tests.helpers.operators import largest_difference, needs_compiled, ours_and_compiled

pytestmark = pytest.mark.usefixtures('our_operators')


def random_boxes(number: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    boxes = torch.rand(number, 5, generator=random, dtype=torch.float64)
    boxes[:, :2] *= 30
    boxes[:, 2:4] = 1 + 30 * boxes[:, 2:4]
    boxes[:, 4] = (boxes[:, 4] - 0.5) * 4 * math.pi
    return boxes.to(dtype)


def polygon(box: torch.Tensor) -> Polygon:
    x, y, width, height, angle = box.tolist()
    corners = [(-width / 2, -height / 2), (width / 2, -height / 2), (width / 2, height / 2), (-width / 2, height / 2)]
    return Polygon([(x + u * math.cos(angle) - v * math.sin(angle), y + u * math.sin(angle) + v * math.cos(angle))
                    for u, v in corners])


def overlap(a: torch.Tensor, b: torch.Tensor, mode: str = 'iou') -> float:
    a, b = polygon(a), polygon(b)
    inner = a.intersection(b).area
    return inner / (a.area if mode == 'iof' else a.area + b.area - inner)


@pytest.mark.parametrize('mode', ['iou', 'iof'])
@pytest.mark.parametrize('clockwise', [True, False])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_overlaps(device, mode, clockwise, dtype):
    a, b = random_boxes(20), random_boxes(20, seed=1)
    flip = torch.tensor([1, 1, 1, 1, 1 if clockwise else -1])
    expected = torch.tensor([[overlap(x * flip, y * flip, mode) for y in b] for x in a], dtype=dtype)
    assert 0.2 < (expected > 0).double().mean() < 0.99
    a, b = a.to(device, dtype), b.to(device, dtype)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    out = box_iou_rotated(a, b, mode, False, clockwise)
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=tolerance)
    out = box_iou_rotated(a, b, mode, True, clockwise)
    torch.testing.assert_close(out.cpu(), expected.diagonal(), rtol=0, atol=tolerance)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('angle', [0.0, math.pi / 2, math.pi / 4, 0.3, -2.0])
@pytest.mark.parametrize('place', [0.0, 1000.0])
def test_boxes_that_share_sides(device, dtype, angle, place):
    """The same box, turned by quarters; halves of it on either side; a box in its corner; a neighbour."""
    def box(along, across, width, height, turn=0.0):
        return [place + along * math.cos(angle) - across * math.sin(angle),
                place + along * math.sin(angle) + across * math.cos(angle), width, height, angle + turn]

    first = torch.tensor([box(0, 0, 8, 4)], dtype=dtype, device=device)
    others = [
        box(0, 0, 8, 4), box(0, 0, 4, 8, math.pi / 2), box(0, 0, 8, 4, math.pi), box(2, 0, 4, 4), box(0, 1, 8, 2),
        box(-3, -1, 2, 2), box(8, 0, 8, 4), box(0, 0, 4, 4)]
    out = box_iou_rotated(first, torch.tensor(others, dtype=dtype, device=device))[0]
    expected = torch.tensor([1, 1, 1, 0.5, 0.5, 0.125, 0, 0.5], dtype=dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=tolerance)


def boxes_that_share_sides(number: int = 5000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes anywhere at any angle, parts of them along their sides, and the overlap of each pair: float32."""
    random = torch.Generator().manual_seed(0)
    angle, x, y = torch.rand(3, number, generator=random) * torch.tensor([[2 * math.pi], [1000], [1000]])
    along, across, width, height = torch.tensor([(0, 1, 8, 2), (-3, -1, 2, 2), (2, 0, 4, 4)])[
        torch.arange(number) % 3].T.float()
    first = torch.stack([x, y, torch.full_like(x, 8), torch.full_like(x, 4), angle], dim=1)
    x, y = x + along * angle.cos() - across * angle.sin(), y + along * angle.sin() + across * angle.cos()
    return first, torch.stack([x, y, width, height, angle], dim=1), width * height / 32


def test_boxes_that_share_sides_at_any_angle(device):
    """A corner beside the other box by a rounding error counts: a triangle would be missing."""
    first, second, expected = (x.to(device) for x in boxes_that_share_sides())
    torch.testing.assert_close(box_iou_rotated(first, second, aligned=True), expected, rtol=0, atol=1e-4)


def test_boxes_without_area_and_no_boxes(device):
    flat = torch.tensor([[0.0, 0, 0, 4, 0.5], [0, 0, 4, 4, 0]], device=device)
    assert box_iou_rotated(flat, flat).tolist() == [[0, 0], [0, 1]]
    assert box_iou_rotated(flat[:0], flat).shape == (0, 2)
    assert box_iou_rotated(flat, flat[:0]).shape == (2, 0)
    assert box_iou_rotated(flat[:0], flat[:0], aligned=True).shape == (0,)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(device, dtype):
    boxes = random_boxes(9).to(device, dtype)
    out = box_iou_rotated(boxes, boxes.flip(0))
    assert out.dtype == dtype
    torch.testing.assert_close(out, box_iou_rotated(boxes.float(), boxes.flip(0).float()).to(dtype))


def test_nms(device):
    boxes, scores = random_boxes(40), torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[k], boxes[i]) <= 0.3 for k in kept):
            kept.append(i)
    dets, inds = nms_rotated(boxes.to(device), scores.to(device), 0.3)
    assert inds.tolist() == kept and 5 < len(kept) < 40
    assert torch.equal(dets.cpu(), torch.cat([boxes, scores[:, None]], 1)[kept])


def test_nms_does_not_look_at_labels(device):
    boxes = random_boxes(1).to(device).repeat(2, 1)
    scores, labels = torch.tensor([0.1, 0.2], dtype=torch.float64, device=device), torch.tensor([0, 1], device=device)
    assert nms_rotated(boxes, scores, 0.3, labels)[1].tolist() == [1]


@needs_compiled
@pytest.mark.parametrize('seed', range(20))
def test_as_compiled(seed):
    a, b = random_boxes(30, seed, torch.float32), random_boxes(30, seed + 100, torch.float32)
    b[::5] = a[::5]
    scores = torch.rand(30, generator=torch.Generator().manual_seed(seed))
    mode, aligned, clockwise = ('iou', 'iof')[seed % 2], seed // 2 % 2 == 1, seed // 4 % 2 == 1
    ours, compiled = ours_and_compiled(lambda: [box_iou_rotated(a, b, mode, aligned, clockwise)])
    assert largest_difference(ours, compiled) < 1e-4
    ours, compiled = ours_and_compiled(lambda: nms_rotated(a, scores, 0.3, clockwise=clockwise))
    assert largest_difference(ours, compiled) == 0
