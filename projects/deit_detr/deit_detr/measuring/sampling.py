"""Steps of deformable attention alone, with each of the kernels that compute it."""

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from mmcv.ops import get_compiling_cuda_version
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from mmcv_ops import deformable_attention

from deit_detr.errors import UserError
from deit_detr.machine import device

POINTS = 4  # per query, head and level


@dataclass(frozen=True)
class Sampling:
    """What one call of deformable attention samples; the default is a layer of DINO's encoder.

    Attributes:
        queries: Number of queries per image; ``None`` is one for each token, as in an encoder.
        heads: Number of heads, with 32 channels each.
        strides: Stride of each level, in pixels.
        kernel: 'chosen' (the models' choice for this device), 'pytorch' (this project's PyTorch kernel), 'mmcv'
            (mmcv's PyTorch function) or 'compiled' (mmcv's CUDA operator, which takes no bfloat16: values are cast).
        graph: Whether to replay a CUDA graph, which leaves the GPU's time alone.
    """

    queries: int | None = None
    heads: int = 8
    strides: tuple[int, ...] = (8, 16, 32)
    kernel: str = 'chosen'
    graph: bool = False


def make_sampling_step(
    sampling: Sampling, batch: int, size: tuple[int, int], dtype: torch.dtype,
) -> Callable[[], None]:
    """Return a step of deformable attention with its gradients.

    Args:
        sampling: What to sample, and the kernel.
        batch: Number of images.
        size: Height and width of the images, in pixels.
        dtype: Type of the values; locations and weights are float32.

    Raises:
        UserError: If this machine does not have the kernel, or a GPU for the graph.
    """
    shapes = torch.tensor([[-(-side // stride) for side in size] for stride in sampling.strides])
    tokens = int(shapes.prod(1).sum())
    generator = torch.Generator().manual_seed(0)
    centres = torch.cat([
        torch.cartesian_prod(*((torch.arange(side) + 0.5) / side for side in shape)).flip(-1) for shape in shapes])
    if sampling.queries:
        centres = torch.rand(sampling.queries, 2, generator=generator)
    samples = (batch, len(centres), sampling.heads, len(shapes), POINTS)
    value = torch.randn(batch, tokens, sampling.heads, 32, generator=generator).to(device(), dtype).requires_grad_()
    offsets = 3 * torch.randn(*samples, 2, generator=generator) / shapes.flip(-1)[:, None]
    weights = torch.randn(*samples, generator=generator).flatten(3).softmax(-1).view(samples)
    locations, weights = (
        x.to(device()).requires_grad_() for x in (centres[:, None, None, None] + offsets, weights))
    upstream = torch.randn(batch, len(centres), sampling.heads * 32, generator=generator).to(value)
    kernel = _kernel(sampling.kernel, shapes)

    def step() -> None:
        out = kernel(value, locations, weights)
        torch.autograd.grad(out, (value, locations, weights), upstream.to(out.dtype))
    if sampling.kernel == 'pytorch':  # also where there is one in Triton
        step = mock.patch.object(deformable_attention, '_triton', lambda _: None)(step)
    return _in_graph(step) if sampling.graph else step


def _kernel(name: str, shapes: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Return a kernel as a function of values, locations and weights."""
    if name == 'chosen':
        kernel = deformable_attention.choose_kernel(device().type)
        return lambda value, *others: kernel(value, shapes.tolist(), None, *others, 64)
    if name == 'pytorch':
        return lambda value, *others: deformable_attention.deformable_attention(value, shapes, *others)
    on_device = shapes.to(device())
    if name == 'mmcv':
        return lambda value, *others: multi_scale_deformable_attn_pytorch(value.float(), on_device, *others)
    if device().type != 'cuda' or get_compiling_cuda_version() == 'not available':
        raise UserError('this mmcv has no compiled operator for a GPU')
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]]).to(device())
    return lambda value, *others: MultiScaleDeformableAttnFunction.apply(
        value.float(), on_device, starts, *others, 64)


def _in_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step in a CUDA graph and return a function that replays it."""
    if not torch.cuda.is_available():
        raise UserError('a CUDA graph needs a GPU')
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is allocated at the first call must not be captured
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
