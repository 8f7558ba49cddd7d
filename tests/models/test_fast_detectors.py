"""The fast relatives of DETR compute what mmdet's classes compute: losses, gradients, predictions."""

import copy
import types

import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers import CdnQueryGenerator
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy

from deit_detr.models.fast_heads import FastDeformableDETRHead, FastDINOHead
from deit_detr.models.tokens import inside_limits, valid_tokens
from tests.helpers.host_reads import reads
from tests.helpers.small_models import BATCHES, assert_equal_training, build_small, losses_and_gradients, prepared

RECIPES = {
    'conditional-detr': 'ConditionalDETR', 'dab-detr': 'DABDETR', 'deformable-detr': 'DeformableDETR', 'dino': 'DINO'}


def build(recipe: str, plain: bool = False, options: dict | None = None) -> torch.nn.Module:
    """Build a small model; the plain twin has mmdet's detector and head."""
    if plain:
        options = {
            'model.type': RECIPES[recipe], 'model.bbox_head.type': f'{RECIPES[recipe]}Head'} | (options or {})
    model = build_small(f'{recipe}_deit-tiny_8xb2-12e_scannet', options)
    if plain and recipe == 'dino':
        generator = model.dn_query_generator
        generator.generate_dn_label_query = types.MethodType(label_query, generator)
    return model


