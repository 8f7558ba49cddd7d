"""Advice for a training run that does not learn."""

import math

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from deit_detr.checkpoints.pretrained import pretrained_modules
from deit_detr.engine.batch import accumulative_counts, images_per_update
from deit_detr.engine.optim import optim_wrappers


@HOOKS.register_module()
class HintHook(Hook):
    """Warn once when the loss rises far above its lowest value, and once when AP stays 0, with the usual causes.

    Args:
        window (int): Steps over which the loss is averaged, and between two checks.
        rise (float): The mean loss counts as diverging above this many times its lowest value.
        evaluations (int): Evaluations with AP 0, from the first one on, before the warning.
    """

    priority = 'LOW'  # after mmengine has recorded the loss

    def __init__(self, window: int = 50, rise: float = 3.0, evaluations: int = 5) -> None:
        self.window, self.rise, self.evaluations = window, rise, evaluations
        self._lowest = math.inf
        self._diverged = False
        self._without_ap = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None,
    ) -> None:
        """Compare the mean loss of the last steps with the lowest so far."""
        if self._diverged or not self.every_n_train_iters(runner, self.window):
            return
        loss = runner.message_hub.get_scalar('train/loss').mean(self.window)
        if loss > self.rise * self._lowest > 0:
            self._diverged = True
            runner.logger.warning(
                f'the loss diverges: its mean over {self.window} steps is {loss:.3g} and was {self._lowest:.3g}. Usual '
                f'causes: {learning_rate(runner)}; no warm-up (param_scheduler with LinearLR); no clipping '
                '(optim_wrapper.clip_grad); float16 instead of bfloat16')
        self._lowest = min(self._lowest, loss)  # keeps the old value where the loss is NaN

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Count the evaluations up to the first AP."""
        # mmdet reports no metric if the model finds nothing at all
        if any(name.endswith('_mAP') and value > 0 for name, value in (metrics or {}).items()):
            self._without_ap = -math.inf
        self._without_ap += 1
        if self._without_ap == self.evaluations:
            pretrained = ', '.join(pretrained_modules(runner.model)) or 'nothing'
            runner.logger.warning(
                f'AP is 0 in {self.evaluations} evaluations. Usual causes: too few steps, {runner.iter} so far (DETR '
                f'needs dozens of epochs even on large data); pretrained weights (here: {pretrained}); '
                f'{learning_rate(runner)}; wrong classes or boxes in the annotations (python '
                'tools/analysis_tools/browse_data.py ANN_FILE shows them). To see what the model finds: python '
                'tools/test.py CONFIG CHECKPOINT --show-dir pictures')


def learning_rate(runner: Runner) -> str:
    """Describe the learning rate and the effective batch size that it is meant for."""
    batch, counts = images_per_update(runner.cfg), accumulative_counts(runner.cfg)
    # the wrapper's own param_groups have one more, with the rate before auto_scale_lr
    rate = max(group.get('initial_lr', group['lr']) for wrapper in optim_wrappers(runner.optim_wrapper).values()
               for group in wrapper.optimizer.param_groups)
    scaling = runner.cfg.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    words = f'a learning rate of {rate:g} with {batch} images per ' + (
        'step' if counts == 1 else f'update (accumulative_counts={counts})')
    if base and base != batch and not scaling.get('enable'):
        words += f', while the rate is meant for {base} (--auto-scale-lr adapts it)'
    return words
