"""EC-DETR's losses equal EdgeCrafter's, and boxes follow from distributions.

The golden values are those of ``ECCriterion`` of the repository Intellindust-AI-Lab/EdgeCrafter, commit 706d037, with
the weights of ``configs/ecdet/ecdet.yml``, for the outputs that :func:`drawn` makes.
"""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from deit_detr.models.box_ops import to_centres, to_corners
from deit_detr.models.distributions import SCALE, bin_values, mean_distances, move_sides, side_targets
from tests.helpers.paths import REPO

IMAGES, QUERIES, CLASSES, LAYERS, GROUPS, BINS = 2, 20, 7, 3, 2, 32
HEIGHT, WIDTH = 300, 400
#: Boxes of the two images -> losses by our names, and the norm of a gradient.
GOLDEN = {
    (3, 5): {
        'loss_cls': 14.5074, 'loss_bbox': 0.337653, 'loss_iou': 0.587755, 'loss_fgl': 2.28162,
        'd0.loss_cls': 13.7575, 'd0.loss_bbox': 0.378015, 'd0.loss_iou': 0.653091, 'd0.loss_fgl': 2.05625,
        'd0.loss_ddf': 4.38421, 'd1.loss_cls': 13.4726, 'd1.loss_bbox': 0.308716, 'd1.loss_iou': 0.538604,
        'd1.loss_fgl': 2.33804, 'd1.loss_ddf': 4.4827, 'pre_loss_cls': 14.0544, 'pre_loss_bbox': 0.329877,
        'pre_loss_iou': 0.500672, 'enc_loss_cls': 13.7244, 'enc_loss_bbox': 0.383734, 'enc_loss_iou': 0.588074,
        'd0.dn_loss_cls': 8.46926, 'd0.dn_loss_bbox': 0.371049, 'd0.dn_loss_iou': 0.64221, 'd0.dn_loss_fgl': 2.07879,
        'd0.dn_loss_ddf': 4.25738, 'd1.dn_loss_cls': 8.47747, 'd1.dn_loss_bbox': 0.284176,
        'd1.dn_loss_iou': 0.430738, 'd1.dn_loss_fgl': 2.33812, 'd1.dn_loss_ddf': 4.49803, 'dn_loss_cls': 7.70651,
        'dn_loss_bbox': 0.298896, 'dn_loss_iou': 0.484031, 'dn_loss_fgl': 2.49854, 'dn_pre_loss_cls': 7.05807,
        'dn_pre_loss_bbox': 0.381371, 'dn_pre_loss_iou': 0.610579, 'gradient of sides': 0.162947,
    },
    (0, 4): {
        'loss_cls': 27.1262, 'loss_bbox': 0.540192, 'loss_iou': 0.632589, 'loss_fgl': 1.93319,
        'd0.loss_cls': 31.1084, 'd0.loss_bbox': 0.538574, 'd0.loss_iou': 0.811003, 'd0.loss_fgl': 1.86196,
        'd0.loss_ddf': 4.17644, 'd1.loss_cls': 30.4888, 'd1.loss_bbox': 0.500218, 'd1.loss_iou': 0.622184,
        'd1.loss_fgl': 2.17398, 'd1.loss_ddf': 4.17367, 'pre_loss_cls': 26.5317, 'pre_loss_bbox': 0.574223,
        'pre_loss_iou': 0.712988, 'enc_loss_cls': 30.642, 'enc_loss_bbox': 0.543604, 'enc_loss_iou': 0.753047,
        'd0.dn_loss_cls': 11.2948, 'd0.dn_loss_bbox': 0.319253, 'd0.dn_loss_iou': 0.632442, 'd0.dn_loss_fgl': 2.1777,
        'd0.dn_loss_ddf': 4.09803, 'd1.dn_loss_cls': 11.7021, 'd1.dn_loss_bbox': 0.31954, 'd1.dn_loss_iou': 0.506142,
        'd1.dn_loss_fgl': 2.18324, 'd1.dn_loss_ddf': 4.12881, 'dn_loss_cls': 12.8132, 'dn_loss_bbox': 0.317752,
        'dn_loss_iou': 0.534463, 'dn_loss_fgl': 2.26904, 'dn_pre_loss_cls': 13.1405, 'dn_pre_loss_bbox': 0.421437,
        'dn_pre_loss_iou': 0.534622, 'gradient of sides': 0.203079,
    },
}

