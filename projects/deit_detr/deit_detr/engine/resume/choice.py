"""Which checkpoint a training continues from, and whether it can."""

import difflib
import re
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint

from deit_detr.checkpoints.fit import ITS_CONFIG, check_fit
from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file, read_header
from deit_detr.engine.resume.progress import Progress
from deit_detr.errors import UserError

#: The parts of a config that decide what is learned.
LEARNING = (
    'model', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'custom_hooks',
    'randomness')


def resume_newest(cfg: Config) -> None:
    """Let a training continue from its newest checkpoint, and start from ``load_from`` while there is none.

    mmengine resumes from ``load_from`` if it is set, and mmdet's ``--resume`` therefore clears it.
    ``SafeCheckpointHook`` knows ``resume='auto'`` and decides when the run starts. For another hook, the checkpoint
    that mmengine finds decides here.

    Args:
        cfg: The config of the run with its ``work_dir``, changed in place.
    """
    cfg.resume = 'auto'
    if 'SafeCheckpointHook' not in str((cfg.get('default_hooks') or {}).get('checkpoint')):
        cfg.resume = find_latest_checkpoint(cfg.work_dir) is not None
        if cfg.resume:
            cfg.load_from = None


def choose_checkpoint(runner: Runner, folders: list[Path]) -> str | None:
    """Choose and check the checkpoint that a run with ``resume=True`` continues from.

    It is read once: mmengine's load, which comes next, gets it from memory.

    Args:
        runner: Its ``load_from`` names the checkpoint; without one, or with ``resume='auto'``, the newest whole one is
            taken.
        folders: Where to search for it.

    Returns:
        str | None: Path or address. None if the folders hold no checkpoint yet.

    Raises:
        UserError: If there are checkpoints, but none is whole, or if the chosen one does not fit the run.
    """
    path, start = (None, runner._load_from) if runner._resume == 'auto' else (runner._load_from, None)
    if path is None:
        path, damaged = find_resumable(folders)
        for reason in damaged.values():
            runner.logger.warning(f'not resumed: {reason}')
        if path is None and damaged:
            raise UserError(
                f'{runner.work_dir}: no checkpoint to resume is whole: {"; ".join(damaged.values())}. Delete them to '
                'start from the beginning')
        if path is None:
            beginning = f'with the weights of load_from={start}' if start else 'from the beginning'
            dropped = None if start else _dropped_load_from(runner.cfg)
            if dropped:
                beginning += (
                    f', without load_from={dropped}, which the script has cleared, as the train.py of mmdet does with '
                    '--resume. tools/train.py --resume loads it; or leave out --resume at the first start')
            runner.logger.warning(f'{runner.work_dir}: no checkpoint to resume, the training starts {beginning}')
            return None
        if start:
            runner.logger.info(f'{path}: the training continues; load_from={start} was for its first start')
    elif '://' in str(path):
        return path
    _check_run(runner, path, load_checkpoint_file(path, again=True))
    return str(path)


def _dropped_load_from(cfg: Config) -> str | None:
    """Return the ``load_from`` of the command line or the config file, where the run's config has none."""
    given = [text.removeprefix('load_from=') for text in sys.argv if text.startswith('load_from=')]
    try:
        return given[-1] if given else Config.fromfile(cfg.filename).get('load_from')
    except Exception:  # a config without a file, or one that has changed since
        return None


def find_resumable(folders: list[Path]) -> tuple[Path | None, dict[Path, str]]:
    """Find the newest whole checkpoint that a training can continue from.

    Only the headers of the others are read. The one found stays in memory for the next load, see
    :func:`~deit_detr.checkpoints.safe_loading.load_checkpoint_file`.

    Args:
        folders: Where to search. Weights without an optimizer, as in ``best_*.pth``, are skipped.

    Returns:
        tuple: Its path, or None if there is no whole one; and the damaged ones that are newer, each with what is wrong.
    """
    damaged, found = {}, []
    for path in sorted({path.resolve() for folder in folders for path in folder.glob('*.pth')}):
        try:
            progress = Progress.read(read_header(path))
        except UserError as error:
            damaged[path] = str(error)
            continue
        if progress:
            saved = path.stat().st_mtime if progress.saved is None else progress.saved
            found.append((saved, progress.step, path))
    for _, _, path in sorted(found, reverse=True):
        try:
            load_checkpoint_file(path, again=True)
        except UserError as error:
            damaged[path] = str(error)
        else:
            return path, damaged
    return None, damaged


def _check_run(runner: Runner, path: str | Path, checkpoint: dict) -> None:
    """Compare model, optimizer and config of a run with those of the checkpoint that it continues."""
    start = f'start a new training from these weights: --cfg-options load_from={path}'
    if Progress.read(checkpoint) is None:
        raise UserError(f'{path}: holds weights, but no training to resume. Leave out --resume and {start}')
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    check_fit(model.state_dict(), find_state_dict(checkpoint, path), path, remedy=f'{ITS_CONFIG}, or {start}')
    sizes, saved = map(_group_sizes, (runner.optim_wrapper.state_dict(), checkpoint['optimizer']))
    if sizes != saved:
        raise UserError(
            f'{path}: has an optimizer with groups of {saved} tensors, but optim_wrapper of the config makes groups of '
            f'{sizes}: optim_wrapper.paramwise_cfg has to be as it was')
    differences = find_differences(checkpoint['meta'].get('cfg', ''), runner.cfg)
    if differences:
        runner.logger.warning('\n'.join([f'the config is not the one of {path}:', *differences]))


def _group_sizes(state: dict) -> list | dict:
    """Return the number of tensors in each group of an optimizer, or of several optimizers by name."""
    if 'param_groups' in state:
        return [len(group['params']) for group in state['param_groups']]
    return {name: _group_sizes(of_one) for name, of_one in state.items()}


def find_differences(saved: str, cfg: Config) -> list[str]:
    """List what differs between a saved config and a run's, of the fields that decide what is learned.

    Args:
        saved: The text in a checkpoint. It is compared as text: a config is a program.
        cfg: The config of this run.

    Returns:
        list[str]: Lines that begin with the field, and ``-`` for the saved or ``+`` for the new value.
    """
    before, after = _fields(saved), _fields(cfg.pretty_text)
    lines = []
    for field in LEARNING:
        pair = [part.get(field, '').splitlines() for part in (before, after)]
        changed = [line for line in difflib.ndiff(*pair) if line[:2] in ('- ', '+ ')]
        lines += [f'{field}: {line[0]} {line[1:].strip()}' for line in changed]
    return lines


def _fields(text: str) -> dict[str, str]:
    """Split a config's text into its fields and their lines."""
    parts = re.split(r'^(\w+) = ', text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
