"""What a resumed optimizer and its schedulers keep of the old config, and how to apply the new one."""

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mmengine.hooks import ParamSchedulerHook
from mmengine.runner import Runner

#: What a scheduler counts or derives; the rest of its state are settings.
COUNTED = {
    'last_step', '_global_step', '_last_value', 'base_values', 'verbose', 'best', 'num_bad_epochs',
    'cooldown_counter', 'last_epoch'}


def find_overridden(runner: Runner, checkpoint: dict) -> list[str]:
    """List the settings of optimizer and schedulers that resuming replaces by those of the checkpoint.

    Args:
        runner: With optimizer and schedulers as the config makes them.
        checkpoint: The checkpoint that is about to be resumed.

    Returns:
        list[str]: A line for each setting, with the value that stays and that of the config.
    """
    lines = []
    for group, saved in _groups(runner, checkpoint):
        # of a scheduled value the one that the schedule starts from counts
        settings = {
            key.removeprefix('initial_'): (saved[key], group[key]) for key in group
            if key in saved and key != 'params' and not {f'initial_{key}'} <= group.keys() & saved.keys()}
        lines += _compare('optim_wrapper.optimizer', settings)
    own, states = runner.param_schedulers or [], checkpoint.get('param_schedulers') or []
    if isinstance(own, list) and isinstance(states, list):
        for index, (scheduler, state) in enumerate(zip(own, states, strict=False)):
            values, field = scheduler.state_dict(), f'param_scheduler.{index}'
            if values.keys() != state.keys():
                lines.append(f'{field}: is of another type now and gets those settings of the old one that it shares')
            lines += _compare(field, {
                key: (state[key], values[key]) for key in values if key in state and key not in COUNTED})
        if len(own) != len(states):
            lines.append(
                f'param_scheduler: {len(states)} are saved, the config has {len(own)}: additional ones count from here')
    return list(dict.fromkeys(lines))


def _groups(runner: Runner, checkpoint: dict) -> Iterator[tuple[dict, dict]]:
    """Pair the optimizer's groups with the saved ones. PyTorch refuses another number of them."""
    return zip(runner.optim_wrapper.optimizer.param_groups, checkpoint['optimizer']['param_groups'], strict=False)


def _compare(field: str, settings: dict[str, tuple]) -> list[str]:
    pairs = {key: [_plain(value) for value in pair] for key, pair in settings.items()}
    return [
        f'{field}: {key} stays {saved}, the config has {own}' for key, (saved, own) in pairs.items() if saved != own]


def _plain(value: Any) -> Any:
    if isinstance(value, Counter):
        return sorted(value.elements())
    return list(value) if isinstance(value, tuple) else value


def apply_config(runner: Runner, checkpoint: dict, batches_done: int) -> None:
    """Replace the settings in a checkpoint by the config's, as if the training had begun with them.

    The optimizer keeps its moments. The schedulers are advanced to the step of the checkpoint; ``ReduceOnPlateau``,
    which would need the past metrics, starts anew.

    Args:
        runner: With optimizer and schedulers as the config makes them. They are advanced.
        checkpoint: The checkpoint that is about to be resumed, changed in place.
        batches_done: Batches of the running epoch that are done.
    """
    steps, epochs = checkpoint['meta']['iter'], checkpoint['meta']['epoch']
    length = (steps - batches_done) // epochs if epochs else 0
    hook = ParamSchedulerHook()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # the optimizer makes no step
        for epoch in range(epochs + 1):
            for step in range(length if epoch < epochs else steps - epochs * length):
                hook.after_train_iter(runner, step)
            if epoch < epochs:
                hook.after_train_epoch(runner)
    optimizer = checkpoint['optimizer'] = dict(checkpoint['optimizer'])
    optimizer['param_groups'] = [
        saved | {key: value for key, value in group.items() if key != 'params'}
        for group, saved in _groups(runner, checkpoint)]
    if 'base_param_settings' in optimizer:  # the rate that the log shows
        optimizer['base_param_settings'] = runner.optim_wrapper.base_param_settings
    if isinstance(runner.param_schedulers, list):
        checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in runner.param_schedulers]
