"""A hook that does to a training what a cluster does to it, at a known step."""

import os
import resource
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class InterruptHook(Hook):
    """Send this process a signal, or fill its disk.

    Args:
        step: Of the training, counting from 1; of an evaluation if ``when`` is 'val'.
        number: The signal's name.
        when: 'train', after the step, or 'val'; 'write': just before the next checkpoint gets its name; 'full': after
            the step no file can grow beyond a megabyte any more.
        rank: The process that it happens to.
        group: Whether all processes of the group get the signal, data loading workers too.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self, step: int, number: str = 'SIGKILL', when: str = 'train', rank: int = 0, group: bool = False,
    ) -> None:
        self.step, self.signal, self.when, self.group = step, signal.Signals[number], when, group
        self.here = int(os.environ.get('RANK', 0)) == rank

    def _send(self, *args) -> None:
        os.kill(0 if self.group else os.getpid(), self.signal)

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if not self.here or runner.iter + 1 != self.step:
            return
        if self.when == 'train':
            self._send()
        elif self.when == 'write':
            os.replace = self._send
        elif self.when == 'full':
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def after_val_iter(self, runner, batch_idx, *args, **kwargs) -> None:
        if self.here and self.when == 'val' and batch_idx + 1 == self.step:
            self._send()
