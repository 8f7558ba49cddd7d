"""Checkpoints that survive the failure of a machine: a hook that saves them and resumes from them."""

from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner

from deit_detr.engine.resume.choice import choose_checkpoint
from deit_detr.engine.resume.hyperparameters import apply_config, find_overridden, plain_state
from deit_detr.engine.resume.progress import Progress, evaluated_epoch, mark_evaluated, remove_preempted
from deit_detr.engine.resume.train_loop import ResumableTrainLoop
from deit_detr.errors import UserError
from deit_detr.files import remove_leftovers, write_text


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` for machines that fail.

    An old checkpoint is deleted after the new one is on the disk, not before: there has to be room for one more than
    ``max_keep_ckpts``. The checkpoint of an epoch is written again after its evaluation, with the result.

    ``--resume`` without a value continues from the newest whole checkpoint and names the damaged ones; mmengine takes
    the one that was written last, whatever is in it. If there is none, the training starts from ``load_from`` or the
    beginning, as the first start of a job that a cluster restarts has to. What differs between the config and the
    checkpoint's is logged. A model that does not fit the checkpoint, or other groups of the optimizer, stop the run.

    Learning rate, weight decay and the other settings of optimizer and schedulers are part of the resumed state.
    Where the config has others, the log says which stay.

    Args:
        *args: As for ``CheckpointHook``.
        resume_hyperparameters (bool): False takes those settings from the config, as if the training had begun with
            them.
        **kwargs: As for ``CheckpointHook``.
    """

    def __init__(self, *args, resume_hyperparameters: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.resume_hyperparameters = resume_hyperparameters
        self._progress = Progress()
        self._holds_evaluation = None

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to continue from, before mmengine does.

        Raises:
            UserError: In all processes; see :func:`~deit_detr.engine.resume.choice.choose_checkpoint`.
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
                    outcome[0] = choose_checkpoint(runner, folders)
                except UserError as error:
                    outcome[1] = str(error)
        broadcast_object_list(outcome)
        checkpoint, error = outcome
        if error:
            raise UserError(error)
        if runner._resume:
            runner._load_from, runner._resume = checkpoint or runner._load_from, checkpoint is not None

    def before_train(self, runner: Runner) -> None:
        """Find the folder, and from now on delete an old checkpoint only after the new one is written."""
        super().before_train(runner)
        self.file_backend = _DeletingLater(self.file_backend)
        self._progress.epoch_length = len(runner.train_loop.dataloader)

    def after_train_iter(self, runner: Runner, batch_idx: int, *args, **kwargs) -> None:
        """Save a checkpoint if the interval counts steps."""
        self._progress.batches_done = batch_idx + 1
        super().after_train_iter(runner, batch_idx, *args, **kwargs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save a checkpoint if the interval counts epochs."""
        self._progress.batches_done = 0
        super().after_train_epoch(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Save the best checkpoint if AP improved; save the epoch's again, with the result."""
        mark_evaluated(runner)
        super().after_val_epoch(runner, metrics)
        saved = self.last_ckpt is not None and Path(self.last_ckpt).name == self.filename_tmpl.format(runner.epoch)
        if self.by_epoch and saved and self._holds_evaluation != runner.epoch:
            self._save_checkpoint_with_step(runner, runner.epoch, dict(epoch=runner.epoch, iter=runner.iter))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add what continuing in the middle of an epoch needs, and remove the methods of ``OneCycleLR``."""
        self._progress.write(checkpoint)
        states = checkpoint.get('param_schedulers') or []
        for of_one in states.values() if isinstance(states, dict) else [states]:
            of_one[:] = map(plain_state, of_one)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the settings of optimizer and schedulers; tell the loop how many batches of the epoch to skip."""
        saved = Progress.read(checkpoint) if runner._resume and isinstance(runner._train_loop, BaseLoop) else None
        if saved is None:
            return
        self._compare_hyperparameters(runner, checkpoint, saved)
        if 'ema_state_dict' in checkpoint and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
            _take_plain_weights(checkpoint)
            runner.logger.warning(
                f'{runner._load_from}: the training continues with its plain weights and without a moving average, '
                'because no EMAHook is in the config')
        loop = runner.train_loop
        if not saved.batches_done or isinstance(loop, IterBasedTrainLoop):  # which skips the batches itself
            return
        if isinstance(loop, ResumableTrainLoop) and saved.epoch_length == len(loop.dataloader):
            loop.batches_done = saved.batches_done
            return
        runner.logger.warning(
            f'{saved.batches_done} of {saved.epoch_length} batches of the epoch are done, but the epoch starts again: '
            f'it has {len(loop.dataloader)} batches now, and train_cfg.type is {type(loop).__name__}. Continuing in '
            'its middle needs the same number and ResumableTrainLoop')

    def _compare_hyperparameters(self, runner: Runner, checkpoint: dict, saved: Progress) -> None:
        overridden = find_overridden(runner, checkpoint)
        if not overridden:
            return
        if self.resume_hyperparameters:
            runner.logger.warning('\n'.join([
                f'{runner._load_from}: these settings stay as they were saved, although the config has others. '
                'default_hooks.checkpoint.resume_hyperparameters=False takes them from the config:', *overridden]))
            return
        lost = apply_config(runner, checkpoint, saved.batches_done)
        runner.logger.info('; '.join([
            f'resume_hyperparameters=False: optimizer and schedulers have the settings of the config, at step '
            f'{saved.step}, not those of {runner._load_from}', *lost]))

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._holds_evaluation = evaluated_epoch(runner)
        if is_main_process():
            # written again: mmengine writes it in place
            write_text(Path(runner.work_dir, 'last_checkpoint'), str(self.last_ckpt))
            self.file_backend.delete()
            remove_preempted(runner.work_dir)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        if is_main_process():
            self.file_backend.delete()


def _take_plain_weights(checkpoint: dict) -> None:
    """Replace the moving average in a checkpoint of ``EMAHook``, which has the plain weights where the average was."""
    average = checkpoint.pop('ema_state_dict')
    checkpoint['state_dict'].update({
        name.removeprefix('module.'): value for name, value in average.items() if name.startswith('module.')})


class _DeletingLater:
    """A file backend that keeps the files it is told to remove until :meth:`delete` is called."""

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
