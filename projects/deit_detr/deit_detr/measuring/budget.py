"""Training for a given time instead of a given number of epochs."""

import time
from pathlib import Path

import torch
from mmdet.registry import LOOPS
from mmengine.dist import is_main_process
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from deit_detr.datasets.augmentation import set_progress
from deit_detr.files import write_json
from deit_detr.machine import GB, describe, peak_memory


@LOOPS.register_module()
class BudgetTrainLoop(EpochBasedTrainLoop):
    """mmengine's epoch loop with a clock: it stops, decays the learning rate and evaluates by the time spent training.

    The clock runs from the request for a batch until its step is done on the device, logging included. It stands still
    during start-up, evaluation and checkpoints. ``progress``, 0..1, is the share of the budget that is spent. It
    decides when to evaluate, when to stop (the last step may exceed the budget) and the learning rate: after each step
    the rate is that of the recipe's schedule after the same share of its epochs. So the whole schedule, warm-up
    included, is stretched or shrunk to the budget, without knowing the speed of a step, and a slow minute of the
    machine shifts nothing. The data set's ``augment`` stops at its shares of the budget; batches that are loaded by
    then follow. Hooks that count steps or epochs are not fitted. The moving average of
    ``configs/_base_/ingredients.py`` needs no fitting, because it covers the last tenth of the steps so far.

    Without ``minutes``, ``progress`` is the share of the recipe's steps: an ordinary run with a clock.

    The schedulers must count steps, not epochs, and mmengine's ``ParamSchedulerHook`` must be off:
    :func:`deit_detr.measuring.race.race_config` does both.

    After each evaluation the loop rewrites ``clock.json`` in the work folder: steps, epochs, seconds of training, of
    CPU time during training and of evaluation, peak memory, and the evaluations; ``finished`` is set at the end.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader | dict): The training data.
        max_epochs (int): Length of the recipe's schedule.
        minutes (float | None): Budget of training time; without it, training ends after ``max_epochs``.
        evals (int): Number of evaluations, at equal shares of the run; the last one is at its end.
        cpu_clock (bool): Whether the clock counts the CPU time of this process, not the time that passes.
    """

    def __init__(
        self, runner: Runner, dataloader: DataLoader | dict, max_epochs: int, minutes: float | None = None,
        evals: int = 8, cpu_clock: bool = False,
    ) -> None:
        super().__init__(runner, dataloader, max_epochs)
        self.minutes = minutes
        self.cpu_clock = cpu_clock
        self.evals = evals
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.eval_seconds = 0.0
        self.evaluations = []
        self._evals_due = 0
        self._schedule_step = 0

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1."""
        if self.minutes is None:
            return self._iter / self._max_iters
        return min(1.0, self.seconds / (60 * self.minutes))

    @property
    def max_iters(self) -> int:
        """Steps of the whole run: the recipe's before the first step, then an estimate, for the ETA in the log."""
        return round(self._iter / self.progress) if self._iter else self._max_iters

    def run(self) -> nn.Module:
        """Train until the budget is spent."""
        self.runner.call_hook('before_train')
        if self.minutes is not None:
            # -1: accumulated gradients of the last steps get no other weight, because the last step is unknown
            self.runner.optim_wrapper.initialize_count_status(self.runner.model, self._iter, -1)
        while self.progress < 1 and not self.stop_training:
            self.run_epoch()
        self.runner.call_hook('after_train')
        self._write(finished=True)
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for an epoch, or until the budget ends."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        start, cpu_start = time.perf_counter(), time.process_time()
        for index, data_batch in enumerate(self.dataloader):
            self.run_iter(index, data_batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            cpu_seconds = time.process_time() - cpu_start
            self.cpu_seconds += cpu_seconds
            self.seconds += cpu_seconds if self.cpu_clock else time.perf_counter() - start
            self._advance_schedule()
            set_progress(self.dataloader.dataset, self.progress)
            self._evaluate_if_due()
            if self.progress >= 1:
                break
            start, cpu_start = time.perf_counter(), time.process_time()
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _advance_schedule(self) -> None:
        """Set the learning rate to that of the recipe's schedule at this share of the run."""
        target = int(self.progress * self._max_iters + 1e-6)
        for _ in range(self._schedule_step, target):
            for scheduler in self.runner.param_schedulers or []:
                scheduler.step()
        self._schedule_step = target

    def _evaluate_if_due(self) -> None:
        due = int(self.progress * self.evals + 1e-6)
        if due == self._evals_due:
            return
        self._evals_due = due
        lr = self.runner.optim_wrapper.get_lr()['lr'][0]
        start = time.perf_counter()
        metrics = self.runner.val_loop.run()
        self.runner.model.train()
        self.eval_seconds += time.perf_counter() - start
        self.evaluations.append(dict(
            number=due, step=self._iter, epoch=self._iter / len(self.dataloader), seconds=self.seconds, lr=lr,
            # mmdet reports no metric if the model finds nothing
            AP=metrics.get('coco/bbox_mAP', 0.0), AP50=metrics.get('coco/bbox_mAP_50', 0.0)))
        self._write(finished=False)

    def _write(self, finished: bool) -> None:
        if not is_main_process():
            return
        write_json(Path(self.runner.work_dir, 'clock.json'), dict(
            finished=finished, minutes=self.minutes, seconds=self.seconds, cpu_seconds=self.cpu_seconds,
            eval_seconds=self.eval_seconds, steps=self._iter, steps_per_epoch=len(self.dataloader),
            epochs=self._iter / len(self.dataloader),
            peak_gb=peak_memory() / GB, threads=torch.get_num_threads(), machine=describe(),
            evaluations=self.evaluations))
