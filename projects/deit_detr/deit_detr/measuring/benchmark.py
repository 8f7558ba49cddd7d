"""Time and memory of this project beside the plain mmdet classes, on whatever device there is.

Each variant lives in a process of its own, so that its peak memory is its own, and the processes take turns step by
step, so that a busy machine slows both.
"""

import copy
import io
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmcv_ops.deformable_attention import choose_kernel
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, turn_on_activation_checkpointing
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deit_detr.datasets.noise import make_batch
from deit_detr.errors import UserError
from deit_detr.machine import GB, device, peak_memory


@dataclass(frozen=True)
class Variant:
    """What one process measures.

    Attributes:
        name: What its row of the table is called.
        task: 'train', 'infer', 'head' or 'deformable'.
        config: Path of the recipe.
        plain: Whether to use mmdet's own classes and settings in place of the recipe's fast ones.
        batch: Images a step.
        size: Height and width of the images, in pixels.
        boxes: Boxes an image.
        padded: Whether every second image is 64 pixels lower and 32 narrower, so that it is padded.
        amp: Whether to autocast to bfloat16.
        compile: Whether to use torch.compile.
        checkpointing: Whether to recompute the activations of backbone and encoder layers.
        dropout: Whether dropout stays as the recipe has it; otherwise it is off.
        memory_limit: In bytes; more than that is an error, where it can be enforced.
    """

    name: str
    task: str
    config: str
    plain: bool = False
    batch: int = 1
    size: tuple[int, int] = (800, 1072)
    boxes: int = 10
    padded: bool = False
    amp: bool = False
    compile: bool = False
    checkpointing: bool = False
    dropout: bool = False
    memory_limit: float | None = None


def load_model_config(variant: Variant) -> Config:
    """The recipe of a variant, without pretrained weights: they cost nothing in a step."""
    cfg = Config.fromfile(variant.config)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.pop('batch_augments', None)  # they would change the size
    if variant.plain:
        cfg.model.type, cfg.model.bbox_head.type = 'DETR', 'DETRHead'
        cfg.model.pop('compile', None)
        cfg.model.data_preprocessor.pop('non_blocking', None)
        cfg.optim_wrapper.optimizer.pop('fused', None)
    elif variant.compile:
        cfg.model.compile = dict()
    return cfg


def build_model(cfg: Config, dropout: bool) -> nn.Module:
    """A model with weights of seed 0: those of twins are equal."""
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel('WARNING')
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
    return model


def make_step(variant: Variant) -> Callable[[], None]:
    """The thing to measure, ready to be called."""
    if variant.task == 'deformable':
        return make_sampling_step(variant)
    cfg = load_model_config(variant)
    model = build_model(cfg, variant.dropout).to(device())
    data = make_batch(variant.batch, variant.size, variant.boxes, variant.padded)
    if variant.checkpointing:
        turn_on_activation_checkpointing(
            model, [f'{name}.layers.{index}' for name in ('backbone', 'encoder')
                    for index in range(len(model.get_submodule(f'{name}.layers')))])

    if variant.task == 'train':
        model.train()
        optim_wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))

        def step() -> None:
            model.train_step(data, optim_wrapper)
    elif variant.task == 'infer':
        model.eval()
        step = torch.inference_mode()(lambda: model.test_step(data))
    else:
        # Matching, targets and losses of given outputs, and the gradients for these.
        samples = model.data_preprocessor(data, training=True)['data_samples']
        hidden_states = torch.randn(
            cfg.model.decoder.num_layers, variant.batch, cfg.model.num_queries, cfg.model.bbox_head.embed_dims,
            generator=torch.Generator().manual_seed(0)).to(device())
        outputs = [output.detach().requires_grad_() for output in model.bbox_head(hidden_states)]
        targets = [sample.gt_instances for sample in samples], [sample.metainfo for sample in samples]

        def step() -> None:
            losses = model.bbox_head.loss_by_feat(*outputs, *targets)
            torch.autograd.grad(sum(losses.values()), outputs)

    def autocast_step() -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=variant.amp):
            step()
    return autocast_step


