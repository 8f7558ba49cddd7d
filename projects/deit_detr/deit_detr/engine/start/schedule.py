"""Draw the learning rates of a training, and name what its schedule never reaches."""

import copy
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.optim.scheduler.param_scheduler import (
    ConstantParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ReduceOnPlateauParamScheduler,
    StepParamScheduler,
    _ParamScheduler,
)
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn
from torch.utils.data import DataLoader

from deit_detr.datasets.augmentation import augmentations
from deit_detr.engine.batch import images_per_update
from deit_detr.engine.start.findings import OK, UNKNOWN, WARN
from deit_detr.errors import UserError

MOST_STEPS = 100_000  # less than a second
MOST_POINTS = 12
#: A line between two points may be off by this share.
TOLERANCE = 0.1
#: Between two steps, a larger share is a jump.
JUMP = 0.3


def check_schedule(cfg: ConfigDict, rates: list[float] | None, loader: DataLoader) -> tuple[str, str]:
    """Run mmengine's schedulers on a parameter without a model, over the whole training.

    Args:
        cfg: The config of the run.
        rates: Learning rate of each parameter group before any schedule, ``auto_scale_lr`` included; None if there are
            several optimizers.
        loader: The training data.

    Returns:
        tuple[str, str]: The status is ``WARN`` if a milestone is never reached, a warm-up never ends, a scheduler
        begins after the end, or the augmentation never stops. The message says so, and gives the highest rate of all
        groups over the training.

    Raises:
        UserError: If a scheduler cannot be built; names its field.
    """
    if rates is None:
        return UNKNOWN, 'not drawn for several optimizers'
    epoch_length = len(loader)
    train, fields = cfg.train_cfg, cfg.get('param_scheduler') or []
    fields = [fields] if isinstance(fields, dict) and 'type' in fields else fields
    epochs, length = (1, train['max_iters']) if 'max_iters' in train else (train.get('max_epochs'), epoch_length)
    if not epochs or not length or not all(isinstance(field, dict) for field in fields):
        return UNKNOWN, 'not drawn: needs train_cfg.max_epochs or max_iters, and param_scheduler as a list of dicts'
    optimizer = torch.optim.SGD([dict(params=[nn.Parameter(torch.zeros(1))], lr=rate) for rate in rates], lr=max(rates))
    schedulers = [
        _build(number, field, OptimWrapper(optimizer), epochs, length, epoch_length)
        for number, field in enumerate(fields)]
    never = [
        f'param_scheduler.{number} ({type(scheduler).__name__}){problem}'
        for number, (scheduler, field) in enumerate(zip(schedulers, fields, strict=True))
        for problem in _never(scheduler, epochs, epochs * length, 'max_iters' in train,
                              epoch_length if field.get('convert_to_iter_based') and not scheduler.by_epoch else 1)]
    steps, values = _draw(schedulers, optimizer.param_groups[int(np.argmax(rates))], epochs, length)
    ends = dict(end for step in augmentations(getattr(loader, 'dataset', None)) for end in step.ends())
    loop = getattr(train.get('type'), '__name__', train.get('type'))
    if ends and loop not in ('ResumableTrainLoop', 'BudgetTrainLoop'):
        never.append('augment never stops: only ResumableTrainLoop as train_cfg.type ends it')
    drawn = _describe(steps, values, 0 if 'max_iters' in train else length)
    last = max((scheduler.end for scheduler in schedulers if not scheduler.by_epoch), default=0)
    if min(last, epochs * length) > MOST_STEPS:
        drawn += f' (drawn for {steps[-1]} of {epochs * length} iterations)'
    if any(isinstance(scheduler, ReduceOnPlateauParamScheduler) for scheduler in schedulers):
        drawn += '; ReduceOnPlateau may lower it'
    if min(rates) < max(rates):
        drawn += f'; parameter groups have {min(rates) / max(rates):.3g} to 1 times that'
    if (cfg.get('auto_scale_lr') or {}).get('enable'):
        drawn += f'; scaled by auto_scale_lr for {images_per_update(cfg)} images per update'
    drawn += ''.join(f'; {what} until {sum(epoch / epochs < end for epoch in range(epochs))} epochs'
                     for what, end in ends.items())
    return WARN if never else OK, '; '.join([*never, drawn])


def rates_in_force(wrapper: OptimWrapper) -> list[float] | None:
    """Return the learning rate of each parameter group before any schedule; None for several optimizers."""
    if isinstance(wrapper, OptimWrapperDict):
        return None
    return [group.get('initial_lr', group['lr']) for group in wrapper.optimizer.param_groups]


def starting_rates(model: nn.Module, cfg: ConfigDict) -> list[float] | None:
    """Return what :func:`rates_in_force` does, for a config: with the ``auto_scale_lr`` of ``tools/train.py``."""
    if 'optimizer' not in cfg.optim_wrapper:
        return None
    own = {key: copy.deepcopy(cfg.optim_wrapper[key]) for key in ('constructor', 'optimizer', 'paramwise_cfg')
           if key in cfg.optim_wrapper}
    wrapper = build_optim_wrapper(model, ConfigDict(own, type='OptimWrapper'))
    scaling = cfg.get('auto_scale_lr') or {}
    factor = images_per_update(cfg) / scaling['base_batch_size'] if scaling.get('enable') else 1
    return [group['lr'] * factor for group in wrapper.optimizer.param_groups]


