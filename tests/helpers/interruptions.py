"""Hooks that do to a training what clusters and broken images do to it, at a known step."""

import os
import resource
import signal

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class InterruptHook(Hook):
    """Send this process a signal, or fill its disk.

    Args:
        step: Step of the training, from 1; of the evaluation if ``when`` is 'val'.
        number: Name of the signal.
        when: 'train' or 'val': after the step; 'write': just before the next checkpoint gets its name; 'full': after
            the step, no file can grow beyond a megabyte.
        rank: Rank of the process that is interrupted.
        group: Send the signal to all processes of the group, also to data loading workers.
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


class Breaker(Hook):
    """Spoil the given steps, counted from 1, by a weight or an image; ``changed`` tells which steps changed weights."""

    def __init__(self, *steps: int, by: str = 'image') -> None:
        self.steps, self.by = steps, by
        self.changed = []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        model = getattr(runner.model, 'module', runner.model)
        self.position, self.watched = model.backbone.pos_embed, model.neck.convs[0].conv.weight
        self.kept, self.before = self.position.detach().clone(), self.watched.detach().clone()
        if runner.iter + 1 in self.steps and self.by == 'image':
            data_batch['inputs'][0] = torch.full(data_batch['inputs'][0].shape, 3e38)
        elif runner.iter + 1 in self.steps:
            self.position.data[0, 0, 0] = float('nan')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.changed.append(not torch.equal(self.before, self.watched))
        if runner.iter + 1 in self.steps and self.by == 'weight':
            self.position.data.copy_(self.kept)
