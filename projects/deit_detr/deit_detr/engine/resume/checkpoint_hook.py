"""Checkpoints that survive the machine: saving them, and continuing from them."""

import difflib
import re
import time
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from deit_detr.checkpoints.resumable import check_whole, find_misfits, find_resumable, read_header
from deit_detr.errors import UserError
from deit_detr.files import remove_leftovers, write_text

#: The parts of a config that decide what is learned.
LEARNING = (
    'model', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'custom_hooks',
    'randomness')


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` for machines that fail.

    An old checkpoint is deleted when the new one is on the disk, not before: there is room for one more than
    ``max_keep_ckpts``. The checkpoint of an epoch is written again after its evaluation, with the result.

    ``--resume`` without a value continues from the newest checkpoint that is whole and says which were not; mmengine
    takes the one that was written last, whatever is in it. With none at all the training starts from the beginning, as
    the first start of a job that a cluster will start again has to. What of the config differs from the checkpoint's
    is logged. Another model, or other groups of the optimizer, stop the run.

    Args:
        *args: As for ``CheckpointHook``.
        **kwargs: As for ``CheckpointHook``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._batches_done = 0
        self._holds_evaluation = None

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to continue from, before mmengine does.

        Raises:
            UserError: If there are checkpoints, but none is whole, or if the chosen one does not fit.
        """
        if not isinstance(runner._train_loop, BaseLoop):
            return
        outcome = [None, None]
        if is_main_process():
            folders = [Path(runner.work_dir)]
            if self.out_dir is not None and '://' not in str(self.out_dir):
                folders.append(Path(self.out_dir, folders[0].resolve().name))
            for name in [name for folder in folders for name in remove_leftovers(folder)]:
                runner.logger.info(f'removed {name}, which a killed process had not finished')
            if runner._resume:
                try:
                    outcome[0] = _choose_checkpoint(runner, folders)
                except UserError as error:
                    outcome[1] = str(error)
        broadcast_object_list(outcome)
        checkpoint, error = outcome
        if error:
            raise UserError(error)
        if runner._resume:
            runner._load_from, runner._resume = checkpoint, checkpoint is not None

    def before_train(self, runner: Runner) -> None:
        """Find the folder, and delete old checkpoints late from now on."""
        super().before_train(runner)
        self.file_backend = _DeletingLater(self.file_backend)

    def after_train_iter(self, runner: Runner, batch_idx: int, *args, **kwargs) -> None:
        """Save, if steps are counted, and remember where in the epoch this is."""
        self._batches_done = batch_idx + 1
        super().after_train_iter(runner, batch_idx, *args, **kwargs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save, if epochs are counted."""
        self._batches_done = 0
        super().after_train_epoch(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Save the best checkpoint if this is it, and in any case the epoch's once more."""
        runner.message_hub.update_info('evaluated', runner.epoch)
        super().after_val_epoch(runner, metrics)
        saved = self.last_ckpt is not None and Path(self.last_ckpt).name == self.filename_tmpl.format(runner.epoch)
        if self.by_epoch and saved and self._holds_evaluation != runner.epoch:
            self._save_checkpoint_with_step(runner, runner.epoch, dict(epoch=runner.epoch, iter=runner.iter))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add what continuing in the middle of an epoch needs."""
        checkpoint['meta'].update(
            saved=time.time(), batches_done=self._batches_done, epoch_length=len(runner.train_loop.dataloader))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Tell the loop where in its epoch a resumed training stands."""
        done = checkpoint['meta'].get('batches_done', 0) if runner._resume else 0
        if not done:
            return
        length = checkpoint['meta']['epoch_length']
        if length == len(runner.train_loop.dataloader) and hasattr(runner.train_loop, 'batches_done'):
            runner.train_loop.batches_done = done
            return
        runner.logger.warning(
            f'{done} of {length} batches of the epoch are done, but the epoch starts again: it has '
            f'{len(runner.train_loop.dataloader)} batches now, and train_cfg.type is '
            f'{type(runner.train_loop).__name__}; only the same number and ResumableTrainLoop continue in its middle')

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._holds_evaluation = runner.message_hub.get_info('evaluated')
        if is_main_process():
            # written again: mmengine writes it in place
            write_text(Path(runner.work_dir, 'last_checkpoint'), str(self.last_ckpt))
            self.file_backend.delete()
            for path in Path(runner.work_dir).glob('preempted_iter_*.pth'):
                path.unlink()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        if is_main_process():
            self.file_backend.delete()


class _DeletingLater:
    """A file backend that deletes what it is told to when :meth:`delete` is called."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._paths = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._paths.append(path)

    def delete(self) -> None:
        while self._paths:
            path = self._paths.pop()
            if self._backend.isfile(path):
                self._backend.remove(path)


def _choose_checkpoint(runner: Runner, folders: list[Path]) -> str | None:
    """The checkpoint to continue from; ``None`` if there is nothing yet in these folders."""
    path = runner._load_from
    if path is None:
        path, damaged = find_resumable(folders)
        for reason in damaged.values():
            runner.logger.warning(f'not resumed: {reason}')
        if path is None and damaged:
            raise UserError(
                f'{runner.work_dir}: no checkpoint to resume is whole: {"; ".join(damaged.values())}. Delete them to '
                'start from the beginning')
        if path is None:
            runner.logger.warning(
                f'{runner.work_dir}: no checkpoint to resume, the training starts from the beginning')
            return None
    elif '://' in str(path):
        return path
    else:
        check_whole(path)
    _check_fit(runner, path)
    return str(path)


def _check_fit(runner: Runner, path: str | Path) -> None:
    """Compare model, optimizer and config of a run with those of the checkpoint that it shall continue."""
    checkpoint = read_header(path)
    meta = checkpoint.get('meta', {})
    if 'optimizer' not in checkpoint or 'iter' not in meta:
        raise UserError(
            f'{path}: holds weights, but no training to resume. To start from them: --cfg-options load_from={path}')
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    misfits = find_misfits(model.state_dict(), checkpoint['state_dict'])
    if misfits:
        more = f', and {len(misfits) - 5} more' if len(misfits) > 5 else ''
        raise UserError(
            f'{path}: another model cannot resume this training: {"; ".join(misfits[:5])}{more}. Use the config that '
            f'it was trained with, or start anew from these weights: --cfg-options load_from={path}')
    sizes, saved = (
        [len(group['params']) for group in state['param_groups']]
        for state in (runner.optim_wrapper.state_dict(), checkpoint['optimizer']))
    if sizes != saved:
        raise UserError(
            f'{path}: has an optimizer with groups of {saved} tensors, but optim_wrapper of the config makes groups of '
            f'{sizes}: optim_wrapper.paramwise_cfg has to be as it was')
    differences = find_differences(meta.get('cfg', ''), runner.cfg)
    if differences:
        runner.logger.warning('\n'.join([f'the config is not the one of {path}:', *differences]))


def find_differences(saved: str, cfg: Config) -> list[str]:
    """What of a config decides about learning and differs from a saved one.

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
    """The fields of a config's text -> their lines."""
    parts = re.split(r'^(\w+) = ', text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
