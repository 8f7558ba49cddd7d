"""Matches of a batch against SciPy's and mmdet's, one by one, and the kernel for GPUs against both.

Triton's interpreter runs the kernel without a GPU, if ``TRITON_INTERPRET=1`` is set when Triton is imported.
"""

import os
import sys

import numpy as np
import pytest
import torch
from mmdet.models.task_modules import BBoxL1Cost, ClassificationCost, FocalLossCost, HungarianAssigner, IoUCost
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch.utils._python_dispatch import TorchDispatchMode

from deit_detr.models import matching
from deit_detr.models.matching import assign, l1_distances, match, match_batch
from tests.helpers.fork_server import start
from tests.helpers.paths import REPO

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = torch.device('cuda' if torch.cuda.is_available() and not INTERPRETED else 'cpu')
needs_kernel = pytest.mark.skipif(DEVICE.type == 'cpu' and not INTERPRETED, reason='needs a GPU or TRITON_INTERPRET=1')

L1, GIOU = dict(type=BBoxL1Cost, box_format='xywh', weight=5.0), dict(type=IoUCost, iou_mode='giou', weight=2.0)
COSTS = {
    'detr': (dict(type=ClassificationCost, weight=1.0), L1, GIOU),
    'lw-detr': (dict(type=FocalLossCost, weight=2.0), L1, GIOU),
    'corners': (dict(type=FocalLossCost, weight=2.0), dict(type=BBoxL1Cost, box_format='xyxy', weight=5.0)),
}

#: Queries, and the boxes of each image.
PROBLEMS = {
    'usual': (30, [3, 0, 8, 1]), 'more boxes than queries': (5, [9, 5, 4]), 'as many': (6, [6, 6]),
    'no boxes': (5, [0, 0]), 'one query': (1, [1, 3, 0]), 'beyond a power of two': (65, [2, 4])}
KINDS = {
    'random': lambda draw: draw,
    'ties': lambda draw: np.floor(3 * draw),
    'all equal': lambda draw: 0 * draw + 0.5,
    'last bits': lambda draw: 1000 + np.floor(6 * draw) * 2**-14,
    'huge beside small': lambda draw: np.where(draw < 0.1, -1e9, 10 * draw),
    'not finite': lambda draw: np.where(draw < 0.1, np.nan, np.where(draw > 0.8, np.inf, -draw)),
    'all infinite': lambda draw: -np.inf + 0 * draw,
}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]


@pytest.fixture(params=KINDS)
def costs(request, problem):
    """Costs ``(layers, images, most boxes, queries)``."""
    num_queries, num_gts = problem
    num_layers = 1 if INTERPRETED else 2
    draw = np.random.default_rng(0).random((num_layers, len(num_gts), max(num_gts), num_queries))
    return KINDS[request.param](draw).astype(np.float32)


def one_by_one(costs: np.ndarray, num_gts: list[int]) -> list[list[int]]:
    """Return layer, image, query and box of each match, as SciPy finds them."""
    found = []
    for (layer, image), _ in np.ndenumerate(costs[..., 0, 0] if costs.size else np.empty(costs.shape[:2])):
        of_image = costs[layer, image, :num_gts[image]].T
        queries, boxes = linear_sum_assignment(np.where(np.isfinite(of_image), of_image, np.float32(-1e9)))
        found += [[layer, image, query, box] for query, box in zip(queries.tolist(), boxes.tolist(), strict=True)]
    return found


def test_equals_scipy(costs, problem):
    found = match(costs, problem[1])
    assert found.dtype == np.int64
    assert found.T.tolist() == one_by_one(costs, problem[1])


def test_assign_takes_costs_that_are_not_finite():
    for costs in (np.array([[np.nan, 1.0], [2.0, np.inf]]), torch.tensor([[-torch.inf, 3.0], [1.0, 2.0]])):
        replaced = np.where(np.isfinite(np.asarray(costs)), costs, -1e9)
        assert np.array_equal(assign(costs), linear_sum_assignment(replaced))