def drawn(counts: tuple[int, int], seed: int) -> dict[str, np.ndarray | list]:
    """Draw outputs of a decoder, some near the boxes of the images, so that layers agree and disagree.

    Returns:
        dict: ``gt_boxes`` (cx, cy, w, h) and ``gt_labels`` of each image, and the arguments of ``loss_by_feat``; the
        denoising queries come first.
    """
    rng = np.random.default_rng(seed)
    most = max(counts)
    number = 2 * GROUPS * most
    gt_boxes = [np.concatenate([rng.uniform(0.3, 0.7, (n, 2)), rng.uniform(0.1, 0.4, (n, 2))], 1) for n in counts]
    gt_labels = [rng.integers(0, CLASSES, n) for n in counts]
    near = np.concatenate(
        [rng.uniform(0.2, 0.8, (IMAGES, number + QUERIES, 2)), rng.uniform(0.1, 0.5, (IMAGES, number + QUERIES, 2))], 2)
    for image, boxes in enumerate(gt_boxes):
        for group in range(2 * GROUPS):
            near[image, most * group:most * group + len(boxes)] = boxes
        near[image, number:number + 2 * len(boxes)] = np.tile(boxes, (2, 1))

    def boxes_near(*layers: int) -> np.ndarray:
        boxes = near + 0.02 * rng.standard_normal((*layers, *near.shape))
        boxes[..., 2:] = np.abs(boxes[..., 2:]) + 0.01
        return boxes

    return dict(
        gt_boxes=gt_boxes, gt_labels=gt_labels,
        scores=rng.standard_normal((1 + LAYERS, *near.shape[:2], CLASSES)), boxes=boxes_near(1 + LAYERS),
        sides=2 * rng.standard_normal((LAYERS, *near.shape[:2], 4 * (BINS + 1))), references=boxes_near(),
        proposal_scores=rng.standard_normal((IMAGES, QUERIES, CLASSES)), proposal_boxes=boxes_near()[:, number:])


@pytest.fixture(scope='module')
def head():
    cfg = Config.fromfile(REPO / 'configs/_base_/models/ec-detr_deit-tiny.py').model
    init_default_scope('mmdet')
    return MODELS.build(dict(
        cfg.bbox_head, num_classes=CLASSES, num_layers=LAYERS, train_cfg=cfg.train_cfg, test_cfg=cfg.test_cfg))


@pytest.mark.parametrize('case', GOLDEN)
def test_losses_equal_the_reference(head, case):
    counts = case
    data = {name: value if isinstance(value, list) else torch.tensor(value, dtype=torch.float32, requires_grad=True)
            for name, value in drawn(counts, seed=18).items()}
    gts = [
        InstanceData(
            bboxes=to_corners(torch.tensor(boxes, dtype=torch.float32)) * torch.tensor([WIDTH, HEIGHT] * 2),
            labels=torch.tensor(labels))
        for boxes, labels in zip(data.pop('gt_boxes'), data.pop('gt_labels'), strict=True)]
    losses = head.loss_by_feat(
        **data, dn_meta=dict(num_denoising_queries=2 * GROUPS * max(counts), num_denoising_groups=GROUPS),
        batch_gt_instances=gts, batch_img_metas=[dict(img_shape=(HEIGHT, WIDTH))] * IMAGES)
    expected = dict(GOLDEN[case])
    gradient = expected.pop('gradient of sides')
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)
    sum(loss.sum() for loss in losses.values()).backward()
    assert data['sides'].grad.norm().item() == pytest.approx(gradient, rel=1e-4)


def test_bins_are_symmetric_and_ascend():
    values = bin_values(BINS)
    assert len(values) == BINS + 1 and values[BINS // 2] == 0
    torch.testing.assert_close(values, -values.flip(0))
    assert (values.diff() > 0).all() and values[-1] == SCALE


def test_the_targets_of_a_box_are_a_distribution_that_gives_the_box():
    generator = torch.Generator().manual_seed(0)
    references = torch.rand(50, 4, generator=generator) / 2 + 0.25
    true = references + (torch.rand(50, 4, generator=generator) - 0.5) * references[:, 2:].repeat(1, 2)
    values = bin_values(BINS)
    below, above = side_targets(references, to_corners(true), values)
    probability = torch.zeros(50, 4, BINS + 1).scatter(-1, below[..., None], 1 - above[..., None])
    probability.scatter_add_(-1, below[..., None] + 1, above[..., None])
    boxes = move_sides(references, mean_distances(probability.log().flatten(1), values))
    torch.testing.assert_close(boxes, true, rtol=0, atol=1e-5)


def test_distances_out_of_reach_take_the_last_bin():
    values = bin_values(BINS)
    far = to_corners(torch.tensor([[0.5, 0.5, 9.0, 0.001]]))
    below, above = side_targets(torch.tensor([[0.5, 0.5, 0.1, 0.1]]), far, values)
    assert (below[0, [0, 2]] + above[0, [0, 2]]).tolist() == [BINS, BINS]  # left and right, far outside
    assert below.min() >= 0 and below.max() < BINS and above.min() >= 0 and above.max() <= 1


def test_zero_distances_leave_a_box_where_it_is():
    boxes = torch.tensor([[0.4, 0.5, 0.2, 0.3]])
    torch.testing.assert_close(move_sides(boxes, torch.zeros(1, 4)), boxes)
    moved = to_corners(move_sides(boxes, torch.tensor([[SCALE, 0, 0, 0]])))
    torch.testing.assert_close(moved, to_corners(boxes) - torch.tensor([[0.2, 0, 0, 0]]))
    torch.testing.assert_close(to_centres(to_corners(boxes)), boxes)
