"""Deformable attention against mmcv's own functions, in every precision and without its CUDA operator."""

import copy
import logging

import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention, get_compiling_cuda_version
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmcv_ops.deformable_attention import _choice, _compiled, choose_kernel, deformable_attention
from mmengine.logging import MMLogger
from torch import nn

from deit_detr.models.attention import replace_attention
from deit_detr.models.deformable_attention import PortableDeformableAttention

SHAPES = {
    'three levels': [(6, 9), (3, 5), (2, 3)], 'one level': [(5, 4)], 'down to one token': [(3, 2), (1, 2), (1, 1)]}


def kernel_inputs(shapes, batch=2, queries=7, heads=3, channels=4, points=4, dtype=torch.float64) -> list[torch.Tensor]:
    """Return values, weights, and locations outside the map, on its border and inside."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in shapes)
    size = (batch, queries, heads, len(shapes), points)
    value = torch.randn(batch, tokens, heads, channels, generator=generator, dtype=dtype)
    locations = 1.6 * torch.rand(*size, 2, generator=generator, dtype=dtype) - 0.3
    locations[:, 0], locations[:, 1] = 0, 1
    weights = torch.randn(*size, generator=generator, dtype=dtype).flatten(3).softmax(-1).view(size)
    return [x.requires_grad_() for x in (value, locations, weights)]


@pytest.mark.parametrize('shapes', SHAPES.values(), ids=SHAPES)
def test_kernel_is_mmcvs(shapes):
    value, locations, weights = kernel_inputs(shapes)
    expected = multi_scale_deformable_attn_pytorch(value, torch.tensor(shapes), locations, weights)
    out = deformable_attention(value, shapes, locations, weights)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad(x, (value, locations, weights), upstream) for x in (out, expected)),
                    strict=True):
        assert b.abs().max() > 0.01
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def saved_sizes(function) -> list[int]:
    """Return the sizes of the tensors that autograd keeps for the backward pass."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()), lambda _: None):
        function()
    return sizes


def test_samples_are_not_kept():
    shapes = SHAPES['three levels']
    value, locations, weights = kernel_inputs(shapes, queries=200)
    samples = locations.numel() // 2 * value.shape[-1]
    assert max(saved_sizes(lambda: multi_scale_deformable_attn_pytorch(
        value, torch.tensor(shapes), locations, weights))) >= samples
    assert sorted(saved_sizes(lambda: deformable_attention(value, shapes, locations, weights))) == sorted(
        [2 * len(shapes), *(x.numel() for x in (value, locations, weights))])


def build(levels: int = 3, **kwargs) -> MultiScaleDeformableAttention:
    """Build a module with weights far from the initial ones, which sample the same points for every query."""
    torch.manual_seed(0)
    plain = MultiScaleDeformableAttention(24, num_heads=3, num_levels=levels, dropout=0.0, batch_first=True, **kwargs)
    for param in plain.parameters():
        nn.init.normal_(param, std=0.3)
    return plain


def module_inputs(shapes, width: int, queries: int = 11) -> dict:
    generator = torch.Generator().manual_seed(0)
    spatial_shapes = torch.tensor(shapes)
    tokens = int(spatial_shapes.prod(1).sum())
    padded = torch.zeros(2, tokens, dtype=torch.bool)
    padded[1, -2:] = True
    return dict(
        query=torch.randn(2, queries, 24, generator=generator),
        query_pos=torch.randn(2, queries, 24, generator=generator),
        value=torch.randn(2, tokens, 24, generator=generator), key_padding_mask=padded,
        reference_points=torch.rand(2, queries, len(shapes), width, generator=generator),
        spatial_shapes=spatial_shapes, level_start_index=torch.cat([
            torch.zeros(1, dtype=torch.long), spatial_shapes.prod(1).cumsum(0)[:-1]]))


def outputs_and_gradients(module, inputs) -> list[torch.Tensor]:
    leaves = [inputs[name].clone().requires_grad_() for name in ('query', 'value', 'reference_points')]
    out = module(**inputs | dict(zip(('query', 'value', 'reference_points'), leaves, strict=True)), valid_ratios=None)
    return [out, *torch.autograd.grad(out.float().sin().sum(), [*leaves, *module.parameters()])]


