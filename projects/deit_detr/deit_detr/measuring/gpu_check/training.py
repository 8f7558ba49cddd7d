"""The checks of training: losses, gradients, speed and memory of a few steps of each family."""

import contextlib
import copy
import itertools
import statistics

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

from deit_detr.engine.start.data import largest_image
from deit_detr.engine.start.resources import estimate, needed_memory
from deit_detr.engine.start.trial_step import take_step
from deit_detr.machine import GB, device, peak_memory, reset_peak_memory
from deit_detr.measuring.benchmark import measure, seconds_of
from deit_detr.measuring.data_speed import endless
from deit_detr.measuring.gpu_check.rows import Failed
from deit_detr.measuring.gpu_check.setting import Setting
from deit_detr.measuring.variants import Variant, build_model, make_step

STEPS = 5
#: Largest relative difference between preflight's announcement and a GPU's use of memory.
MEMORY_TOLERANCE = 0.15


def check_training(setting: Setting, family: str, amp: bool) -> str:
    """Take a few steps with batches of the recipe's data loader, and check losses and gradients.

    The check fails if a loss or a gradient is not finite, a parameter has no gradient, or a step is skipped. ``amp``
    trains in bfloat16 as ``tools/train.py --amp`` does; a CPU only autocasts, because ``AmpOptimWrapper`` needs a GPU.
    """
    cfg = setting.load(family)
    autocast = contextlib.nullcontext()
    if amp and setting.on_gpu:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    elif amp:
        autocast = torch.autocast('cpu', torch.bfloat16)
    model = build_model(cfg, dropout=True).to(device()).train()
    optim_wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    gradients = GradientWatch(model, optim_wrapper.optimizer)
    seconds, totals, sizes = [], [], []
    loader = Runner.build_dataloader(cfg.train_dataloader.to_dict(), seed=0)
    for batch in itertools.islice(endless(loader), STEPS):
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
           f'loss {totals[0]:.1f} to {totals[-1]:.1f}' + (', autocast only' if amp and not setting.on_gpu else '')


class GradientWatch:
    """Checks all gradients of a model before each step of its optimizer."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        self.steps = 0
        self.problems = []
        optimizer.register_step_pre_hook(self._check)

    def _check(self, *_) -> None:
        self.steps += 1
        missing = [name for name, param in self.params.items() if param.grad is None]
        there = {name: param.grad for name, param in self.params.items() if param.grad is not None}
        finite = torch.stack([torch.isfinite(norm) for norm in torch._foreach_norm(list(there.values()))]).tolist()
        broken = [name for name, fine in zip(there, finite, strict=True) if not fine]
        for what, names in (('no gradient', missing), ('a gradient that is not finite', broken)):
            if names:
                self.problems.append(f'step {self.steps}: {len(names)} parameters have {what}, e.g. {names[0]}')

    def require(self, steps: int) -> None:
        """Raise ``Failed`` for the first problem, or if steps are missing: a scaler skips those that overflow."""
        if self.problems:
            raise Failed(self.problems[0])
        if self.steps < steps:
            raise Failed(f'{steps - self.steps} of {steps} steps were skipped: gradients overflowed')


def check_memory(setting: Setting, family: str) -> str:
    """Compare the memory that preflight announces with the peak of real steps at the largest size.

    On a CPU, where preflight only estimates, they may differ by a factor of two.
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
    """Return the bytes that preflight announces for a run, its images per step, and their height and width."""
    size = largest_image(DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset)))
    batch = cfg.train_dataloader.batch_size
    model = build_model(cfg, dropout=True).to(device())
    if device().type == 'cuda':
        return needed_memory(model, cfg, batch, size), batch, size
    return estimate(model, cfg, take_step(model, cfg), batch, size), batch, size


def used_memory(variant: Variant) -> float:
    """Return the most bytes that two steps take: in this process on a GPU, in a new process on a CPU."""
    if device().type == 'cpu':
        result = measure([variant], steps=1, warmup=1)[0]
        return (result['peak_gb'] - result['empty_gb']) * GB
    reset_peak_memory()
    before = torch.cuda.memory_allocated()
    step = make_step(variant)
    for _ in range(2):
        step()
    return peak_memory() - before
