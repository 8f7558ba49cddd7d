"""Deformable attention in Triton: on a GPU, else in Triton's interpreter, and compiled for GPUs that are not here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmcv.ops import get_compiling_cuda_version
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmcv_ops import deformable_attention as operators

from tests.helpers.operators import with_gradients

triton = pytest.importorskip('triton')
kernels = pytest.importorskip('mmcv_ops.deformable_attention_triton')
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'  # read when Triton is imported
runs = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason='needs a GPU')
on_gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason='needs a GPU')
DEVICE = 'cpu' if INTERPRETED else 'cuda'
LEVELS = [(6, 9), (3, 5), (1, 1)]
#: Relative; the interpreter cuts the digits of half-precision results, which a GPU rounds.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 8e-3 if INTERPRETED else 3e-3,
              torch.float16: 1e-3 if INTERPRETED else 4e-4}


def make_inputs(shapes, dtype, others=torch.float32, batch=2, queries=7, heads=2, channels=32, points=4):
    """Return values, locations outside the maps, on their borders, on tokens and between, weights, upstream."""
    random = torch.Generator().manual_seed(0)
    size = (batch, queries, heads, len(shapes), points)
    tokens = sum(height * width for height, width in shapes)
    value = torch.randn(batch, tokens, heads, channels, generator=random, dtype=torch.float64)
    locations = 1.6 * torch.rand(*size, 2, generator=random, dtype=torch.float64) - 0.3
    if queries > 4:
        locations[:, 0], locations[:, 1], locations[:, 2], locations[:, 3] = 0, 1, 0.5, -1e30
    weights = torch.rand(size, generator=random, dtype=torch.float64)
    upstream = torch.randn(batch, queries, heads * channels, generator=random, dtype=torch.float64)
    return [x.to(DEVICE, kind) for x, kind in zip(
        (value, locations, weights, upstream), (dtype, others, others, dtype), strict=True)]


def reference(value, shapes, locations, weights, upstream) -> list[torch.Tensor]:
    leaves = [x.double().requires_grad_() for x in (value, locations, weights)]
    out = multi_scale_deformable_attn_pytorch(leaves[0], torch.tensor(shapes), *leaves[1:])
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.double())]


@runs
@pytest.mark.parametrize(('dtype', 'others', 'sizes'), [
    (torch.float64, torch.float64, dict(shapes=LEVELS)), (torch.float32, torch.float32, dict(shapes=LEVELS)),
    (torch.bfloat16, torch.float32, dict(shapes=LEVELS)), (torch.float16, torch.float32, dict(shapes=[(5, 4)])),
    (torch.bfloat16, torch.bfloat16, dict(shapes=[(5, 4)])),
    (torch.bfloat16, torch.float32, dict(shapes=[(5, 4)], channels=24, points=3)),
    (torch.float32, torch.float32, dict(shapes=[(5, 4)] * 2, channels=5, batch=1)),
    (torch.bfloat16, torch.float32, dict(shapes=[(4, 7)], channels=64, queries=1)),
    (torch.float32, torch.float32, dict(shapes=[(4, 7)], channels=16, heads=1, queries=0))],
    ids=['float64', 'float32', 'bfloat16', 'float16', 'all bfloat16', '24 channels', '5 channels', 'one query', 'none'])
def test_kernels_compute_what_grid_sample_does_in_float64(dtype, others, sizes):
    value, locations, weights, upstream = make_inputs(dtype=dtype, others=others, **sizes)
    shapes = torch.tensor(sizes['shapes'], device=DEVICE)
    found = [kernels.forward(value, shapes, locations, weights),
             *kernels.backward(upstream, value, shapes, locations, weights)]
    expected = reference(value, sizes['shapes'], locations, weights, upstream)
    for a, b, like in zip(found, expected, (value, value, locations, weights), strict=True):
        assert a.dtype == like.dtype and a.shape == b.shape
        assert (a.double() - b).norm() <= TOLERANCES[a.dtype] * b.norm()


@runs
def test_a_point_that_is_not_a_number_gives_nothing():
    value, locations, weights, upstream = make_inputs([(5, 4)], torch.float32)
    shapes = torch.tensor([(5, 4)], device=DEVICE)
    locations[:, 5:] = torch.nan
    out = kernels.forward(value, shapes, locations, weights)
    grads = kernels.backward(upstream, value, shapes, locations, weights)
    assert not out[:, 5:].any() and not any(grad[:, 5:].any() for grad in grads[1:])
    assert all(x.isfinite().all() for x in (out, *grads))


def test_interpreter():
    """Run the tests above where there is no GPU."""
    if INTERPRETED or torch.cuda.is_available():
        pytest.skip('they ran')
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--noconftest', __file__],
        env=os.environ | dict(TRITON_INTERPRET='1'), capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stdout + run.stderr
    assert ' passed' in run.stdout, run.stdout


@pytest.mark.skipif(INTERPRETED, reason='compiles nothing')
@pytest.mark.parametrize(('dtype', 'heads', 'levels', 'capability'), [
    (torch.bfloat16, 8, 3, 90), (torch.float32, 8, 3, 90), (torch.bfloat16, 6, 1, 90), (torch.bfloat16, 8, 3, 80)],
    ids=['dino', 'dino float32', 'lw-detr', 'dino A100'])
def test_compiled_kernels_spill_nothing_and_read_16_bytes(dtype, heads, levels, capability, tmp_path):
    """The ones of the recipes: heads of 32 channels, 4 points."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import compiler

    value = torch.empty(2, 1, heads, 32, dtype=dtype, device='meta')
    locations = torch.empty(2, 9, heads, levels, 4, 2, device='meta')
    name = {torch.bfloat16: '*bf16', torch.float32: '*fp32'}[dtype]
    pointers = dict(
        value=name, out=name, grad=name, shapes='*i64', locations='*fp32', weights='*fp32', grad_value='*fp32',
        grad_locations='*fp32', grad_weights='*fp32')
    for kernel, vector, warps in (
            (kernels._forward_kernel, 16 // dtype.itemsize, kernels.FORWARD_WARPS),
            (kernels._backward_kernel, 4, kernels.BACKWARD_WARPS)):
        _, constants = kernels._tiles(value, locations, locations[..., 0], vector, warps)
        names = kernel.arg_names
        signature = dict.fromkeys(names, 'constexpr') | dict(queries='i32', tokens='i32') | {
            key: pointers[key] for key in names if key in pointers}
        aligned = {(names.index(key),): [['tt.divisibility', 16]] for key in names if key in pointers}
        compiled = triton.compile(
            triton.compiler.ASTSource(
                kernel, signature, {(names.index(key),): value for key, value in constants.items()}, aligned),
            target=GPUTarget('cuda', capability, 32), options=dict(num_warps=warps))
        loads = re.findall(r'ld\.global\.(v\d\.b\d+|b\d+)', compiled.asm['ptx'])
        assert loads.count('v4.b32' if kernel is kernels._forward_kernel else f'v{dtype.itemsize}.b32') >= 4 * levels
        if kernel is kernels._backward_kernel and capability >= 90:
            assert compiled.asm['ptx'].count('relaxed.add.v4.f32') == 4 * levels
        tool = Path(compiler.__file__).parent / 'bin/cuobjdump'
        if tool.exists():
            (tmp_path / 'kernel.cubin').write_bytes(compiled.asm['cubin'])
            usage = subprocess.run(
                [tool, '-res-usage', tmp_path / 'kernel.cubin'], capture_output=True, text=True, check=True).stdout
            registers, stack = map(int, re.search(r'REG:(\d+) STACK:(\d+)', usage).groups())
            assert registers <= 64 and stack == 0


@on_gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_operator_reads_nothing_and_can_be_captured(dtype):
    *inputs, upstream = make_inputs(LEVELS, dtype)
    inputs = [x.requires_grad_() for x in inputs]
    assert operators.choose_kernel('cuda') is operators._by_operator and operators._choice('cuda') == 'Triton'

    def step():
        out = operators.deformable_attention(inputs[0], LEVELS, *inputs[1:])
        return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]

    expected = step()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@on_gpu
def test_deterministic_algorithms_refuse_the_backward_pass():
    value, locations, weights, _ = make_inputs(LEVELS, torch.float32)
    out = operators.deformable_attention(value.requires_grad_(), LEVELS, locations, weights)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match='does not have a deterministic implementation'):
            out.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@on_gpu
@pytest.mark.skipif(get_compiling_cuda_version() == 'not available', reason='needs mmcv compiled with CUDA')
def test_kernels_are_mmcvs_compiled_one():
    *inputs, _ = make_inputs(LEVELS, torch.float32)

    def run(kernel):
        return with_gradients(lambda value, *others: kernel(value, LEVELS, None, *others, 64), *inputs)

    for a, b in zip(run(operators._by_operator), run(operators._compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
