"""Save a checkpoint and exit when the cluster sends a signal."""

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce, barrier, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import BaseLoop, Runner

from deit_detr.command_line import REQUEUE_STATUS
from deit_detr.engine.resume.progress import preempted_name

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Save and exit with status 75 after a SIGTERM or SIGUSR1, in the middle of an epoch or of an evaluation.

    Several processes may get the signal at different times, or only one of them may get it: every ``interval`` steps
    they agree by an all-reduce of one number, which makes the host wait for its device. A single process checks after
    each step. A second signal ends a process at once, unless it comes within a second: launchers pass on a signal that
    the process already has.

    The checkpoint is ``preempted_iter_N.pth`` in the work folder, until a regular one is written; ``--resume`` finds
    it.

    Args:
        interval (int): Steps between two checks of several processes.
    """

    priority = 'LOWEST'  # what the other hooks do after a step is part of the step

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval
        self._asked_at = None
        self._handlers = {}
        self._eval_checks = 0

    def before_run(self, runner: Runner) -> None:
        """Catch the signals, and keep the data loading workers alive: clusters signal all processes of a job."""
        if not isinstance(runner._train_loop, BaseLoop):
            return
        for loop in (runner._train_loop, runner._val_loop):
            if isinstance(loop, BaseLoop):
                loop.dataloader.worker_init_fn = partial(_obey_parent_alone, loop.dataloader.worker_init_fn)
        self._handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def after_train(self, runner: Runner) -> None:
        """Restore the signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Exit after this step if asked to.

        Raises:
            SystemExit: With status 75, after the checkpoint is written.
        """
        step = runner.iter + 1
        whole = step % getattr(runner.optim_wrapper, '_accumulative_counts', 1) == 0  # no half-summed gradient is saved
        if whole and self._agreed(step % self.interval == 0):
            self._leave(runner, step)

    def before_val_epoch(self, runner: Runner) -> None:
        """Count how often all processes can check: some may have one batch fewer."""
        if self._handlers:
            checks = torch.tensor(len(runner.val_loop.dataloader) // self.interval)
            all_reduce(checks, 'min')
            self._eval_checks = int(checks)

    def after_val_iter(self, runner: Runner, batch_idx: int, *args, **kwargs) -> None:
        """Exit in the middle of an evaluation if asked to; it is repeated when the training is resumed.

        Raises:
            SystemExit: With status 75, after the checkpoint is written.
        """
        checks, rest = divmod(batch_idx + 1, self.interval)
        if self._handlers and self._agreed(rest == 0 and checks <= self._eval_checks):
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # during an evaluation the model holds the averaged weights
            self._leave(runner, runner.iter)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()
        elif time.monotonic() > self._asked_at + 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _agreed(self, all_check: bool) -> bool:
        """Return whether any process was asked to exit. All processes have to pass ``all_check`` at the same steps."""
        asked = self._asked_at is not None
        if get_world_size() == 1:
            return asked
        if not all_check:
            return False
        flag = torch.tensor(int(asked))
        all_reduce(flag, 'max')
        return bool(flag)

    def _leave(self, runner: Runner, step: int) -> None:
        name = preempted_name(step)
        runner.save_checkpoint(runner.work_dir, name, meta=dict(epoch=runner.epoch, iter=step), by_epoch=False)
        barrier()  # a launcher ends the other processes as soon as one exits
        runner.logger.warning(
            f'asked to stop: saved {name} after iteration {step}; exit status {REQUEUE_STATUS}. --resume continues')
        raise SystemExit(REQUEUE_STATUS)


def _obey_parent_alone(worker_init_fn: Callable | None, worker_id: int) -> None:
    """Start a worker that only its parent stops: a cluster signals workers too, and training fails when one dies."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_wait_for_parent, daemon=True).start()
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def _wait_for_parent() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)
