"""The fast twin computes what the plain classes compute: outputs, losses, gradients, matches."""

import sys

import pytest
import torch
from mmengine.structures import InstanceData
from torch.utils._python_dispatch import TorchDispatchMode

from deit_detr.models.matching import match, matching_costs
from tests.helpers.host_reads import reads
from tests.helpers.paths import REPO
from tests.helpers.small_models import (
    BATCHES,
    NUM_QUERIES,
    assert_equal_training,
    build_small,
    losses_and_gradients,
    noise,
    prepared,
)

RECIPE = '{}_deit-tiny_8xb1-150e_scannet'


def build(name: str, options: dict | None = None) -> torch.nn.Module:
    return build_small(RECIPE.format(name), {'model.decoder.num_layers': 3} | (options or {}))


@pytest.fixture(scope='module')
def plain():
    return build('detr')


@pytest.fixture(scope='module')
def fast():
    return build('detr-fast')


@pytest.fixture(params=BATCHES, ids=str)
def data(request):
    return BATCHES[request.param]


def test_one_seed_gives_one_model_and_checkpoints_go_both_ways(plain, fast):
    assert type(plain) is not type(fast)
    state_a, state_b = plain.state_dict(), fast.state_dict()
    assert list(state_a) == list(state_b)
    assert all(torch.equal(state_a[key], state_b[key]) for key in state_a)
    plain.load_state_dict(state_b, strict=True)
    fast.load_state_dict(state_a, strict=True)


def test_training_is_equal(plain, fast, data):
    assert_equal_training(plain, fast, data)


