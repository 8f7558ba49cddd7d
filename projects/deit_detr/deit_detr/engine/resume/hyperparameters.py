"""What a resumed optimizer and its schedulers keep of the old config, and how to apply the new one."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmengine.hooks import ParamSchedulerHook
from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.runner import Runner

from deit_detr.engine.optim import optim_wrappers

#: The state of a scheduler that waits for a metric.
WATCHED = {'best', 'num_bad_epochs', 'cooldown_counter', 'last_step'}
#: What a scheduler counts or derives; the rest of its state are settings.
COUNTED = WATCHED | {'_global_step', '_last_value', 'base_values', 'verbose', 'last_epoch'}


@dataclass(frozen=True)
class _Part:
    """An optimizer of a run with its schedulers, beside what a checkpoint holds of them.

    Attributes:
        prefix: '', or of several optimizers the name with a dot before it.
        saved: The state of the optimizer.
        states: The states of its schedulers.
    """

    prefix: str
    wrapper: OptimWrapper
    saved: dict
    schedulers: list[_ParamScheduler]
    states: list[dict]

    def groups(self) -> Iterator[tuple[dict, dict]]:
        """Pair the optimizer's groups with the saved ones. PyTorch refuses another number of them."""
        return zip(self.wrapper.optimizer.param_groups, self.saved['param_groups'], strict=False)


def _parts(runner: Runner, checkpoint: dict) -> Iterator[_Part]:
    for name, wrapper in optim_wrappers(runner.optim_wrapper).items():
        schedulers, states = runner.param_schedulers or [], checkpoint.get('param_schedulers') or []
        saved = checkpoint['optimizer']
        if name:
            schedulers, states = (of_all.get(name) or [] if of_all else [] for of_all in (schedulers, states))
            saved = saved[name]
        yield _Part(f'.{name}' if name else '', wrapper, saved, schedulers, states)


def find_overridden(runner: Runner, checkpoint: dict) -> list[str]:
    """List the settings of optimizer and schedulers that resuming replaces by those of the checkpoint.

    Args:
        runner: With optimizer and schedulers as the config makes them.
        checkpoint: The checkpoint that is about to be resumed.

    Returns:
        list[str]: A line for each setting, with the value that stays and that of the config.
    """
    lines = []
    for part in _parts(runner, checkpoint):
        lines += [*_overridden_groups(part), *_overridden_scale(part, runner, checkpoint), *_overridden_schedule(part)]
    return list(dict.fromkeys(lines))


def _overridden_groups(part: _Part) -> list[str]:
    lines = []
    for group, saved in part.groups():
        own, old = _settings(group), _settings(saved)
        lines += _compare(
            f'optim_wrapper{part.prefix}.optimizer', {key: (old[key], own[key]) for key in own if key in old})
    return lines


def _overridden_scale(part: _Part, runner: Runner, checkpoint: dict) -> list[str]:
    # a scale that grows is a state, so the texts of the configs tell whether its settings changed
    before, now = (re.findall(r'loss_scale=(dict\([^)]*\)|[^,)]+)', re.sub(r'\s', '', text)) for text in (
        checkpoint['meta'].get('cfg', ''), runner.cfg.pretty_text))
    # a constant one is not resumed: mmengine sets it at each step
    constant = getattr(part.wrapper, '_scale_update_param', None) is not None
    if 'loss_scaler' not in part.saved or not hasattr(part.wrapper, 'loss_scaler') or constant or before == now:
        return []
    own, old = part.wrapper.loss_scaler.state_dict(), part.saved['loss_scaler']
    return _compare(f'optim_wrapper{part.prefix}.loss_scale', {
        key: (old[key], own[key]) for key in own if key in old and not key.startswith('_')})


def _overridden_schedule(part: _Part) -> list[str]:
    lines = []
    for index, (scheduler, state) in enumerate(zip(part.schedulers, part.states, strict=False)):
        values, field = plain_state(scheduler.state_dict()), f'param_scheduler{part.prefix}.{index}'
        if values.keys() != plain_state(state).keys():
            lines.append(f'{field}: is of another type now and gets those settings of the old one that it shares')
        lines += _compare(field, {
            key: (state[key], values[key]) for key in values if key in state and key not in COUNTED})
    if len(part.schedulers) != len(part.states):
        lines.append(
            f'param_scheduler{part.prefix}: {len(part.states)} are saved, the config has {len(part.schedulers)}: '
            'additional ones count from here')
    return lines


def plain_state(state: dict) -> dict:
    """Return the state of a scheduler without the methods that ``OneCycleLR`` keeps in it, which would be code."""
    return {key: value for key, value in state.items() if not callable(value)}


