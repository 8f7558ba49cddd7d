"""Overlaps and suppression of boxes against loops from their definitions, and against mmcv's compiled ones."""

import math

import pytest
import torch
from mmcv.ops import batched_nms, bbox_overlaps, nms, nms_match, soft_nms

from tests.helpers.operators import largest_difference, needs_compiled, ours_and_compiled, random_boxes

pytestmark = pytest.mark.usefixtures('our_operators')


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def iou(a, b, offset=0, of_first=False) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    inner = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b)]
    whole = areas[0] if of_first else sum(areas) - inner
    return inner / whole if whole else math.nan


def greedy(boxes, scores, threshold, offset=0) -> list[int]:
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if not any(iou(boxes[k], boxes[i], offset) > threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize('mode', ['iou', 'iof'])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('offset', [0, 1])
def test_overlaps(device, mode, aligned, offset):
    a, b = random_boxes(9, generator(), dtype=torch.float64), random_boxes(9, generator(1), dtype=torch.float64)
    pairs = [[iou(x, y, offset, mode == 'iof') for y in b.tolist()] for x in a.tolist()]
    expected = torch.tensor(pairs, dtype=torch.float64)
    out = bbox_overlaps(a.to(device), b.to(device), mode, aligned, offset)
    torch.testing.assert_close(out.cpu(), expected.diagonal() if aligned else expected)


def test_overlaps_of_half_precision_do_not_overflow(device):
    boxes = torch.tensor([[0.0, 0, 1000, 800], [0, 0, 500, 800]], dtype=torch.float16, device=device)
    out = bbox_overlaps(boxes, boxes)
    assert out.dtype == torch.float16 and out.tolist() == [[1, 0.5], [0.5, 1]]


def test_without_boxes(device):
    none, scores = torch.zeros(0, 4, device=device), torch.zeros(0, device=device)
    assert bbox_overlaps(none, torch.zeros(3, 4, device=device)).shape == (0, 3)
    for dets, inds in (nms(none, scores, 0.5), soft_nms(none, scores)):
        assert dets.shape == (0, 5) and inds.shape == (0,) and inds.dtype == torch.long
    assert nms_match(torch.zeros(0, 5, device=device), 0.5) == []


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
def test_nms(device, offset, threshold):
    boxes = random_boxes(40, generator(), dtype=torch.float64)
    scores = torch.rand(40, generator=generator(), dtype=torch.float64)
    scores[10:20] = scores[:10]
    dets, inds = nms(boxes.to(device), scores.to(device), threshold, offset)
    assert inds.tolist() == greedy(boxes.tolist(), scores.tolist(), threshold, offset)
    assert torch.equal(dets.cpu(), torch.cat([boxes, scores[:, None]], 1)[inds.cpu()])


def test_nms_keeps_boxes_that_overlap_by_the_threshold(device):
    """Three tenths in float32 are more than in float64."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 3]], device=device)
    assert nms(boxes, torch.tensor([0.9, 0.8], device=device), 0.3)[1].tolist() == [0, 1]
    assert nms(boxes, torch.tensor([0.9, 0.8], device=device), 0.2999)[1].tolist() == [0]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_nms_of_half_precision(device, dtype):
    boxes, scores = random_boxes(40, generator()).to(dtype), torch.rand(40, generator=generator()).to(dtype)
    kept = greedy(boxes.tolist(), scores.tolist(), 0.5)
    assert nms(boxes.to(device), scores.to(device), 0.5)[1].tolist() == kept
    assert nms(boxes.float().to(device), scores.to(device), 0.5)[1].tolist() == kept  # as in autocast


def test_batched_nms_separates_classes(device):
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 4, device=device)
    scores, classes = torch.tensor([0.1, 0.4, 0.3, 0.2], device=device), torch.tensor([0, 0, 1, 1], device=device)
    assert batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.5))[1].tolist() == [1, 2]


def soft(boxes, scores, threshold, sigma, min_score, method, offset) -> list[tuple[int, float]]:
    rest, kept = dict(enumerate(scores)), []
    while rest:
        best = max(rest, key=rest.get)
        kept.append((best, rest.pop(best)))
        for i in list(rest):
            overlap = iou(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                rest[i] *= math.exp(-overlap**2 / sigma)
            elif overlap >= threshold:
                rest[i] *= 1 - overlap if method == 'linear' else 0
            if rest[i] < min_score:
                del rest[i]
    return kept


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms(device, method, offset):
    boxes = random_boxes(30, generator(), dtype=torch.float64)
    scores = torch.rand(30, generator=generator(), dtype=torch.float64)
    expected = soft(boxes.tolist(), scores.tolist(), 0.3, 0.5, 0.05, method, offset)
    dets, inds = soft_nms(boxes.to(device), scores.to(device), 0.3, 0.5, 0.05, method, offset)
    assert inds.tolist() == [i for i, _ in expected] and len(expected) < 30
    torch.testing.assert_close(dets[:, 4].cpu(), torch.tensor([s for _, s in expected], dtype=torch.float64))
    assert torch.equal(dets[:, :4].cpu(), boxes[inds.cpu()])


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_of_boxes_without_area(device, method):
    """The compiled one gives the second a score that is not a number, by the bell."""
    flat = torch.tensor([[2.0, 3, 2, 3], [2, 3, 2, 3]], device=device)
    dets, inds = soft_nms(flat, torch.tensor([0.5, 0.75], device=device), method=method)
    assert dets[:, 4].tolist() == [0.75, 0.5] and inds.tolist() == [1, 0]


def test_nms_match(device):
    boxes, scores = random_boxes(40, generator()), torch.rand(40, generator=generator())
    groups = nms_match(torch.cat([boxes, scores[:, None]], 1).to(device), 0.4)
    assert [int(group[0]) for group in groups] == greedy(boxes.tolist(), scores.tolist(), 0.4)
    assert sorted(int(i) for group in groups for i in group) == list(range(40))
    for group in groups:
        assert scores[group.cpu()].diff().le(0).all()
        assert all(iou(boxes[group[0]].tolist(), boxes[i].tolist()) >= 0.4 for i in group[1:])


@needs_compiled
@pytest.mark.parametrize('seed', range(40))
def test_as_compiled(seed):
    random = generator(seed)
    number = 5 + 10 * seed
    boxes, scores = random_boxes(number, random), torch.rand(number, generator=random)
    tied = (10 * scores).round() / 10  # where the compiled nms and nms_match decide by a sort that is not stable
    other = random_boxes(number, random)
    threshold, offset, method = 0.2 + 0.1 * (seed % 6), seed % 2, ('naive', 'linear', 'gaussian')[seed % 3]
    dets = torch.cat([boxes, scores[:, None]], 1)
    for call in (
        lambda: nms(boxes, scores, threshold, offset),
        lambda: soft_nms(boxes, tied, threshold, 0.5, 0.05, method, offset),
        lambda: nms_match(dets, threshold),
        lambda: [bbox_overlaps(boxes, other, ('iou', 'iof')[seed // 2 % 2], seed // 4 % 2 == 1, offset)],
    ):
        ours, compiled = ours_and_compiled(call)
        assert largest_difference(ours, compiled) < 1e-6
