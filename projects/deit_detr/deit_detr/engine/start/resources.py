"""Check that memory and disk of this machine suffice for a run."""

import shutil
from pathlib import Path

from mmengine.config import ConfigDict
from mmengine.dist import get_world_size
from torch import nn

from deit_detr.engine.start.findings import FAIL, OK, UNKNOWN, WARN
from deit_detr.engine.start.trial_step import Step, TooLarge, peak_of_step
from deit_detr.machine import GB, free_memory

#: Numbers that each optimizer keeps for a parameter.
MOMENTS = dict(AdamW=2, Adam=2, SGD=1)


def check_disk(model: nn.Module, cfg: ConfigDict) -> tuple[str, str]:
    """Check that all checkpoints that the run will keep fit on the disk."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint')
    if not hook:
        return OK, 'no checkpoints are written'
    kept = hook.get('max_keep_ckpts', -1)
    if kept < 0:
        train = cfg.get('train_cfg') or {}
        kept = -(-(train.get('max_epochs') or train.get('max_iters') or 1) // max(1, hook.get('interval', 1)))
    number = kept + bool(hook.get('save_best')) + 1  # one more: the new one is complete before the oldest goes
    size = _model_bytes(model) + (_moments(cfg) * _trainable_bytes(model) if hook.get('save_optimizer', True) else 0)
    if _has_ema(cfg):
        size += _model_bytes(model)
    folder = Path(cfg.get('work_dir') or '.').absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    message = f'{number} checkpoints of {size / GB:.2f} GB need {number * size / GB:.1f} GB; {free / GB:.1f} GB are ' \
              f'free in {folder}'
    if free < number * size:
        return FAIL, f'{message}: make room, set --work-dir, or lower default_hooks.checkpoint.max_keep_ckpts'
    return OK, message


def check_memory(model: nn.Module, cfg: ConfigDict, step: Step | None, size: tuple[int, int] | None) -> tuple[str, str]:
    """Compare the memory that training needs with what is free.

    On a GPU the need is measured, with one step on a batch of the run's largest images. On a CPU it is estimated, see
    :func:`estimate`.

    Args:
        model: The detector, on its device.
        cfg: The config of the run.
        step: Results of small steps; None if they failed.
        size: Height and width of the largest images, in pixels; None if unknown.

    Raises:
        TooLarge: If the measured step does not fit on the GPU.
    """
    if step is None or size is None:
        return UNKNOWN, 'not checked: see the failures of the step or of the training data'
    device = next(model.parameters()).device
    free = free_memory(device)
    batch = cfg.train_dataloader.get('batch_size', 1)
    images = f'{batch} images of {size[0]}x{size[1]}'
    remedy = 'lower train_dataloader.batch_size or the sizes in the pipeline, train with --amp, or end other programs'
    if device.type == 'cuda':
        free += _model_bytes(model)  # the step runs on a copy, so the model's bytes count twice
        try:
            need = needed_memory(model, cfg, batch, size)
        except TooLarge:
            raise TooLarge(
                f'a step with {images} does not fit into the {free / GB:.1f} GB that are free: {remedy}') from None
        shown, least, enough = f'{need / GB:.1f} GB for {images}, measured', 1, 1.1  # the allocator needs a little more
    elif cfg.get('activation_checkpointing'):
        return UNKNOWN, 'not estimated with activation_checkpointing'
    else:
        need = estimate(model, cfg, step, batch, size)
        shown, least, enough = f'about {need / GB:.1f} GB for {images}', 0.8, 1.4
    if free is None:
        return UNKNOWN, f'{shown}; the free memory cannot be read on this system'
    message = f'{shown}; {free / GB:.1f} GB are free'
    if need * least > free:
        return FAIL, f'{message}: {remedy}'
    return (WARN, f'{message}, which may not be enough: {remedy}') if need * enough > free else (OK, message)


def needed_memory(model: nn.Module, cfg: ConfigDict, batch: int, size: tuple[int, int]) -> int:
    """Return the peak of the bytes that PyTorch allocates in a training on this GPU, measured in one step.

    Args:
        model: The detector, on a GPU, not wrapped.
        cfg: The config of the run.
        batch: Images per step of this process.
        size: Height and width of the largest images, in pixels.

    Raises:
        TooLarge: If the step does not fit.
    """
    need = peak_of_step(model, cfg, batch, size) + _moments(cfg) * _trainable_bytes(model)
    if get_world_size() > 1:
        need += _trainable_bytes(model)  # buckets in which gradients are sent
    if _has_ema(cfg):
        need += _model_bytes(model)
    return need


def estimate(model: nn.Module, cfg: ConfigDict, step: Step, batch: int, size: tuple[int, int]) -> float:
    """Estimate the bytes that training needs on a CPU: 0.6 to 1.2 times the need that docs/benchmarks.md reports.

    It is the sum of weights, gradients, moments and the activations that a forward pass keeps. These are counted in
    small steps, extrapolated to the size of the run's images, and multiplied by 1.3 for temporary tensors.
    """
    fixed = _model_bytes(model) + (1 + _moments(cfg)) * _trainable_bytes(model)
    return fixed + 1.3 * batch * step.activations(*size)


def _has_ema(cfg: ConfigDict) -> bool:
    return 'EMAHook' in f'{cfg.get("default_hooks")}{cfg.get("custom_hooks")}'


def _model_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _trainable_bytes(model: nn.Module) -> int:
    return sum(param.nbytes for param in model.parameters() if param.requires_grad)


def _moments(cfg: ConfigDict) -> int:
    kind = (cfg.get('optim_wrapper') or {}).get('optimizer', {}).get('type', 'AdamW')
    return MOMENTS.get(kind if isinstance(kind, str) else kind.__name__, 2)