def _settings(group: dict) -> dict:
    """Return the settings of a parameter group; of a scheduled value the one that its schedule starts from counts."""
    settings = {
        key.removeprefix('initial_'): value for key, value in group.items()
        if key != 'params' and f'initial_{key}' not in group}
    if 'betas' in group and 'initial_momentum' in group:
        settings['betas'] = group['betas'][1:]  # the first one is the scheduled momentum
    return settings


def _compare(field: str, settings: dict[str, tuple]) -> list[str]:
    pairs = {key: [_plain(value) for value in pair] for key, pair in settings.items()}
    return [
        f'{field}: {key} stays {saved}, the config has {own}' for key, (saved, own) in pairs.items() if saved != own]


def _plain(value: Any) -> Any:
    if isinstance(value, Counter):
        return sorted(value.elements())
    return list(value) if isinstance(value, tuple) else value


def apply_config(runner: Runner, checkpoint: dict, batches_done: int) -> list[str]:
    """Replace the settings in a checkpoint by the config's, as if the training had begun with them.

    The optimizer keeps its moments. If the schedule changed, the schedulers are advanced to the step of the checkpoint.
    ``ReduceOnPlateau`` then keeps its best value and the number of evaluations that it has waited, but its past
    reductions of the rate cannot be repeated.

    Args:
        runner: With optimizer and schedulers as the config makes them. They are advanced.
        checkpoint: The checkpoint that is about to be resumed, changed in place.
        batches_done: Batches of the running epoch that are done.

    Returns:
        list[str]: What of the old state is lost.
    """
    parts = [(part, _schedule_changed(part), bool(_overridden_scale(part, runner, checkpoint)))
             for part in _parts(runner, checkpoint)]
    _advance(runner, checkpoint['meta']['iter'], checkpoint['meta']['epoch'], batches_done)
    lost, optimizers, schedules = [], {}, {}
    for part, new_schedule, new_scale in parts:
        optimizers[part.prefix[1:]] = optimizer = dict(part.saved)
        optimizer['param_groups'] = [_merged(saved, group, new_schedule) for group, saved in part.groups()]
        if 'base_param_settings' in optimizer:  # the rate that the log shows
            optimizer['base_param_settings'] = _merged(
                optimizer['base_param_settings'], part.wrapper.base_param_settings, new_schedule)
        if new_scale:
            optimizer['loss_scaler'] = part.wrapper.loss_scaler.state_dict()
        schedules[part.prefix[1:]] = part.states
        if new_schedule:
            schedules[part.prefix[1:]], dropped = _new_states(part)
            lost += dropped
    checkpoint['optimizer'] = optimizers.get('', optimizers)
    if runner.param_schedulers:
        checkpoint['param_schedulers'] = schedules.get('', schedules)
    return lost


def _schedule_changed(part: _Part) -> bool:
    scheduled = {scheduler.param_name for scheduler in part.schedulers} | {'betas'}
    return bool(_overridden_schedule(part)) or any(
        f': {name} stays ' in line for line in _overridden_groups(part) for name in scheduled)


def _merged(saved: dict, group: dict, new_schedule: bool) -> dict:
    """Return a saved parameter group with the settings of the config's; scheduled ones only if the schedule is new."""
    scheduled = {name for key in group if key.startswith('initial_') for name in (key, key.removeprefix('initial_'))}
    stay = {'params'} if new_schedule else {'params', 'betas'} | scheduled
    return saved | {key: value for key, value in group.items() if key not in stay}


def _new_states(part: _Part) -> tuple[list[dict], list[str]]:
    """Return the states of advanced schedulers, and what is lost of the old ones."""
    states, lost = [plain_state(scheduler.state_dict()) for scheduler in part.schedulers], []
    for index, (state, scheduler) in enumerate(zip(states, part.schedulers, strict=True)):
        if getattr(scheduler, 'need_val_args', False):
            old = part.states[index] if index < len(part.states) else {}
            same = all(old.get(key) == state[key] for key in ('monitor', 'rule'))
            state.update({key: old[key] for key in WATCHED} if same else {})
            lost.append(
                f'param_scheduler{part.prefix}.{index} ({type(scheduler).__name__}): its reductions of the rate so far '
                'are undone' + ('' if same else '; its best value is dropped, because monitor or rule changed'))
    return states, lost


def _advance(runner: Runner, steps: int, epochs: int, batches_done: int) -> None:
    length = (steps - batches_done) // epochs if epochs else 0
    hook = ParamSchedulerHook()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # the optimizer makes no step
        for epoch in range(epochs + 1):
            for step in range(length if epoch < epochs else steps - epochs * length):
                hook.after_train_iter(runner, step)
            if epoch < epochs:
                hook.after_train_epoch(runner)
