"""LW-DETR: groups are separate, losses equal a slow reference, padding has no effect."""

import copy
import math

import pytest
import torch
from mmengine.structures import InstanceData
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from deit_detr.models.box_ops import apply_deltas
from deit_detr.models.lw_detr_head import IoUAwareBCELoss
from tests.helpers.small_models import NUM_QUERIES, build_small, noise

NUM_GROUPS = 3
SMALL = {
    'model.num_groups': NUM_GROUPS, 'model.backbone.window_size': 3, 'model.backbone.global_layers': [1],
    'model.backbone.out_indices': [0, 1], 'model.neck.in_channels': [192, 192], 'model.decoder.num_layers': 3}


def build(options: dict | None = None) -> torch.nn.Module:
    return build_small('lw-detr_deit-tiny_1xb4-16e_mini-scannet', SMALL | (options or {}))


@pytest.fixture(scope='module')
def model():
    """Return a model with other weights than initially, where all boxes are anchors and all scores 0.01."""
    model = build()
    with torch.no_grad():
        for layer in (model.bbox_head.reg_branch.layers[-1], model.query_selection.delta):
            layer.weight.normal_(std=0.05)
        for layer in (model.bbox_head.fc_cls, model.query_selection.score):
            layer.bias.normal_(std=2)
    return model


BATCHES = {
    'unpadded': noise((64, 96, 3), (64, 96, 5)),
    'padded': noise((96, 96, 3), (64, 128, 5), (80, 80, 1)),
    'no boxes': noise((64, 96, 0), (64, 96, 0)),
    'one image without': noise((64, 80, 0), (64, 96, 4)),
    'more boxes than queries': noise((64, 96, NUM_QUERIES + 7), (64, 96, 2)),
}


def transformer_outputs(model, data, training=True) -> tuple[dict, list]:
    model.train(training)
    data = model.data_preprocessor(copy.deepcopy(data), training)
    features = model.extract_feat(data['inputs'])
    return model.forward_transformer(features, data['data_samples']), data['data_samples']