def make_sampling_step(variant: Variant) -> Callable[[], None]:
    """Deformable attention of an encoder layer as DINO's (8 heads, 4 points, strides 8, 16, 32), with its gradients.

    The plain variant is mmcv's function in PyTorch; the other the kernel that is chosen on this device.
    """
    shapes = torch.tensor([[-(-side // stride) for side in variant.size] for stride in (8, 16, 32)])
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)])
    tokens = int(starts[-1])
    generator = torch.Generator().manual_seed(0)
    size = (variant.batch, tokens, 8, len(shapes), 4)
    centres = torch.cat([
        torch.cartesian_prod(*((torch.arange(side) + 0.5) / side for side in shape)).flip(-1) for shape in shapes])
    offsets = 3 * torch.randn(*size, 2, generator=generator) / shapes.flip(-1)[:, None]
    inputs = [
        torch.randn(variant.batch, tokens, 8, 32, generator=generator), centres[:, None, None, None] + offsets,
        torch.randn(*size, generator=generator).flatten(3).softmax(-1).view(size)]
    value, locations, weights = (x.to(device()).requires_grad_() for x in inputs)
    shapes, starts = shapes.to(device()), starts[:-1].to(device())
    upstream = torch.randn(variant.batch, tokens, 256, generator=generator).to(device())
    kernel = choose_kernel(device().type)

    def step() -> None:
        if variant.plain:
            out = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
        else:
            out = kernel(value, shapes, starts, locations, weights, 64)
        torch.autograd.grad(out, (value, locations, weights), upstream)
    return step


def seconds_of(step: Callable[[], None]) -> float:
    """Wall time of one call, until the device is done."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def limit_memory(limit: float) -> None:
    """Let allocations beyond a limit in bytes fail, instead of taking the machine down."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    else:
        reserved = int(limit + GB)  # the limit is on resident memory; this one counts what is never touched, too
        resource.setrlimit(resource.RLIMIT_DATA, (reserved, reserved))


def serve(pipe: Connection, variant: Variant, warmup: int) -> None:
    """A variant's process: get ready, then a step for each ``True`` received, and the peak memory at the end."""
    try:
        torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', os.cpu_count())))
        before = peak_memory()
        if variant.memory_limit:
            limit_memory(variant.memory_limit)
        step = make_step(variant)
        for _ in range(warmup):
            seconds_of(step)
        pipe.send(before)
        while pipe.recv():
            pipe.send(seconds_of(step))
        pipe.send(peak_memory())
    except Exception as error:  # whatever it is, it belongs to the process that waits
        pipe.send(error if isinstance(error, UserError) else UserError(f'{variant.name}: {error}'))


@contextmanager
def started(variant: Variant, warmup: int) -> Iterator[Callable]:
    """A running process of a variant; calling ``ask(value)`` sends to it (unless ``None``) and waits for its answer."""
    context = multiprocessing.get_context('spawn')
    pipe, other_end = context.Pipe()
    process = context.Process(target=serve, args=(other_end, variant, warmup), daemon=True)
    process.start()
    other_end.close()

    def ask(value: bool | None = None):
        try:
            if value is not None:
                pipe.send(value)
            answer = pipe.recv()
        except (EOFError, ConnectionError):
            process.join()
            raise UserError(
                f'{variant.name}: its process ended with status {process.exitcode}; out of memory?') from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    try:
        yield ask
    finally:
        pipe.close()
        process.kill()
        process.join()


def measure(variants: list[Variant], steps: int, warmup: int) -> list[dict]:
    """Run variants side by side, taking turns.

    Args:
        variants: At least one; the last is what the others are compared with.
        steps: Measured steps of each.
        warmup: Steps before them.

    Returns:
        list[dict]: For each variant its settings, ``seconds`` of every step, ``median``, ``images_per_second``,
        ``peak_gb``, ``empty_gb`` (the process before the model) and, against the last variant, ``speedup`` and
        ``memory_ratio``.

    Raises:
        UserError: If a variant cannot be built or runs out of memory.
    """
    with ExitStack() as stack:
        processes = []
        for variant in variants:
            ask = stack.enter_context(started(variant, warmup))
            processes.append((ask, ask()))
        seconds = [[] for _ in variants]
        for _ in range(steps):
            for (ask, _), times in zip(processes, seconds, strict=True):
                times.append(ask(True))
        peaks = [ask(False) for ask, _ in processes]

    results = []
    for variant, times, peak, (_, empty) in zip(variants, seconds, peaks, processes, strict=True):
        median = statistics.median(times)
        results.append(dict(
            **asdict(variant), seconds=times, median=median, images_per_second=variant.batch / median,
            peak_gb=peak / GB, empty_gb=empty / GB))
    for result in results:
        result['speedup'] = results[-1]['median'] / result['median']
        result['memory_ratio'] = result['peak_gb'] / results[-1]['peak_gb']
    return results


def largest_batch(variant: Variant, gigabytes: float) -> int:
    """The largest batch whose steps stay within so much memory.

    Args:
        variant: Its ``batch`` is not looked at.
        gigabytes: 1e9 bytes each. On a GPU what PyTorch allocates: the CUDA context comes on top. On a CPU what is
            resident, Python and its libraries included.

    Returns:
        int: 0 if one image is too much.
    """
    def fits(batch: int) -> bool:
        trial = Variant(**asdict(variant) | dict(batch=batch, memory_limit=gigabytes * GB))
        try:
            result = measure([trial], steps=1, warmup=1)[0]
        except UserError as error:
            print(f'  batch {batch}: {str(error).splitlines()[0]}', flush=True)
            return False
        print(f'  batch {batch}: {result["peak_gb"]:.2f} GB', flush=True)
        return result['peak_gb'] <= gigabytes

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def forward_flops(variant: Variant) -> float:
    """Floating-point operations of the network for one image; a training step needs three times.

    A multiplication and an addition are two: papers that count them as one state half of it. Matrix products and
    convolutions are counted, attention spelled out, which ``mmengine.analysis`` and PyTorch's own counter leave out
    where it is fused. Not counted: normalization, activations, the sampling of deformable attention.
    """
    model = build_model(load_model_config(variant), dropout=False).eval()
    model.requires_grad_(False)  # the counter takes a view of a parameter for the start of a backward pass
    data = model.data_preprocessor(make_batch(1, variant.size, 1))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**data, mode='tensor')
    return float(counter.get_total_flops())