def _build(
    number: int, field: ConfigDict, wrapper: OptimWrapper, epochs: int, length: int, epoch_length: int,
) -> _ParamScheduler:
    """Build a scheduler as mmengine's runner does."""
    field = copy.deepcopy(field)
    if epochs * length > MOST_STEPS:
        field.pop('convert_to_iter_based', None)  # the same curve, a value for each epoch
    field.setdefault('end', epochs if field.get('by_epoch', True) else epochs * length)
    try:
        return PARAM_SCHEDULERS.build(field, default_args=dict(optimizer=wrapper, epoch_length=epoch_length))
    except Exception as error:
        raise UserError(f'param_scheduler.{number} ({field.get("type")}) cannot be built: {error}') from error


def _never(
    scheduler: _ParamScheduler, epochs: int, iterations: int, by_iterations: bool, unit_length: int,
) -> Iterator[str]:
    """Yield what a scheduler never does. All its numbers are shown in the unit of the config."""
    unit, total = ('epoch', epochs) if scheduler.by_epoch else ('iteration', iterations)
    if by_iterations and scheduler.by_epoch:
        yield ' counts epochs, and a training with train_cfg.max_iters has only one: set its by_epoch=False'
        return
    if unit_length > 1:
        unit, total = 'epoch', epochs
    begin, last = scheduler.begin / unit_length, min(scheduler.end / unit_length, total)
    if begin >= total:
        yield f' begins at {unit} {begin:g}, but the training ends at {unit} {total}: lower its begin'
        return
    points = {}
    if isinstance(scheduler, MultiStepParamScheduler):
        points = {'milestones': [milestone / unit_length for milestone in sorted(scheduler.milestones)]}
    elif isinstance(scheduler, StepParamScheduler):
        points = {'step_size': [scheduler.step_size / unit_length]}
    for name, values in points.items():
        late = [value for value in values if begin + value >= last]
        if late:
            of = 'the training' if last == total else 'the scheduler'
            shift = f': counted from begin={begin:g}, that is {unit} {_numbers(begin + value for value in late)}' * (
                begin > 0)
            yield f' never reaches {name} {_numbers(late)}{shift}; {of} ends at {unit} {last:g}: lower {name}' + (
                '' if last == total else ' or raise its end')
    rises = (isinstance(scheduler, LinearParamScheduler) and scheduler.start_factor < scheduler.end_factor
             or isinstance(scheduler, ConstantParamScheduler) and scheduler.factor < 1
             or 'Warmup' in type(scheduler).__name__)
    if rises and scheduler.end / unit_length >= total:
        yield f' warms up until {unit} {scheduler.end / unit_length:g}, the training ends at {unit} {total}: set its ' \
              'end to the length of the warm-up'


def _numbers(values) -> str:
    return ', '.join(f'{value:g}' for value in values)


def _draw(
    schedulers: list[_ParamScheduler], group: dict, epochs: int, length: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps after which the rate may change, in iterations, and the rate from there on."""
    of_steps = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    of_epochs = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    last = max((scheduler.end for scheduler in of_steps), default=0)
    points = {0: group['lr']}
    for epoch in range(epochs):
        start = epoch * length
        for step in range(start, min(start + length, last, MOST_STEPS)):
            for scheduler in of_steps:
                scheduler.step()
            points[step + 1] = group['lr']
        if min(start + length, last) > MOST_STEPS:
            break
        for scheduler in of_epochs:
            scheduler.step()
        points[start + length] = group['lr']
    points.pop(epochs * length, None)  # after the last step
    return np.array(list(points)), np.array(list(points.values()))


def _describe(steps: np.ndarray, values: np.ndarray, length: int) -> str:
    """Describe a curve by its turning points.

    Args:
        steps: In iterations, increasing.
        values: The rate from each on.
        length: Iterations in an epoch; 0 without epochs.
    """
    kept = {0, len(steps) - 1}
    bends = np.abs(np.diff(values, 2, prepend=values[0], append=values[-1]))
    while len(kept) < MOST_POINTS:
        chosen = sorted(kept)
        error = np.abs(np.interp(steps, steps[chosen], values[chosen]) - values) / (
            np.abs(values) + 0.01 * np.abs(values).max() + 1e-30)
        if error.max() < TOLERANCE:
            break
        worst = int(np.where(error > 0.98 * error.max(), bends, -1).argmax())
        kept.add(worst)
        for side in {max(worst - 1, 0), min(worst + 1, len(steps) - 1)}:  # of a jump
            if abs(values[side] - values[worst]) > JUMP * np.abs(values[[side, worst]]).max():
                kept.add(side)
    parts = [f'lr {values[0]:.3g} at the start']
    for before, after in pairwise(sorted(kept)):
        if f'{values[before]:.3g}' == f'{values[after]:.3g}':
            continue
        flat = before + int(np.isclose(values[before:after], values[before], rtol=1e-9, atol=0).cumprod().sum()) - 1
        if flat > before + 1:
            parts.append(f'stays until {_place(steps[flat], length)}')
        place = _place(steps[after], length)
        verb = '' if after == before + 1 else 'rises to ' if values[after] > values[before] else 'falls to '
        parts.append(f'{verb}{values[after]:.3g} after {place}')
    return ', '.join(parts)


def _place(step: int, length: int) -> str:
    return f'{step // length} epochs' if length and step % length == 0 else f'{step} iterations'