def slow_losses(head, scores, boxes, samples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the losses of one layer, ``(images, groups, queries, ...)``, with mmdet, torchvision and loops."""
    loss_cls = loss_bbox = loss_iou = torch.zeros(())
    num_pos = 0
    for image, sample in enumerate(samples):
        gts, (height, width) = sample.gt_instances, sample.img_shape
        sides = torch.tensor([width, height, width, height])
        for group in range(scores.shape[1]):
            logits, box = scores[image, group], boxes[image, group]
            corners = box_convert(box, 'cxcywh', 'xyxy') * sides
            found = head.assigner.assign(
                InstanceData(scores=logits.detach(), bboxes=corners.detach()), gts, sample.metainfo).gt_inds - 1
            for query, gt in enumerate(found.tolist()):
                for label, logit in enumerate(logits[query]):
                    p = logit.sigmoid()
                    if gt >= 0 and label == gts.labels[gt]:
                        iou = box_iou(corners[query:query + 1], gts.bboxes[gt:gt + 1])[0, 0]
                        target = (p**0.25 * iou**0.75).clamp(min=0.01).detach()
                        loss_cls = loss_cls - target * p.log() - (1 - target) * (1 - p).log()
                    else:
                        loss_cls = loss_cls - p**2 * (1 - p).log()
                if gt >= 0:
                    num_pos += 1
                    expected = box_convert(gts.bboxes[gt] / sides, 'xyxy', 'cxcywh')
                    loss_bbox = loss_bbox + (box[query] - expected).abs().sum()
                    giou = generalized_box_iou(corners[query:query + 1], gts.bboxes[gt:gt + 1])[0, 0]
                    loss_iou = loss_iou + 1 - giou
    # the loss is the mean over the groups, each averaged over its boxes, at least one
    average = max(num_pos, scores.shape[1])
    return loss_cls / average, 5 * loss_bbox / average, 2 * loss_iou / average


@pytest.mark.parametrize('data', BATCHES.values(), ids=BATCHES)
def test_losses_and_their_gradients_are_the_slow_ones(model, data):
    outputs, samples = transformer_outputs(model, data)
    head = model.bbox_head
    losses = head.loss(**outputs, batch_data_samples=samples)

    scores, boxes = head(outputs['hidden_states'], outputs['boxes'])
    layers = [(outputs['proposal_scores'], outputs['proposal_boxes']), *zip(scores, boxes, strict=True)]
    expected = {}
    for prefix, (scores, boxes) in zip(('enc_', 'd1.', 'd2.', ''), layers, strict=True):
        names = (f'{prefix}{name}' for name in ('loss_cls', 'loss_bbox', 'loss_iou'))
        expected.update(zip(names, slow_losses(head, scores, boxes, samples), strict=True))
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5, msg=name)

    inputs = [outputs[key] for key in ('hidden_states', 'proposal_scores', 'proposal_boxes')]
    gradients = [
        torch.autograd.grad(sum(some.values()), inputs, retain_graph=True, allow_unused=True)
        for some in (losses, expected)]
    for of_fast, of_slow in zip(*gradients, strict=True):
        of_slow = torch.zeros_like(of_fast) if of_slow is None else of_slow
        torch.testing.assert_close(of_fast, of_slow, rtol=1e-3, atol=1e-5)


def test_the_losses_of_groups_are_the_mean_of_each_group_alone(model):
    outputs, samples = transformer_outputs(model, BATCHES['padded'])
    together = model.bbox_head.loss(**outputs, batch_data_samples=samples)
    alone = []
    for group in range(NUM_GROUPS):
        dimension = {'hidden_states': 2, 'boxes': 2, 'proposal_scores': 1, 'proposal_boxes': 1}
        one = {name: value.narrow(dimension[name], group, 1) for name, value in outputs.items()}
        alone.append(model.bbox_head.loss(**one, batch_data_samples=samples))
    for name, loss in together.items():
        torch.testing.assert_close(loss, sum(one[name] for one in alone) / NUM_GROUPS, msg=name)
        assert len({round(float(one[name]), 5) for one in alone}) > 1, f'{name}: groups are the same'


def test_groups_do_not_see_each_other(model):
    """Change the contents of the second group, then those of one query of the first group."""
    before, _ = transformer_outputs(model, BATCHES['padded'])
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.query_selection.content[1] += 1
    after, _ = transformer_outputs(changed, BATCHES['padded'])
    for name in ('hidden_states', 'boxes'):
        same = (before[name] == after[name]).flatten(3).all(-1)
        assert same[:, :, [0, 2]].all() and not same[:, :, 1].any(), name

    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.query_selection.content[0, 0] += 1
    after, _ = transformer_outputs(changed, BATCHES['padded'])
    same = (before['hidden_states'] == after['hidden_states']).all(-1)
    assert not same[:, :, 0].any(), 'queries of one group attend to each other'
    assert same[:, :, 1:].all()


def test_inference_is_the_first_group_of_training(model):
    trained, _ = transformer_outputs(model, BATCHES['padded'])
    with torch.no_grad():
        used, samples = transformer_outputs(model, BATCHES['padded'], training=False)
    assert set(used) == {'hidden_states', 'boxes'}
    for name in used:
        torch.testing.assert_close(used[name], trained[name][:, :, :1], rtol=1e-4, atol=1e-5)

    results = model.bbox_head.predict(**used, batch_data_samples=samples, rescale=False)
    for index, (result, sample) in enumerate(zip(results, samples, strict=True)):
        scores = model.bbox_head.fc_cls(used['hidden_states'][-1, index, 0]).sigmoid()
        assert (result.scores[:-1] >= result.scores[1:]).all()
        torch.testing.assert_close(result.scores, scores.flatten().sort(descending=True).values[:NUM_QUERIES])
        height, width = sample.img_shape
        corners = box_convert(used['boxes'][-1, index, 0], 'cxcywh', 'xyxy') * torch.tensor([width, height] * 2)
        best = scores.flatten().argmax()
        assert result.labels[0] == best % 20
        limits = torch.tensor([width, height] * 2)
        torch.testing.assert_close(result.bboxes[0], corners[best // 20].clamp(min=0).minimum(limits))


def test_what_lies_in_the_padding_is_not_read(model):
    """Other features in the padding do not change results after the backbone, which sees the whole batch."""
    model.eval()
    data = model.data_preprocessor(copy.deepcopy(noise((64, 64, 1), (96, 128, 1))), False)
    samples = data['data_samples']
    features = [torch.randn(2, 192, 6, 8)]
    other = [features[0].clone()]
    other[0][0, :, 4:] = 99
    other[0][0, :, :, 4:] = 99
    with torch.no_grad():
        a, b = (model.forward_transformer(some, samples) for some in (features, other))
        alone = model.forward_transformer([features[0][:1, :, :4, :4].contiguous()], [samples[0].clone()])
    assert torch.equal(a['boxes'], b['boxes'])
    assert not torch.equal(a['boxes'][:, 0], alone['boxes'][:, 0])  # its metadata still says that it was padded

    samples[0].set_metainfo(dict(batch_input_shape=(64, 64)))
    with torch.no_grad():
        alone = model.forward_transformer([features[0][:1, :, :4, :4].contiguous()], samples[:1])
    torch.testing.assert_close(a['boxes'][:, :1], alone['boxes'], rtol=1e-3, atol=1e-4)


def test_maps_of_several_scales():
    scales = [2, 1, 0.5]
    model = build({'model.neck.scales': scales, 'model.decoder.layer_cfg.cross_attn_cfg.num_levels': 3})
    data = model.data_preprocessor(copy.deepcopy(BATCHES['padded']), True)
    features = model.extract_feat(data['inputs'])
    assert [tuple(feature.shape[1:]) for feature in features] == [(192, 12, 16), (192, 6, 8), (192, 3, 4)]
    losses = model(**data, mode='loss')
    sum(losses.values()).backward()
    assert all(param.grad is not None for param in model.parameters())
    with pytest.raises(ValueError, match='3'):
        build({'model.neck.scales': [3]})


def test_fewer_tokens_than_queries(model):
    data = noise((32, 48, 2), (32, 48, 1))
    outputs, samples = transformer_outputs(model, data)
    assert outputs['boxes'].shape == (3, 2, NUM_GROUPS, 6, 4)
    assert all(loss.isfinite() for loss in model.bbox_head.loss(**outputs, batch_data_samples=samples).values())


def test_boxes_and_losses_stay_in_float32_under_autocast(model):
    """Each loss is within 5 % of that in float32, though proposals of nearly equal scores may swap."""
    data = model.train().data_preprocessor(copy.deepcopy(BATCHES['padded']), True)
    losses = model(**data, mode='loss')
    with torch.autocast('cpu', torch.bfloat16):
        losses_16 = model(**data, mode='loss')
        boxes = transformer_outputs(model, BATCHES['padded'], training=False)[0]['boxes']
    assert boxes.dtype == torch.float32
    for name, loss in losses.items():
        assert losses_16[name].dtype == torch.float32
        torch.testing.assert_close(losses_16[name], loss, rtol=0.05, atol=0, msg=name)


def test_flops_can_be_counted(model):
    """PyTorch's counter fails when a module returns a view of a parameter while gradients are off."""
    data = model.eval().data_preprocessor(noise((64, 96, 1)), False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**data, mode='tensor')
    assert counter.get_total_flops() > 0


def test_targets_grow_with_iou():
    """Where the gradient of a positive vanishes, its score is its target."""
    loss = IoUAwareBCELoss(alpha=0.25, gamma=2.0, loss_weight=3.0)
    positives = (torch.tensor([0]), torch.tensor([1]))
    for iou in (0.0, 0.3, 0.9):
        logits = torch.tensor([[-1.0, 0.5, 2.0]], requires_grad=True)
        p = logits.sigmoid().detach()
        value = loss(logits, positives, torch.tensor([iou]))
        gradient, = torch.autograd.grad(value.sum(), logits)
        target = max(0.01, float(p[0, 1]) ** 0.25 * iou**0.75)
        assert float(gradient[0, 1]) == pytest.approx(3 * (float(p[0, 1]) - target), abs=1e-5)
        negative = -3 * p[0, [0, 2]] ** 2 * (1 - p[0, [0, 2]]).log()
        torch.testing.assert_close(value[0, [0, 2]].detach(), negative)
    extreme = loss(torch.tensor([[-200.0, 200.0]], requires_grad=True), positives, torch.tensor([0.5]))
    assert extreme.isfinite().all()


def test_deltas_are_in_units_of_the_box():
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.4])
    assert torch.equal(apply_deltas(boxes, torch.zeros(4)), boxes)
    moved = apply_deltas(boxes, torch.tensor([0.5, -1.0, 0.0, math.log(2)]))
    torch.testing.assert_close(moved, torch.tensor([0.6, 0.1, 0.2, 0.8]))


@pytest.mark.slow
def test_one_image_is_learned():
    """30 steps on one image: the loss falls below half, and the best boxes lie on the true ones."""
    model = build()
    data = noise((64, 96, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(30):
        prepared = model.data_preprocessor(copy.deepcopy(data), True)
        total = sum(model.train()(**prepared, mode='loss').values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        totals.append(float(total))
    assert totals[-1] < 0.5 * totals[0]
    model.eval()
    result = model.test_step(copy.deepcopy(data))[0].pred_instances
    gts = data['data_samples'][0].gt_instances
    for box, label in zip(gts.bboxes, gts.labels, strict=True):
        same = result.bboxes[result.labels == label]
        assert box_iou(box[None], same).max() > 0.5
