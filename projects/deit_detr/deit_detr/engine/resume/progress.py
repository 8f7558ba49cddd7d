"""How far a checkpoint's training had got: epoch, batch, step and time of saving."""

import time
from dataclasses import dataclass
from pathlib import Path

from mmengine.runner import Runner


@dataclass
class Progress:
    """How far a checkpoint's training had got, beside the epoch and the state that mmengine keeps.

    Attributes:
        batches_done: Batches of the running epoch that are done; 0 between two epochs.
        epoch_length: Batches in an epoch; 0 if unknown.
        step: Steps that are done; mmengine writes it.
        saved: When the checkpoint was written, in seconds since 1970. Copying a file changes its times, not this.
    """

    batches_done: int = 0
    epoch_length: int = 0
    step: int = 0
    saved: float | None = None

    @classmethod
    def read(cls, checkpoint: dict) -> 'Progress | None':
        """Read the progress from a checkpoint; None if that holds weights, but no training to resume."""
        meta = checkpoint.get('meta') or {}
        if 'optimizer' not in checkpoint or 'iter' not in meta:
            return None
        return cls(meta.get('batches_done', 0), meta.get('epoch_length', 0), meta['iter'], meta.get('saved'))

    def write(self, checkpoint: dict) -> None:
        """Add the progress to the ``meta`` of a checkpoint that is about to be saved."""
        checkpoint['meta'].update(
            saved=time.time(), batches_done=self.batches_done, epoch_length=self.epoch_length)


def mark_evaluated(runner: Runner) -> None:
    """Record in the message hub, which is part of each checkpoint, that this epoch is evaluated."""
    runner.message_hub.update_info('evaluated', runner.epoch)


def evaluated_epoch(runner: Runner) -> int | None:
    """Return the epoch after which the training, or the one that it continues, was evaluated last."""
    return runner.message_hub.get_info('evaluated')


def preempted_name(step: int | str) -> str:
    """Return the file name of a checkpoint that is written between the regular ones, after a number of steps."""
    return f'preempted_iter_{step}.pth'


def remove_preempted(work_dir: str | Path) -> None:
    """Delete the checkpoints that a regular one has replaced."""
    for path in Path(work_dir).glob(preempted_name('*')):
        path.unlink()
