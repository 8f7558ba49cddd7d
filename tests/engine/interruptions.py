"""A hook that does to a training what a cluster does, at a known step; a config imports it by its path."""

import os
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class InterruptHook(Hook):
    """Send this process a signal.

    Args:
        step: Of the training, counting from 1; or of the evaluation, if ``when`` says so.
        number: The signal's name.
        rank: The process that gets it.
        when: 'train', 'val', or 'write': just before the file of the checkpoint after this step gets its name.
        group: Whether all processes of the group get it, data loading workers too.
    """

    priority = 'VERY_HIGH'

    def __init__(self, step: int, number: str, rank: int = 0, when: str = 'train',
                 group: bool = False) -> None:
        self.step, self.signal, self.when, self.group = step, signal.Signals[number], when, group
        self.here = int(os.environ.get('RANK', 0)) == rank

    def _send(self, *args) -> None:
        os.kill(0 if self.group else os.getpid(), self.signal)

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if self.here and runner.iter + 1 == self.step:
            if self.when == 'train':
                self._send()
            elif self.when == 'write':
                os.replace = self._send

    def after_val_iter(self, runner, batch_idx, *args, **kwargs) -> None:
        if self.here and self.when == 'val' and batch_idx + 1 == self.step:
            self._send()
