"""EC-DETR: rotary positions, shared values, the hybrid encoder, targets, and batches of every kind."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch.utils.flop_counter import FlopCounterMode

from deit_detr.models.ec_detr import SharedValueAttention
from deit_detr.models.ec_detr_head import union_targets
from deit_detr.models.ec_vit import ECViT, rotate
from deit_detr.models.hybrid_encoder import HybridEncoder, position_encoding
from deit_detr.models.matching import BatchMatches
from tests.helpers.small_models import BATCHES, NUM_QUERIES, build_small, losses_and_gradients, noise, prepared

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=32)
WINDOWS = {'model.backbone.window_size': 3, 'model.backbone.global_layers': [1]}
#: Recipe and strides.
KINDS = [('deit', (16, 32)), ('ecvit', (8, 16, 32))]


@pytest.fixture(scope='module', params=KINDS, ids=str)
def model(request):
    """Return a model with other boxes and scores than initially, where all boxes are anchors and all scores 0.01."""
    backbone, strides = request.param
    options = {
        'model.backbone.out_indices': [0, 1], 'model.neck.strides': strides, 'model.decoder.num_layers': 3,
        'model.decoder.layer_cfg.cross_attn_cfg.num_points': (3, 6, 3)[-len(strides):]}
    model = build_small(f'ec-detr_{backbone}-tiny_8xb4-12e_scannet', options | (WINDOWS if backbone == 'deit' else {}))
    head = model.bbox_head
    with torch.no_grad():
        for branch in (head.first_branch, *head.reg_branches, model.query_selection.delta):
            branch[-1].weight.normal_(std=0.05)
        for layer in (*head.cls_branches, model.query_selection.score):
            layer.bias.normal_(std=2)
    return model


@pytest.mark.parametrize('bfloat16', [False, True], ids=['float32', 'bfloat16'])
def test_every_parameter_learns_from_every_batch(model, bfloat16):
    """Also without boxes, with more boxes than queries, with padding, and with fewer tokens than queries."""
    batches = BATCHES | {'fewer tokens than queries': noise((48, 16, 3), (48, 16, 1))}
    for name, data in batches.items() if not bfloat16 else [('padded', batches['padded'])]:
        with torch.autocast('cpu', torch.bfloat16, enabled=bfloat16):
            losses, gradients = losses_and_gradients(model, data)
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values()), name
        assert all(gradient.isfinite().all() for gradient in gradients.values()), name


def test_predictions_do_not_depend_on_the_batch(model):
    model.eval()
    data = noise((64, 96, 3), (64, 96, 5))
    with torch.no_grad():
        alone = [model.test_step({name: copy.deepcopy(values[index:index + 1]) for name, values in data.items()})[0]
                 for index in range(2)]
        together = model.test_step(copy.deepcopy(data))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a.pred_instances.scores, b.pred_instances.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.pred_instances.bboxes, b.pred_instances.bboxes, rtol=0, atol=1e-2)
        assert len(a.pred_instances) == NUM_QUERIES and torch.equal(a.pred_instances.labels, b.pred_instances.labels)


def test_one_token_in_training_is_too_little_for_batch_norm(model):
    """One image of at most 32x32 pixels has one token of stride 32; two such images train."""
    with pytest.raises(ValueError, match='Expected more than 1 value per channel when training'):
        model.train()(**prepared(model, noise((32, 32, 1))), mode='loss')
    losses_and_gradients(model, noise((32, 32, 1), (32, 32, 0)))


def test_flops_can_be_counted(model):
    data = prepared(model.eval(), noise((64, 96, 1)), training=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**data, mode='tensor')
    assert counter.get_total_flops() > 0


def test_number_of_levels_is_checked(model):
    other = copy.deepcopy(model)
    other.neck = HybridEncoder([192] * 2, 192, strides=(16, 32) if len(model.neck.strides) == 3 else (8, 16, 32))
    with pytest.raises(ValueError, match=r'num_points of cross_attn_cfg is for \d levels, but the neck returns \d'):
        losses_and_gradients(other, BATCHES['unpadded'])


def ec_vit(**options) -> ECViT:
    torch.manual_seed(0)
    return ECViT(arch=ARCH, out_indices=[0, 1], **options)


def test_rotation_leaves_the_register_alone_and_is_relative():
    vit = ec_vit()
    rotation = vit.rotation((4, 6))
    q, k = torch.randn(2, 1, 16)
    torch.testing.assert_close(rotate(q, rotation[:, :1]), q)
    products = rotate(q, rotation[:, 1:]) @ rotate(k, rotation[:, 1:]).T  # the same vectors at every token
    products = products.unflatten(1, (4, 6)).unflatten(0, (4, 6))
    torch.testing.assert_close(products[1:, 1:, 1:, 1:], products[:-1, :-1, :-1, :-1], rtol=0, atol=1e-5)
    assert (products[0, 0] - products[0, 0, 0, 0]).abs().max() > 0.01
    assert vit.rotation((2, 3)).shape == (2, 7, 16)


def test_maps_of_any_size():
    vit = ec_vit()
    vit.eval()
    for height, width in ((64, 96), (33, 100), (16, 16)):
        maps = vit(torch.randn(2, 3, height, width))
        assert [tuple(x.shape) for x in maps] == [(2, 32, -(-height // 16), -(-width // 16))] * 2
    with pytest.raises(ValueError, match='patch_size=16'):
        ec_vit(patch_size=8)


def test_frozen_layers_do_not_change():
    vit = ec_vit(frozen_stages=1)
    vit.train()
    before = copy.deepcopy(vit.state_dict())
    vit(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    trained = {name.split('.')[0] + name.split('.')[1] for name, param in vit.named_parameters() if param.requires_grad}
    assert trained == {'layers1'}
    assert all(param.grad is None for name, param in vit.named_parameters() if not param.requires_grad)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items()), 'statistics of batch norm'


def test_shared_value_attention_is_a_weighted_sum_of_samples():
    """Bilinear samples by a loop, with mmcv's formula: offsets are divided by the points of the level."""
    torch.manual_seed(0)
    module = SharedValueAttention(8, 2, (2, 2))
    for param in module.parameters():
        torch.nn.init.normal_(param, std=0.5)
    shapes, boxes = [(4, 5), (2, 3)], torch.rand(1, 3, 1, 4)
    query, value = torch.randn(1, 3, 8), torch.randn(1, 26, 8)
    with torch.no_grad():
        found = module(query, torch.zeros(()), boxes, value, shapes)
        offsets = module.sampling_offsets(query).view(3, 2, 2, 2, 2)
        weights = module.attention_weights(query).view(3, 2, 4).softmax(-1).view(3, 2, 2, 2)
    maps = [part.view(*shape, 2, 4) for part, shape in zip(value[0].split([20, 6]), shapes, strict=True)]
    expected = torch.zeros(3, 2, 4)
    for index, box in enumerate(boxes[0, :, 0]):
        for head in range(2):
            for level, (rows, columns) in enumerate(shapes):
                for point in range(2):
                    x, y = (box[:2] + offsets[index, head, level, point] / 2 * box[2:] / 2).tolist()
                    x, y = x * columns - 0.5, y * rows - 0.5
                    for row in range(rows):
                        for column in range(columns):
                            share = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                            expected[index, head] += \
                                share * weights[index, head, level, point] * maps[level][row, column, head]
    torch.testing.assert_close(found[0], expected.flatten(1), rtol=0, atol=1e-5)


