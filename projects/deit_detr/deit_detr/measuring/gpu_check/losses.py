"""The check that a device computes the same losses and gradients as the CPU."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deit_detr.machine import device
from deit_detr.measuring.gpu_check.rows import Failed
from deit_detr.measuring.gpu_check.setting import Setting
from deit_detr.measuring.variants import build_model

#: Largest relative differences from float32 on the CPU: of each loss term and of the gradients in float32, and of the
#: sum of the losses in bfloat16. On a CPU, with six weights for each small recipe and three for each ScanNet recipe,
#: float64 differed from float32 by at most 3.2e-6 in a term and 4e-4 in the gradients (often 1e-6: larger differences
#: come from a ReLU, a sign or an interpolation that a last bit flips), and bfloat16 by 1.3e-2. A GPU sums in another
#: order, which has a similar effect; the bounds allow 4 to 30 times these differences.
LOSS_BOUND, GRADIENT_BOUND, BFLOAT16_BOUND = 1e-4, 5e-3, 5e-2
#: Number of weights to try. Matching and a two-stage detector's choice of queries are discrete: where two costs or two
#: scores are equal except for the last bits, another order of summation decides differently, and the losses jump. That
#: is rare and happens only with some weights, whereas a wrong result happens with all of them.
TRIES = 3


@dataclass(frozen=True)
class Outcome:
    """Losses and gradients of a model for a batch.

    Attributes:
        losses: All terms, and ``loss``, their sum.
        gradient: (N,) gradient of the sum with respect to all parameters; float64, on the CPU.
    """

    losses: dict[str, float]
    gradient: Tensor


@dataclass(frozen=True)
class Difference:
    """The distance between two outcomes.

    Attributes:
        term: The loss term that differs most.
        loss: Its difference relative to the term, or to a thousandth of the sum if that is larger.
        total: Relative difference of the sum.
        gradient: Norm of the gradients' difference relative to the norm of the gradient.
    """

    term: str
    loss: float
    total: float
    gradient: float


def check_losses(setting: Setting, family: str) -> str:
    """Compare a family's losses and gradients, in float32 and bfloat16, with those of float32 on the CPU.

    Without a GPU, float64 on the CPU takes the place of the GPU's float32, which shows the rounding error of float32.
    The check fails if the differences exceed the bounds with all weights tried.
    """
    cfg = setting.load(family)
    batch = make_padded_batch(cfg, setting.on_gpu)
    exact = 'float32' if setting.on_gpu else 'float64'
    tried = []
    for seed in range(TRIES):
        model = make_model(cfg, seed)
        reference = run(model, batch, torch.device('cpu'), 'float32')
        plain = compare(run(model, batch, device(), exact), reference)
        rounded = compare(run(model, batch, device(), 'bfloat16'), reference)
        tried.append(
            f'{device().type} {exact}: {plain.term} {plain.loss:.1e} (bound {LOSS_BOUND:.0e}), gradients '
            f'{plain.gradient:.1e} ({GRADIENT_BOUND:.0e}); bfloat16: loss {rounded.total:.1e} ({BFLOAT16_BOUND:.0e})')
        if plain.loss <= LOSS_BOUND and plain.gradient <= GRADIENT_BOUND and rounded.total <= BFLOAT16_BOUND:
            return tried[-1] + (f'; weights {seed + 1} of {TRIES}' if seed else '')
    raise Failed(f'with each of {TRIES} weights: ' + ' | '.join(tried))


def make_padded_batch(cfg: Config, large: bool) -> dict:
    """Make a batch of two training images of different size, without augmentation; the second is padded.

    Args:
        cfg: A recipe whose rooms have been rendered.
        large: Whether to use larger images than MiniScanNet's recipes, which suits a GPU.
    """
    sizes = [(384, 288), (320, 240)] if large else [(192, 144), (176, 132)]
    items = []
    for index, size in enumerate(sizes):
        dataset = copy.deepcopy(cfg.train_dataloader.dataset)
        dataset.pipeline = [
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=size, keep_ratio=True), dict(type='PackDetInputs')]
        items.append(DATASETS.build(dataset)[index])
    return pseudo_collate(items)


def make_model(cfg: Config, seed: int) -> nn.Module:
    """Build a model in training mode without randomness in its steps, and with weights that hide no mistake.

    Freshly initialized weights would hide some: branches that are zero pass no gradient on, and offsets of whole pixels
    sample at the kinks of the interpolation, where a last bit decides the gradient.

    Args:
        cfg: The recipe.
        seed: Seed of the weights that replace zeros.
    """
    cfg = copy.deepcopy(cfg)
    cfg.model.data_preprocessor.pop('batch_augments', None)
    if 'dn_cfg' in cfg.model:
        cfg.model.dn_cfg.update(label_noise_scale=1e-12, box_noise_scale=1e-12)  # mmdet refuses 0
    model = build_model(cfg, dropout=False).train()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if hasattr(module, 'drop_prob'):
            module.drop_prob = 0.0
    for param in model.parameters():
        if not param.any():
            nn.init.normal_(param, std=0.05, generator=generator)
    return model


def run(model: nn.Module, batch: dict, where: torch.device, precision: str) -> Outcome:
    """Compute losses and gradients with a copy of a model.

    Args:
        model: A model in float32 on the CPU, which stays unchanged.
        batch: A batch from a data loader.
        where: The device to compute on.
        precision: 'float32' without TF32, 'float64', or 'bfloat16' (autocast).
    """
    model, batch = copy.deepcopy(model).to(where), copy.deepcopy(batch)
    mode = nullcontext()
    if precision == 'float64':
        model, mode = model.double(), _InFloat64()
    elif precision == 'bfloat16':
        mode = torch.autocast(where.type, torch.bfloat16)
    with _without_tf32():
        with mode:
            losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
            total, terms = model.parse_losses(losses)
        total.backward()
    gradients = [param.grad.double().cpu().flatten() for param in model.parameters() if param.grad is not None]
    numbers = {name: float(torch.as_tensor(value).detach()) for name, value in terms.items()}
    return Outcome(numbers, torch.cat(gradients))


def compare(outcome: Outcome, reference: Outcome) -> Difference:
    """Return the distance of an outcome from the reference."""
    floor = 1e-3 * abs(reference.losses['loss'])
    shares = {
        name: abs(outcome.losses[name] - value) / max(abs(value), floor) for name, value in reference.losses.items()}
    term = max(shares, key=lambda name: (shares[name] != shares[name], shares[name]))  # NaN is the worst
    gradient = (outcome.gradient - reference.gradient).norm() / reference.gradient.norm()
    return Difference(term, shares[term], shares['loss'], float(gradient))


class _InFloat64(TorchFunctionMode):
    """Computes in float64 where the code asks for float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: D105
        if func is Tensor.float:
            return args[0].double()
        args = [_wide_type(arg) for arg in args]
        return _widened(func(*args, **{name: _wide_type(value) for name, value in (kwargs or {}).items()}))


def _wide_type(value):
    return torch.float64 if value is torch.float32 else value


def _widened(value):
    if isinstance(value, Tensor) and value.dtype is torch.float32:
        return value.double()
    return type(value)(map(_widened, value)) if type(value) in (list, tuple) else value


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Turn TF32 off, which convolutions use by default: its mantissa has 10 bits, that of float32 has 23."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
