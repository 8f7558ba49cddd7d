"""The cost of a recipe's model: operations, parameters, latency, memory and the largest batch."""

import copy
import io
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from mmdet.registry import DATASETS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deit_detr.datasets.noise import make_batch
from deit_detr.errors import UserError
from deit_detr.machine import GB, device
from deit_detr.measuring.benchmark import measure, seconds_of
from deit_detr.measuring.variants import Variant, build_model, load_model_config, load_recipe


def largest_batch(variant: Variant, gigabytes: float, known: int = 0) -> int:
    """Return the largest batch whose steps fit into a given amount of memory.

    Args:
        variant: What to measure; its ``batch`` is ignored.
        gigabytes: Limit in 1e9 bytes. On a GPU it counts what PyTorch allocates, without the CUDA context; on a CPU
            resident memory, with Python and its libraries.
        known: A batch that fits, for instance into less memory.

    Returns:
        int: Images; 0 if one image is too much.
    """
    def fits(batch: int) -> bool:
        trial = replace(variant, batch=batch, memory_limit=gigabytes * GB)
        try:
            result = measure([trial], steps=1, warmup=1)[0]
        except UserError as error:
            print(f'  batch {batch}: {str(error).splitlines()[0]}', flush=True)
            return False
        print(f'  batch {batch}: {result["peak_gb"]:.2f} GB', flush=True)
        return result['peak_gb'] <= gigabytes

    low, high = known, known + 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def forward_flops(variant: Variant) -> float:
    """Return the floating-point operations of a forward pass for one image; a training step takes 3 times as many.

    A multiply-add counts as two operations; papers that count it as one report half. Matrix products and convolutions
    are counted, also those of attention, which ``mmengine.analysis`` and PyTorch's counter leave out where it is fused.
    Normalization, activations and the sampling of deformable attention are not counted.
    """
    model = build_model(load_model_config(variant), dropout=False).eval()
    model.requires_grad_(False)  # the counter takes a view of a parameter for the start of a backward pass
    data = model.data_preprocessor(make_batch(1, variant.size, 1))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**data, mode='tensor')
    return float(counter.get_total_flops())


def matmul_rate(dtype: torch.dtype) -> float:
    """Measure the operations per second of this device in a large matrix product, a peak reached in practice."""
    side = 8192 if torch.cuda.is_available() else 2048
    a = torch.randn(side, side, device=device(), dtype=dtype)
    seconds_of(lambda: a @ a)
    return 2 * side**3 / min(seconds_of(lambda: a @ a) for _ in range(5))


def count_parameters(variant: Variant) -> int:
    """Return the number of parameters of the model."""
    return sum(param.numel() for param in build_model(load_model_config(variant), True).parameters())


def data_size(config: str) -> tuple[int, int]:
    """Return the height and width, in pixels, with which a recipe's first validation image reaches the model."""
    cfg = load_recipe(config)
    with redirect_stdout(io.StringIO()):  # pycocotools prints while it reads
        dataset = DATASETS.build(copy.deepcopy(cfg.val_dataloader.dataset))
    return tuple(dataset[0]['inputs'].shape[-2:])


def recipe_cost(config: str, size: tuple[int, int], steps: int = 5) -> dict:
    """Measure the cost of inference with a recipe's model, one image at a time, on this device.

    Args:
        config: Path of the recipe.
        size: Height and width of the image, in pixels.
        steps: Number of measured images.

    Returns:
        dict: ``size``, ``parameters``, ``gflops`` (see :func:`forward_flops`), ``latency_ms`` (median, from the uint8
        image to boxes) and ``infer_gb`` (peak memory of the process).
    """
    variant = Variant(name=Path(config).stem, task='infer', config=config, size=size)
    result = measure([variant], steps, warmup=2)[0]
    return dict(
        size=list(size), parameters=count_parameters(variant), gflops=forward_flops(variant) / 1e9,
        latency_ms=1000 * result['median'], infer_gb=result['peak_gb'])
