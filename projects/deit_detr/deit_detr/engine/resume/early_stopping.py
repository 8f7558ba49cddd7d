"""Stop a training that no longer improves, also after it was interrupted."""

from mmdet.registry import HOOKS
from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner


@HOOKS.register_module()
class ResumableEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's ``EarlyStoppingHook`` whose best value and patience are part of each checkpoint.

    A resumed training stops where an uninterrupted one does; mmengine starts to count again. Tests need no training
    data.

    Args:
        monitor (str): The metric to improve.
        patience (int): Evaluations without an improvement after which the training stops.
        min_delta (float): A rise by less is no improvement.
        **kwargs: As for ``EarlyStoppingHook``.
    """

    priority = 'LOW'  # before the checkpoint of the evaluated epoch is written

    def __init__(
        self, monitor: str = 'coco/bbox_mAP', patience: int = 5, min_delta: float = 0.0, **kwargs,
    ) -> None:
        super().__init__(monitor, patience=patience, min_delta=min_delta, **kwargs)

    def before_run(self, runner: Runner) -> None:
        """Leave the loop alone: mmengine builds it here, also for a test."""

    def before_train(self, runner: Runner) -> None:
        """Continue to count. A training that had stopped stays so, unless ``patience`` is larger now."""
        self.wait_count, self.best_score = runner.message_hub.get_info(
            'early_stopping', (self.wait_count, self.best_score))
        if self.wait_count >= self.patience:
            runner.train_loop.stop_training = True
            runner.logger.info(f'this training has stopped early: {self.monitor} was {self.best_score:.3f} at best')

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Stop the training if its patience is over."""
        super().after_val_epoch(runner, metrics)
        runner.message_hub.update_info('early_stopping', (self.wait_count, float(self.best_score)))