def batch(num_layers: int, num_queries: int, num_gts: list[int]) -> tuple:
    """Return scores, boxes, ground truth and image information."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(num_layers, len(num_gts), num_queries, 20, generator=generator)
    boxes = torch.rand(num_layers, len(num_gts), num_queries, 4, generator=generator)
    metas = [dict(img_shape=(480 + 32 * index, 640 - 16 * index)) for index in range(len(num_gts))]
    gts = []
    for number, meta in zip(num_gts, metas, strict=True):
        corners = torch.rand(number, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
        gts.append(InstanceData(
            bboxes=(corners * torch.tensor(meta['img_shape'][::-1] * 2)).to(DEVICE),
            labels=torch.randint(0, 20, (number,), generator=generator).to(DEVICE)))
    return scores.to(DEVICE), boxes.to(DEVICE), gts, metas


@pytest.mark.parametrize('family', COSTS)
@pytest.mark.parametrize('num_layers', [1, 3])
def test_equals_mmdet(family, num_layers, problem):
    assigner = HungarianAssigner(list(COSTS[family]))
    scores, boxes, gts, metas = batch(num_layers, *problem)
    matches = match_batch(assigner.match_costs, scores, boxes, gts, metas)
    found = torch.stack([*matches.index, matches.gt], 1).tolist()
    expected = []
    for layer in range(num_layers):
        for image, (gt, meta) in enumerate(zip(gts, metas, strict=True)):
            sides = torch.tensor(meta['img_shape'][::-1] * 2, device=DEVICE)
            predicted = InstanceData(
                scores=scores[layer, image], bboxes=bbox_cxcywh_to_xyxy(boxes[layer, image]) * sides)
            inds = assigner.assign(predicted, gt, meta).gt_inds.tolist()
            expected += [[layer, image, query, index - 1] for query, index in enumerate(inds) if index > 0]
    assert found == expected
    assert matches.num_per_layer * num_layers == len(found)
    for image, gt in enumerate(gts):
        assert torch.equal(matches.gt_boxes[image, :len(gt)], gt.bboxes)
        assert torch.equal(matches.gt_labels[image, :len(gt)], gt.labels)
        assert not matches.gt_boxes[image, len(gt):].any() and not matches.gt_labels[image, len(gt):].any()
        assert matches.sides[image].tolist() == [*metas[image]['img_shape'][::-1]] * 2


def test_boxes_may_be_on_the_host():
    scores, boxes, gts, metas = batch(2, 9, [3, 0, 4])
    costs = HungarianAssigner(list(COSTS['detr'])).match_costs
    results = [match_batch(costs, scores, boxes, list(of), metas) for of in (gts, [gt.to('cpu') for gt in gts])]
    for a, b in zip(*([*result.index, result.gt, *result[2:5]] for result in results), strict=True):
        assert torch.equal(a, b) and a.device.type == DEVICE.type


@pytest.mark.parametrize('most_boxes', [0, 1, 7])
def test_distances_are_those_of_cdist(most_boxes):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(3, most_boxes, 4, generator=generator), torch.rand(2, 3, 50, 4, generator=generator)
    assert torch.equal(l1_distances(a, b), torch.cdist(a, b, p=1))


class Operators(TorchDispatchMode):
    """Count operators."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


def test_number_of_operators_is_that_of_one_image():
    costs = HungarianAssigner(list(COSTS['lw-detr'])).match_costs
    numbers = []
    for size in ((1, 20, [1]), (26, 50, [0, 10, 3, 60] * 4)):
        arguments = batch(*size)
        match_batch(costs, *arguments)  # the first call may compile
        with Operators() as operators:
            match_batch(costs, *arguments)
        numbers.append(operators.number)
    assert numbers[0] == numbers[1] < 130


@pytest.mark.skipif(torch.cuda.is_available(), reason='Triton works')
def test_without_triton_scipy_matches():
    assert matching._solver_on.__wrapped__(torch.device('cuda')) is None


@needs_kernel
def test_kernel_equals_scipy(costs, problem):
    from deit_detr.models.matching_kernel import match_on_device

    num_queries, num_gts = problem
    counts = torch.tensor(num_gts)
    sizes = counts.clamp(max=num_queries)
    starts = sizes.cumsum(0) - sizes
    found = match_on_device(
        torch.from_numpy(costs).to(DEVICE), counts.to(DEVICE), starts.to(DEVICE), int(sizes.sum()))
    assert found.T.tolist() == one_by_one(costs, num_gts)


@needs_kernel
def test_kernel_equals_scipy_in_a_batch(monkeypatch):
    from deit_detr.models.matching_kernel import match_on_device

    costs = HungarianAssigner(list(COSTS['lw-detr'])).match_costs
    small = (2, 12, [0, 4, 14]), (2, 9, [0, 0])
    for size in small if INTERPRETED else (*small, (52, 100, [10] * 16), (52, 300, [10, 100] * 8), (7, 900, [40])):
        arguments, found = batch(*size), []
        for solver in (match_on_device, None):
            monkeypatch.setattr(matching, '_solver_on', lambda _, solver=solver: solver)
            matches = match_batch(costs, *arguments)
            found.append([*matches.index, matches.gt])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type == 'cuda' or INTERPRETED, reason='the kernel is tested in this process')
def test_kernel_in_the_interpreter():
    pytest.importorskip('triton')
    done = start(
        sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__, '-k', 'test_kernel_equals',
        cwd=REPO, env=dict(TRITON_INTERPRET=1), own_start=True)
    assert done.returncode == 0 and 'skipped' not in done.stdout, done.stdout