@pytest.mark.parametrize('width', [2, 4], ids=['points', 'boxes'])
@pytest.mark.parametrize('without', [(), ('key_padding_mask', 'query_pos')], ids=['all', 'few'])
def test_module_is_mmcvs(width, without):
    plain = build()
    portable = PortableDeformableAttention(copy.deepcopy(plain))
    inputs = module_inputs(SHAPES['three levels'], width)
    inputs = {name: value for name, value in inputs.items() if name not in without}
    for a, b in zip(outputs_and_gradients(portable, inputs), outputs_and_gradients(plain, inputs), strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('width', [2, 4], ids=['points', 'boxes'])
def test_shapes_on_the_host_give_the_same(width):
    module, inputs = PortableDeformableAttention(build()), module_inputs(SHAPES['three levels'], width)
    on_host = inputs | dict(spatial_shapes=SHAPES['three levels'], level_start_index=None)
    with torch.inference_mode():  # what this keeps is used in training
        module(**on_host)
    for a, b in zip(outputs_and_gradients(module, on_host), outputs_and_gradients(module, inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('on_host', [False, True], ids=['tensor', 'host'])
def test_module_is_one_graph_for_torch_compile(on_host):
    module, inputs = PortableDeformableAttention(build()), module_inputs(SHAPES['three levels'], 2)
    if on_host:
        inputs |= dict(spatial_shapes=SHAPES['three levels'], level_start_index=None)
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    for a, b in zip(outputs_and_gradients(compiled, inputs), outputs_and_gradients(module, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_parameters_are_taken_over():
    parent = nn.ModuleDict(dict(a=nn.ModuleList([build()]), b=nn.Linear(2, 2)))
    plain, keys = parent['a'][0], list(parent.state_dict())
    replace_attention(parent)
    portable = parent['a'][0]
    assert type(portable) is PortableDeformableAttention and portable.value_proj is plain.value_proj
    assert list(parent.state_dict()) == keys

    state = []
    for module in (plain, portable):
        torch.manual_seed(1)
        module.init_weights()
        state.append({key: value.clone() for key, value in module.state_dict().items()})
    assert all(torch.equal(state[0][key], state[1][key]) for key in state[0])
    with pytest.raises(ValueError, match='batch_first'):
        PortableDeformableAttention(MultiScaleDeformableAttention(24, num_heads=3))


def test_locations_are_float32_under_autocast():
    """Every second column of a wide map is 1: half a column off its centre, the result would be 0.5."""
    columns = 134
    module = PortableDeformableAttention(build(levels=1))
    with torch.no_grad():
        for param in module.parameters():
            param.zero_()
        for linear in (module.value_proj, module.output_proj):
            linear.weight.copy_(torch.eye(24))
    inputs = dict(
        query=torch.zeros(1, columns, 24), identity=torch.zeros(1, columns, 24),
        value=(torch.arange(columns) % 2).float()[None, :, None].expand(1, -1, 24),
        reference_points=((torch.arange(columns) + 0.5) / columns)[None, :, None, None].repeat(1, 1, 1, 2),
        spatial_shapes=torch.tensor([(1, columns)]), level_start_index=torch.tensor([0]))
    inputs['reference_points'][..., 1] = 0.5
    with torch.autocast('cpu', torch.bfloat16):
        out = module(**inputs)
    torch.testing.assert_close(out.float(), inputs['value'], rtol=0, atol=0.01)


@pytest.mark.parametrize('width', [2, 4], ids=['points', 'boxes'])
def test_bfloat16_stays_near_float32(width):
    module = PortableDeformableAttention(build())
    inputs = module_inputs(SHAPES['three levels'], width)
    expected = outputs_and_gradients(module, inputs)
    with torch.autocast('cpu', torch.bfloat16):
        found = outputs_and_gradients(module, inputs)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 0.1 * b.norm()


def test_the_choice_is_said_once():
    _choice.cache_clear()
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        module, inputs = PortableDeformableAttention(build()), module_inputs(SHAPES['three levels'], 2)
        for _ in range(3):
            module(**inputs)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert messages == ['deformable attention on cpu: PyTorch (mmcv has no compiled operator for it)']


def test_mmcvs_operator_is_taken_where_it_was_compiled_and_triton_does_not_work(monkeypatch):
    monkeypatch.setattr('mmcv_ops.deformable_attention._triton', lambda device_type: None)
    _choice.cache_clear()
    chosen = choose_kernel('cuda')
    _choice.cache_clear()
    assert (chosen == _compiled) == (get_compiling_cuda_version() != 'not available')
    assert choose_kernel('cpu') != _compiled


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])
def test_gpu_computes_what_the_cpu_computes(autocast):
    module, inputs = PortableDeformableAttention(build()), module_inputs(SHAPES['three levels'], 4)
    expected = outputs_and_gradients(module, inputs)
    with torch.autocast('cuda', torch.bfloat16, enabled=autocast):
        found = outputs_and_gradients(module.cuda(), {name: value.cuda() for name, value in inputs.items()})
    for a, b in zip(found, expected, strict=True):
        assert (a.cpu() - b).norm() < (0.1 if autocast else 1e-4) * b.norm()
