"""Training steps on noise with a copy of the model: they show wrong shapes, missing gradients and needed memory."""

import copy
import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.runner import turn_on_activation_checkpointing
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from deit_detr.checkpoints.pretrained import check_pretrained, compare_loaded
from deit_detr.datasets.noise import make_batch
from deit_detr.engine.start.findings import FAIL, OK, UNKNOWN, WARN
from deit_detr.errors import UserError


class TooLarge(UserError):
    """Raised when a training step does not fit into the memory of the GPU."""


@dataclass(frozen=True)
class Step:
    """Results of a few small training steps.

    Attributes:
        without_gradient: Names of the trainable parameters without a gradient.
        side: Height and width of the images, in pixels.
        bytes_by_pixels: Coefficients (square, linear, constant) of the memory that a forward pass keeps for its
            backward pass, by the number of pixels.
    """

    without_gradient: list[str]
    side: int
    bytes_by_pixels: tuple[float, float, float]

    def activations(self, height: int, width: int) -> float:
        """Return the bytes that the backward pass of one image needs; its size is in pixels."""
        return float(np.polyval(self.bytes_by_pixels, height * width))


def take_step(model: nn.Module, cfg: ConfigDict) -> Step:
    """Train a copy of a model on one small image of noise with boxes.

    Where several processes train, all of them have to call this, because losses are averaged over the processes.

    Args:
        model: The detector, on its device, not wrapped. Not changed.
        cfg: The config of the run.

    Raises:
        TooLarge: If the step does not fit on the GPU.
        UserError: If it fails otherwise or its loss is not finite.
    """
    # two-stage detectors select their queries from the tokens, so there must be enough of them
    selects = getattr(model, 'as_two_stage', False) or hasattr(model, 'query_selection')
    tokens = cfg.model.get('num_queries', 100) if selects else 16
    first = next(side for side in range(64, 4096, 64) if (side // 16) ** 2 >= tokens)
    sides = [first, first + 64, first + 128]  # 64: divisible by all strides
    kept = []
    with _trial(model) as trial:
        for side in reversed(sides):
            with _saved_bytes(trial) as saved:
                try:
                    total = _loss(trial, cfg, 1, (side, side))
                except torch.OutOfMemoryError:
                    raise  # to _trial
                except Exception as error:
                    raise UserError(
                        f'the model fails on an image of {side}x{side}: {type(error).__name__}: {error}'
                    ) from error
            kept.append(sum(saved.values()))
        if not torch.isfinite(total):
            raise UserError('the loss of an image of noise is not finite: check the initialization and the losses')
        total.backward()
        without = [
            name for name, param in trial.named_parameters() if param.requires_grad and param.grad is None]
    return Step(without, first, _curve([side**2 for side in reversed(sides)], kept))


def peak_of_step(model: nn.Module, cfg: ConfigDict, batch: int, size: tuple[int, int]) -> int:
    """Measure the peak memory of a training step on one batch of noise, with a copy of the model.

    The copy is not compiled: that would take minutes, and compiled modules need less memory.

    Args:
        model: The detector, on a GPU, not wrapped. Not changed.
        cfg: The config of the run.
        batch: Images.
        size: Height and width of the images, in pixels.

    Returns:
        int: Peak of the bytes that PyTorch allocates for weights, gradients, images and activations, without the
        moments of an optimizer.

    Raises:
        TooLarge: If that is more than is free.
    """
    device = next(model.parameters()).device
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with _trial(model) as trial:
            if cfg.get('activation_checkpointing'):  # mmengine turns it on after the hooks
                turn_on_activation_checkpointing(trial, cfg.activation_checkpointing)
            _loss(trial, cfg, batch, size).backward()
        return torch.cuda.max_memory_allocated(device) - before
    finally:
        trial = None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)  # the log shows the peak of the run, not of this


@contextmanager
def _trial(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy of a model to train a step with, and restore the random states afterwards.

    Raises:
        TooLarge: If the copy, or what the block does with it, does not fit on the GPU.
    """
    try:
        with same_random_state():
            torch.manual_seed(0)
            trial = copy.deepcopy(model).train()
            trial.data_preprocessor.batch_augments = None  # they would change the size
            if not getattr(model, 'is_init', True):
                # mmengine calls the hook before it initializes: mmdet's level_embed is still uninitialized memory
                for param in trial.parameters():
                    if not (param.abs() < 100).all():
                        nn.init.normal_(param, std=0.02)
            yield trial
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold activations
        raise TooLarge('a step does not fit into the free memory of this GPU: end other programs') from None


def _loss(trial: nn.Module, cfg: ConfigDict, batch: int, size: tuple[int, int]) -> Tensor:
    """Compute the loss of images of noise with 10 boxes each, in the precision of the run."""
    wrapper = cfg.get('optim_wrapper') or {}
    amp = 'Amp' in str(wrapper.get('type', ''))
    dtype = getattr(torch, wrapper.get('dtype') or 'float16')
    device = next(trial.parameters()).device
    data = trial.data_preprocessor(make_batch(batch, size, 10, num_classes=_num_classes(cfg.model)))
    with torch.autocast(device.type, dtype, enabled=amp):
        losses = trial(**data, mode='loss')
    return trial.parse_losses(losses)[0]


def check_gradients(step: Step | None, cfg: ConfigDict) -> tuple[str, str]:
    """Check that every trainable parameter gets a gradient."""
    if step is None:
        return UNKNOWN, 'not checked: the fields of the model do not fit each other'
    if not step.without_gradient:
        return OK, f'a step on {step.side}x{step.side} noise gives every parameter a gradient'
    number = len(step.without_gradient)
    message = f'{number} parameters get no gradient, e.g. {", ".join(step.without_gradient[:3])}: '
    if (cfg.get('launcher') or 'none') == 'none' or cfg.get('find_unused_parameters'):
        return WARN, message + 'they are not trained; on several GPUs training would stop'
    return FAIL, message + 'training on several GPUs stops at the second step; freeze them, or set ' \
        'find_unused_parameters=True'


def check_weights(model: nn.Module, load_from: str | None = None) -> tuple[str, str]:
    """Check that the pretrained checkpoints fit and, in an initialized model, that they arrived."""
    found = check_pretrained(model)
    if not found and load_from:
        return OK, 'no part of the model has pretrained weights besides load_from'
    if not found:
        return WARN, 'no part of the model is pretrained: everything trains from scratch; set model.backbone.init_cfg'
    return OK, '; '.join(compare_loaded(model) if model.is_init else found)


def _num_classes(model: ConfigDict) -> int:
    head = model.get('bbox_head') or (model.get('roi_head') or {}).get('bbox_head') or {}
    return head['num_classes'] if isinstance(head, dict) and 'num_classes' in head else 1


def _curve(pixels: list[int], kept: list[int]) -> tuple[float, float, float]:
    square, linear, constant = np.polyfit(pixels, kept, 2)
    if square < 0:  # almost linear: the sizes of a few tensors differ
        square, (linear, constant) = 0.0, np.polyfit(pixels, kept, 1)
    return square, linear, constant


@contextmanager
def same_random_state() -> Iterator[None]:
    """Restore the random states of Python, NumPy and PyTorch after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _saved_bytes(model: nn.Module) -> Iterator[dict[int, int]]:
    """Collect address and size of each storage that is kept for the backward pass, except parameters."""
    own = {param.untyped_storage().data_ptr() for param in model.parameters()}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