def matmul_rate(dtype: torch.dtype) -> float:
    """What this device reaches in a large matrix product, in operations a second: a peak that can be measured."""
    side = 8192 if torch.cuda.is_available() else 2048
    a = torch.randn(side, side, device=device(), dtype=dtype)
    seconds_of(lambda: a @ a)
    return 2 * side**3 / min(seconds_of(lambda: a @ a) for _ in range(5))


def parameters(variant: Variant) -> int:
    """Number of parameters of the model."""
    return sum(param.numel() for param in build_model(load_model_config(variant), True).parameters())


def pipeline_times(config: str, images: int) -> list[dict]:
    """Milliseconds an image that each step of the training pipeline costs, in one process.

    Args:
        config: Path of a recipe whose data is there.
        images: How many to load.

    Returns:
        list[dict]: ``name`` and ``milliseconds`` of each step, the sum last.
    """
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    import cv2
    cv2.setNumThreads(cfg.env_cfg.mp_cfg.get('opencv_num_threads', 0))
    dataset = DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset))
    totals = {}
    for index in range(images):
        item = dataset.get_data_info(index % len(dataset))
        for transform in dataset.pipeline.transforms:
            start = time.perf_counter()
            item = transform(item)
            name = type(transform).__name__
            totals[name] = totals.get(name, 0.0) + time.perf_counter() - start
    totals['sum'] = sum(totals.values())
    return [dict(name=name, milliseconds=1000 * total / images) for name, total in totals.items()]


def loader_rate(config: str, workers: int, images: int) -> float:
    """Images a second that the recipe's data loader delivers.

    Args:
        config: Path of a recipe whose data is there.
        workers: Its worker processes; 0 loads in this one.
        images: How many to wait for, after the first batch of every worker.

    Returns:
        float: Images a second.
    """
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    loader_cfg = cfg.train_dataloader.to_dict()
    loader_cfg.update(num_workers=workers, persistent_workers=workers > 0)
    loader = Runner.build_dataloader(loader_cfg, seed=0)

    def batches():
        while True:
            yield from loader

    source = batches()
    for _ in range(max(1, workers)):
        next(source)
    number, start = 0, time.perf_counter()
    while number < images:
        number += len(next(source)['inputs'])
    return number / (time.perf_counter() - start)


def data_size(config: str) -> tuple[int, int]:
    """Height and width, in pixels, that a recipe's first validation image has when it reaches the model."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    with redirect_stdout(io.StringIO()):  # pycocotools reports that it reads
        dataset = DATASETS.build(copy.deepcopy(cfg.val_dataloader.dataset))
    return tuple(dataset[0]['inputs'].shape[-2:])


def recipe_cost(config: str, size: tuple[int, int], steps: int = 5) -> dict:
    """What a recipe's model costs at inference, an image at a time, on this device.

    Args:
        config: Path of the recipe.
        size: Height and width of the image, in pixels.
        steps: Measured images.

    Returns:
        dict: ``size``, ``parameters``, ``gflops`` (see :func:`forward_flops`), ``latency_ms`` (median, from the uint8
        image to boxes) and ``infer_gb`` (peak memory of the process).
    """
    variant = Variant(name=Path(config).stem, task='infer', config=config, size=size)
    result = measure([variant], steps, warmup=2)[0]
    return dict(
        size=list(size), parameters=parameters(variant), gflops=forward_flops(variant) / 1e9,
        latency_ms=1000 * result['median'], infer_gb=result['peak_gb'])