def test_points_of_a_level_are_split_into_groups():
    module = SharedValueAttention(16, 2, (3, 6, 3))
    assert module.levels == [0, 1, 1, 2] and module.num_points == 3 and module.num_levels == 4
    assert module.points_of_level.flatten().tolist() == [3, 6, 6, 3]
    assert set(module.state_dict()) == {
        f'{name}.{kind}' for name in ('sampling_offsets', 'attention_weights') for kind in ('weight', 'bias')}


def test_union_has_the_box_of_most_layers():
    layer, image, query = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 3], [2, 0, 0], [2, 1, 2]]).T
    boxes = torch.tensor([[[0., 0, 10, 10], [10, 10, 20, 40]], [[5, 5, 10, 10], [0, 0, 0, 0]]])
    matches = BatchMatches(
        (layer, image, query), torch.tensor([1, 0, 0, 1, 1, 0]), boxes, torch.zeros(2, 2, dtype=torch.int64),
        torch.tensor([[40.0] * 4, [20.0] * 4]), 2)
    targets = union_targets(matches, (2, 5))
    assert targets.positive.tolist() == [[True, True, False, True, False], [False, False, True, False, False]]
    assert targets.number.tolist() == [4]
    found = targets.corners[targets.positive]
    expected = torch.tensor([[10, 10, 20, 40], [0, 0, 10, 10], [10, 10, 20, 40], [10, 10, 20, 20]]) / 40
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('strides', [(8, 16, 32), (16, 32)], ids=str)
def test_maps_of_the_hybrid_encoder(strides):
    init_default_scope('mmdet')
    neck = MODELS.build(dict(type='HybridEncoder', in_channels=[16, 16], out_channels=16, strides=strides)).eval()
    for rows, columns in ((4, 6), (5, 7), (1, 1)):
        sizes = {8: (2 * rows, 2 * columns), 16: (rows, columns), 32: (-(-rows // 2), -(-columns // 2))}
        levels = neck((torch.randn(2, 16, rows, columns),) * 2)
        assert [tuple(level.shape) for level in levels] == [(2, 16, *sizes[stride]) for stride in strides]
    with pytest.raises(ValueError, match=r'supports the strides \(8, 16, 32\) and \(16, 32\), not \(8, 16\)'):
        HybridEncoder([16], 16, strides=(8, 16))
    with pytest.raises(ValueError, match=r'all need the same channels, not \[16, 32\]'):
        HybridEncoder([16, 32], 16)


def test_positions_differ_and_follow_rows_and_columns():
    pos = position_encoding((3, 5), 16, torch.device('cpu'))[0].unflatten(0, (3, 5))
    assert len(pos.flatten(0, 1).unique(dim=0)) == 15
    assert torch.equal(pos[:, :1, :8].expand(-1, 5, -1), pos[..., :8]), 'the first half tells rows'
    assert torch.equal(pos[:1, :, 8:].expand(3, -1, -1), pos[..., 8:]), 'the second half tells columns'


def test_checkpoints_have_only_parameters_and_statistics(model):
    """Tables of constants are no part of a checkpoint."""
    names = set(model.state_dict())
    assert not [name for name in names if name.endswith(('values', 'periods', 'points_of_level'))]
    assert {name for name, _ in model.named_parameters()} == {
        name for name in names if not name.endswith(('running_mean', 'running_var', 'num_batches_tracked'))}