def test_predictions_are_equal(plain, fast, data):
    results = []
    for model in (plain, fast):
        model.eval()
        with torch.no_grad():
            inputs = prepared(model, data, training=False)
            raw = model(**inputs, mode='tensor')
            results.append((raw, [sample.pred_instances for sample in model(**inputs, mode='predict')]))
    (raw_a, found_a), (raw_b, found_b) = results
    for a, b in zip(raw_a, raw_b, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
    for a, b in zip(found_a, found_b, strict=True):
        torch.testing.assert_close(b.scores, a.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(b.bboxes, a.bboxes, rtol=0, atol=1e-5 * 96)
        assert torch.equal(b.labels, a.labels)


FOCAL = {
    'model.bbox_head.loss_cls': dict(
        _delete_=True, type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
    'model.train_cfg.assigner.match_costs': [
        dict(type='FocalLossCost', weight=2.0),
        dict(type='BBoxL1Cost', weight=5.0, box_format='xyxy'),
        dict(type='IoUCost', iou_mode='giou', weight=2.0)],
}
UNUSUAL = {
    'focal loss': FOCAL,
    'class weights': {
        'model.bbox_head.loss_cls.class_weight': 2.0, 'model.bbox_head.loss_cls.bg_cls_weight': 0.3,
        'model.bbox_head.loss_cls.loss_weight': 3.0, 'model.bbox_head.loss_iou.loss_weight': 0.7},
    'no background weight': {'model.bbox_head.loss_cls': dict(_delete_=True, type='CrossEntropyLoss')},
    'sync_cls_avg_factor': {'model.bbox_head.sync_cls_avg_factor': True},
    'one decoder layer': {'model.decoder.num_layers': 1},
}


@pytest.mark.parametrize('options', UNUSUAL.values(), ids=UNUSUAL)
def test_other_settings_are_equal(options):
    assert_equal_training(build('detr', options), build('detr-fast', options), BATCHES['padded'])


def test_matches_are_identical(plain, fast):
    """On outputs far from initialization: 4 layers, images with 0 to more boxes than queries."""
    generator = torch.Generator().manual_seed(0)
    num_gts = [0, 1, 9, NUM_QUERIES, 40]
    scores = 3 * torch.randn(4, len(num_gts), NUM_QUERIES, 21, generator=generator)
    boxes = torch.rand(4, len(num_gts), NUM_QUERIES, 4, generator=generator)
    metas = [dict(img_shape=(480 + 32 * index, 640 - 16 * index)) for index in range(len(num_gts))]
    gts = []
    for number, meta in zip(num_gts, metas, strict=True):
        height, width = meta['img_shape']
        corners = torch.rand(number, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
        gts.append(InstanceData(
            bboxes=corners * torch.tensor([width, height, width, height]),
            labels=torch.randint(0, 20, (number,), generator=generator)))

    expected = set()
    assign = plain.bbox_head.assigner.assign
    for layer in range(4):
        for image, (gt, meta) in enumerate(zip(gts, metas, strict=True)):
            height, width = meta['img_shape']
            cx, cy, w, h = boxes[layer, image].unbind(-1)
            xyxy = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)
            predicted = InstanceData(
                scores=scores[layer, image], bboxes=xyxy * torch.tensor([width, height, width, height]))
            for query, index in enumerate((assign(predicted, gt, meta).gt_inds - 1).tolist()):
                expected |= {(layer, image, query, index)} if index >= 0 else set()

    pad = torch.nn.utils.rnn.pad_sequence
    sides = torch.tensor([meta['img_shape'][::-1] * 2 for meta in metas])
    costs = matching_costs(
        fast.bbox_head.assigner.match_costs, scores, boxes, pad([gt.bboxes for gt in gts], True),
        pad([gt.labels for gt in gts], True), sides)
    found = match(costs.numpy(), num_gts)
    assert found.shape == (4, 4 * sum(min(NUM_QUERIES, number) for number in num_gts))
    assert set(map(tuple, found.T.tolist())) == expected


def test_head_reads_once_from_the_device(plain, fast, data):
    assert reads(fast, data) == 1
    assert reads(plain, data) > 10


class Matrices(TorchDispatchMode):
    """Count tensors whose last two dimensions are both the number of tokens."""

    def __init__(self, tokens: int):
        super().__init__()
        self.shape, self.number = (tokens, tokens), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            self.number += isinstance(tensor, torch.Tensor) and tuple(tensor.shape[-2:]) == self.shape
        return out


@pytest.mark.parametrize('second', [(64, 112, 5), (48, 64, 5)], ids=['unpadded', 'padded'])
def test_attention_matrix_is_never_made(plain, fast, second):
    numbers = {}
    for model in (plain, fast):
        inputs = prepared(model.train(), noise((64, 112, 3), second))
        with Matrices(tokens=28) as matrices:
            sum(model(**inputs, mode='loss').values()).backward()
        numbers[model] = matrices.number
    assert numbers[fast] == 0 < numbers[plain]


def test_losses_for_the_log_are_on_the_host(fast):
    losses = fast(**prepared(fast.train(), BATCHES['one box']), mode='loss')
    total, log_vars = fast.parse_losses(losses)
    assert total.requires_grad and not any(value.requires_grad for value in log_vars.values())
    assert list(log_vars) == ['loss', *losses]
    assert float(log_vars['loss']) == pytest.approx(float(total))


@pytest.mark.parametrize('name', ['unpadded', 'padded'])
def test_bfloat16_stays_near_float32(fast, name):
    """Each loss within 5 %, the whole gradient within 10 %, boxes within 2 % of the image's side."""
    losses, gradients = losses_and_gradients(fast, BATCHES[name])
    with torch.no_grad():
        inputs = prepared(fast.eval(), BATCHES[name], training=False)
        boxes = fast(**inputs, mode='tensor')[1]
        with torch.autocast('cpu', torch.bfloat16):
            boxes_16 = fast(**inputs, mode='tensor')[1]
    assert boxes_16.dtype == torch.float32
    assert 0 < (boxes_16 - boxes).abs().max() < 0.02

    with torch.autocast('cpu', torch.bfloat16):
        losses_16, gradients_16 = losses_and_gradients(fast, BATCHES[name])
    for key, loss in losses.items():
        assert losses_16[key].dtype == torch.float32
        torch.testing.assert_close(losses_16[key], loss, rtol=0.05, atol=0, msg=key)
    whole, whole_16 = (torch.cat([g.flatten() for g in some.values()]) for some in (gradients, gradients_16))
    assert (whole_16 - whole).norm() < 0.1 * whole.norm()


def test_unknown_losses_and_costs_are_refused():
    for options, name in (
            ({'model.bbox_head.loss_iou.type': 'DIoULoss'}, 'loss_iou'),
            ({'model.bbox_head.loss_bbox.type': 'SmoothL1Loss'}, 'loss_bbox'),
            ({'model.train_cfg.assigner.match_costs': [dict(type='DiceCost')]}, 'DiceCost')):
        with pytest.raises(TypeError, match=name):
            build('detr-fast', options)


@pytest.mark.slow
def test_averages_of_two_processes_are_equal(run):
    run(sys.executable, REPO / 'tests/helpers/processes/fast_detr.py', CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS=1)