def label_query(generator, gt_labels: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Draw random labels as mmdet's method does, but for all queries: both generators then draw alike."""
    labels = gt_labels.repeat(2 * num_groups, 1).view(-1)
    is_random = torch.rand_like(labels.float()) < generator.label_noise_scale * 0.5
    return generator.label_embedding(
        torch.where(is_random, torch.randint_like(labels, 0, generator.num_classes), labels))


@pytest.fixture(scope='module', params=RECIPES)
def twins(request):
    return build(request.param, plain=True), build(request.param)


def test_one_seed_gives_one_model_and_checkpoints_go_both_ways(twins):
    state_a, state_b = (model.state_dict() for model in twins)
    assert type(twins[0]) is not type(twins[1])
    assert list(state_a) == list(state_b)
    assert all(torch.equal(state_a[key], state_b[key]) for key in state_a)
    twins[0].load_state_dict(state_b, strict=True)
    twins[1].load_state_dict(state_a, strict=True)


@pytest.mark.parametrize('name', BATCHES)
def test_training_is_equal(twins, name):
    assert_equal_training(*twins, BATCHES[name], loss_rtol=1e-5, grad_rtol=1e-3, grad_atol=1e-6)


@pytest.mark.parametrize('name', ['unpadded', 'padded'])
def test_predictions_are_equal(twins, name):
    found = []
    for model in twins:
        with torch.no_grad():
            found.append([sample.pred_instances for sample in model.eval().test_step(copy.deepcopy(BATCHES[name]))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b.scores, a.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(b.bboxes, a.bboxes, rtol=0, atol=1e-3)
        assert torch.equal(b.labels, a.labels)


@pytest.mark.parametrize('head', ['fast', 'plain'])
def test_heads_and_losses_stay_in_float32(twins, head):
    """Losses are near those without autocast, and none is in bfloat16, also with mmdet's heads as configs of 0.1 have.

    The two-stage models choose a few other tokens, whose scores are almost equal.
    """
    model = twins[1]
    if head == 'plain':
        recipe = next(recipe for recipe, name in RECIPES.items() if name == type(twins[0]).__name__)
        model = build(recipe, options={'model.bbox_head.type': f'{RECIPES[recipe]}Head'})
    losses, _ = losses_and_gradients(model, BATCHES['padded'])
    with torch.autocast('cpu', torch.bfloat16):
        losses_16, gradients_16 = losses_and_gradients(model, BATCHES['padded'])
        with torch.no_grad():
            found = model.eval().test_step(copy.deepcopy(BATCHES['padded']))
    for key, loss in losses.items():
        assert losses_16[key].dtype == torch.float32
        torch.testing.assert_close(losses_16[key], loss, rtol=0.01 if 'dn_' in key else 0.1, atol=0, msg=key)
    assert all(gradient.isfinite().all() for gradient in gradients_16.values())
    assert all(sample.pred_instances.bboxes.dtype == torch.float32 for sample in found)


OPTIONS = {
    'deformable-detr': {
        'one stage': {'model.as_two_stage': False},
        'no refinement': {'model.as_two_stage': False, 'model.with_box_refine': False},
        'no synchronized average': {'model.bbox_head.sync_cls_avg_factor': False},
        'no normalized encoding': {'model.positional_encoding.normalize': False}},
    'dino': {
        'three groups': {'model.dn_cfg.group_cfg': dict(dynamic=False, num_groups=3)},
        'more boxes than denoising queries': {'model.dn_cfg.group_cfg': dict(dynamic=True, num_dn_queries=4)},
        'one decoder layer': {'model.decoder.num_layers': 1}},
    'conditional-detr': {
        'cross entropy': {
            'model.bbox_head.loss_cls': dict(_delete_=True, type='CrossEntropyLoss'),
            'model.train_cfg.assigner.match_costs': [
                dict(type='ClassificationCost', weight=1.0), dict(type='BBoxL1Cost', weight=5.0)]}},
    'dab-detr': {'points': {
        'model.decoder.query_dim': 2, 'model.decoder.with_modulated_hw_attn': False}},
}


@pytest.mark.parametrize('recipe, name', [(recipe, name) for recipe in OPTIONS for name in OPTIONS[recipe]])
def test_other_settings_are_equal(recipe, name):
    options = OPTIONS[recipe][name]
    twins = build(recipe, True, options), build(recipe, False, options)
    assert_equal_training(*twins, BATCHES['padded'], loss_rtol=1e-5, grad_rtol=1e-3, grad_atol=1e-6)


@pytest.mark.parametrize('recipe', RECIPES)
def test_unknown_losses_and_costs_are_refused(recipe):
    head = f'Fast{RECIPES[recipe]}Head'
    for options, name in (
            ({'model.bbox_head.loss_cls': dict(_delete_=True, type='QualityFocalLoss')}, f'{head} supports loss_cls'),
            ({'model.bbox_head.loss_iou.type': 'DIoULoss'}, f'{head} supports loss_iou GIoULoss, not DIoULoss'),
            ({'model.bbox_head.loss_bbox.type': 'SmoothL1Loss'}, f'{head} supports loss_bbox'),
            ({'model.train_cfg.assigner.match_costs': [dict(type='DiceCost')]}, 'DiceCost')):
        with pytest.raises(TypeError, match=name):
            build(recipe, options=options)


def test_a_step_reads_the_matching_costs_only(twins):
    """Once for the decoder; Deformable DETR also matches all tokens."""
    plain, fast = twins
    for data in (BATCHES['padded'], BATCHES['no boxes']):
        assert reads(fast, data) == 1 + isinstance(fast.bbox_head, FastDeformableDETRHead) - isinstance(
            fast.bbox_head, FastDINOHead)
    assert reads(plain, BATCHES['padded']) > 10


def test_tokens_inside_an_image_are_those_of_the_resized_mask():
    for whole, sizes in (((64, 96), [(64, 96), (48, 65), (33, 1)]), ((101, 75), [(101, 74), (7, 75), (55, 38)])):
        samples = [DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=whole)) for size in sizes]
        shapes = [(-(-whole[0] // stride), -(-whole[1] // stride)) for stride in (4, 8, 16, 32)]
        valid = valid_tokens(samples, shapes)
        masks = torch.stack([torch.ones(whole).index_fill_(0, torch.arange(h), 0) for h, _ in sizes])
        for mask, (_, w) in zip(masks, sizes, strict=True):
            mask[:, w:] = 1
        for level, shape in enumerate(shapes):
            inside = ~torch.nn.functional.interpolate(masks[None], size=shape).bool()[0]
            expected = torch.stack([inside[:, 0].sum(1), inside[:, :, 0].sum(1)], 1)
            assert valid[:, level].tolist() == expected.tolist()


def test_proposals_are_where_mmdet_makes_them():
    """For all sizes up to 4096, the first and last tokens near the limits; mmdet compares quotients in float32."""
    sizes = torch.arange(1, 4097)
    near = torch.arange(-3, 4)
    first, last = (((sizes * share - 0.5).round()[:, None] + near).clamp(min=0) for share in (0.01, 0.99))
    index = torch.cat([first, last], 1).minimum(sizes[:, None] - 1).long()
    centres = (index.float() + 0.5) / sizes[:, None]  # linspace(0, size - 1, size) is exact
    expected = (centres > 0.01) & (centres < 0.99)
    found = inside_limits((2 * index + 1)[..., None], sizes[:, None, None])
    assert torch.equal(found, expected)
    # between those, quotients grow with the index
    assert expected[sizes > 500].any() and (~expected[sizes > 500]).any(1).all()
    assert not inside_limits(torch.tensor([[99, 51]]), torch.tensor([50, 50])), 'the last of 50 is exactly 0.99'


@pytest.mark.parametrize('shape', [(50, 67), (3, 150), (99, 7)])
def test_all_tokens_of_a_map_are_chosen_as_in_mmdet(shape):
    """A map whose last row is exactly on the limit, also with padding, and in ONNX export, where sizes are tensors."""
    plain, fast = (build('dino', plain=plain).eval() for plain in (True, False))
    memory = torch.randn(2, shape[0] * shape[1], 256, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, *shape, dtype=torch.bool)
    mask[0, -2:], mask[1, :, -3:] = True, True
    for padding in (None, mask.flatten(1)):
        expected = plain.gen_encoder_output_proposals(memory, padding, torch.tensor([shape]))
        for shapes in ([shape], torch.tensor([shape])) if padding is None else ([shape],):
            found = fast.gen_encoder_output_proposals(memory, padding, shapes)
            assert all(torch.equal(a.expand_as(b), b) for a, b in zip(found, expected, strict=True))


def test_denoising_noise_is_that_of_the_paper():
    """Half of the random labels differ at most, positives stay within half a side, negatives within a whole one."""
    generator = build('dino').dn_query_generator
    data = prepared(build('dino'), BATCHES['padded'])['data_samples']
    torch.manual_seed(0)
    _, boxes, mask, meta = generator(data)
    groups, most = meta['num_denoising_groups'], 5
    assert meta['num_denoising_queries'] == 2 * groups * most == boxes.shape[1] and groups == 100 // most
    truth = data[1].gt_instances.bboxes / torch.tensor([64, 48] * 2)
    x1, y1, x2, y2 = bbox_cxcywh_to_xyxy(boxes[1].sigmoid()).view(groups, 2, most, 4).unbind(-1)
    sides = truth[:, 2:] - truth[:, :2]
    for corner, side, index in ((x1, 0, 0), (y1, 1, 1), (x2, 0, 2), (y2, 1, 3)):
        moved = ((corner - truth[:, index]) / sides[:, side]).abs()
        assert (moved[:, 0] < 0.51).all()
        assert (moved[:, 1] < 1.01).all()
    assert torch.equal(boxes[2].view(groups, 2, most, 4)[:, :, 1:], torch.zeros(groups, 2, most - 1, 4))
    assert torch.equal(mask, CdnQueryGenerator.generate_dn_mask(generator, most, groups, 'cpu'))


@pytest.mark.parametrize('recipe', RECIPES)
def test_no_plain_attention_is_left(recipe):
    plain = {MultiheadAttention, MultiScaleDeformableAttention}
    assert not plain & {type(module) for module in build(recipe).modules()}
    assert plain & {type(module) for module in build(recipe, plain=True).modules()}
