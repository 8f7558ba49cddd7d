"""Training steps of each family: speed, memory, losses and gradients."""

import contextlib
import copy
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

from deit_detr.engine.start.data import largest_image
from deit_detr.engine.start.resources import estimate, needed_memory
from deit_detr.engine.start.trial_step import take_step
from deit_detr.machine import GB, device, peak_memory
from deit_detr.measuring.benchmark import Variant, build_model, make_step, measure, seconds_of
from deit_detr.measuring.gpu_check.rows import Failed, free_memory
from deit_detr.measuring.gpu_check.setting import Setting

STEPS = 5
#: What a GPU may use against what preflight announced.
MEMORY_TOLERANCE = 0.15


def check_training(setting: Setting, family: str, amp: bool) -> str:
    """Take a few steps with the recipe's batches, as its loader makes them, and look at losses and gradients.

    Args:
        setting: Of all checks.
        family: One of its families.
        amp: bfloat16 as ``tools/train.py --amp`` has it. A CPU can only autocast: ``AmpOptimWrapper`` needs a GPU.

    Raises:
        Failed: If a loss or a gradient is not finite, a parameter has none, or a step is skipped.
    """
    cfg = setting.load(family)
    autocast = contextlib.nullcontext()
    if amp and setting.on_gpu:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    elif amp:
        autocast = torch.autocast('cpu', torch.bfloat16)
    _reset_peak()
    model = build_model(cfg, dropout=True).to(device()).train()
    optim_wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    gradients = GradientWatch(model, optim_wrapper.optimizer)
    seconds, totals, sizes = [], [], []
    for batch in itertools.islice(_batches(cfg), STEPS):
        losses = {}
        with autocast:
            seconds.append(seconds_of(lambda batch=batch, out=losses: out.update(
                model.train_step(batch, optim_wrapper))))
        losses = {name: float(torch.as_tensor(value).detach()) for name, value in losses.items()}
        broken = [name for name, value in losses.items() if not torch.isfinite(torch.tensor(value))]
        if broken:
            raise Failed(f'step {len(seconds)}: {", ".join(broken)} not finite')
        totals.append(losses['loss'])
        sizes += [tuple(image.shape[-2:]) for image in batch['inputs']]
    gradients.require(STEPS)
    height, width = map(max, zip(*sizes, strict=True))
    return f'{statistics.median(seconds[1:]):.3g} s/step, {"peak" if setting.on_gpu else "process"} ' \
           f'{peak_memory() / GB:.2f} GB, {len(sizes) // STEPS} images up to {height}x{width}, ' \
           f'loss {totals[0]:.1f} to {totals[-1]:.1f}' + (', autocast alone' if amp and not setting.on_gpu else '')


def _batches(cfg: Config) -> Iterator[dict]:
    """The recipe's batches without an end; an epoch of a few frames has few of them."""
    loader = Runner.build_dataloader(cfg.train_dataloader.to_dict(), seed=0)
    while True:
        yield from loader


class GradientWatch:
    """Looks at all gradients whenever an optimizer is about to use them.

    Args:
        model: Its parameters are looked at.
        optimizer: Its optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        self.steps = 0
        self.problems = []
        optimizer.register_step_pre_hook(self._look)

    def _look(self, *_) -> None:
        self.steps += 1
        missing = [name for name, param in self.params.items() if param.grad is None]
        there = {name: param.grad for name, param in self.params.items() if param.grad is not None}
        finite = torch.stack([torch.isfinite(norm) for norm in torch._foreach_norm(list(there.values()))]).tolist()
        broken = [name for name, fine in zip(there, finite, strict=True) if not fine]
        for what, names in (('no gradient', missing), ('a gradient that is not finite', broken)):
            if names:
                self.problems.append(f'step {self.steps}: {len(names)} parameters have {what}, e.g. {names[0]}')

    def require(self, steps: int) -> None:
        """Raise ``Failed`` for what was seen, or for fewer steps: a scaler leaves out those that overflow."""
        if self.problems:
            raise Failed(self.problems[0])
        if self.steps < steps:
            raise Failed(f'{steps - self.steps} of {steps} steps were skipped: gradients overflowed')


def check_memory(setting: Setting, family: str) -> str:
    """Compare what preflight announces with the peak of real steps at the largest size.

    Raises:
        Failed: If they are too far apart; on a CPU, where preflight only estimates, that is more than twice or less
            than half.
    """
    config = setting.recipe(family)
    announced, batch, size = announced_memory(setting.load(family))
    used = used_memory(Variant(family, 'train', str(config), batch=batch, size=size, dropout=True))
    least, most = (1 - MEMORY_TOLERANCE, 1 + MEMORY_TOLERANCE) if setting.on_gpu else (0.5, 2)
    ratio = announced / used
    detail = f'announced {announced / GB:.2f} GB, used {used / GB:.2f} GB: {ratio:.2f} ({least:g} to {most:g}), for ' \
             f'{batch} images of {size[0]}x{size[1]}'
    if not least <= ratio <= most:
        raise Failed(detail)
    return detail


def announced_memory(cfg: Config) -> tuple[float, int, tuple[int, int]]:
    """What preflight says that a run needs, to the byte; its table rounds.

    Args:
        cfg: The config of the run.

    Returns:
        tuple: Bytes, images of a step, and their height and width in pixels.
    """
    size = largest_image(DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset)))
    batch = cfg.train_dataloader.batch_size
    model = build_model(cfg, dropout=True).to(device())
    if device().type == 'cuda':
        return needed_memory(model, cfg, batch, size), batch, size
    return estimate(model, cfg, take_step(model, cfg), batch, size), batch, size


def used_memory(variant: Variant) -> float:
    """Bytes that two steps take at most: in this process on a GPU, on a CPU in one whose peak is its own."""
    if device().type == 'cpu':
        result = measure([variant], steps=1, warmup=1)[0]
        return (result['peak_gb'] - result['empty_gb']) * GB
    free_memory()
    before = torch.cuda.memory_allocated()
    step = make_step(variant)
    for _ in range(2):
        step()
    return peak_memory() - before


def _reset_peak() -> None:
    """Let the peak of memory begin anew, where the system can; on a GPU :func:`rows.free_memory` does."""
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')
