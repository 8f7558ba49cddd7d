"""A hook that checks whether pretrained weights arrived in the model."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from deit_detr.checkpoints.fit import describe_start
from deit_detr.checkpoints.pretrained import MIN_LOADED, compare_loaded


@HOOKS.register_module()
class PretrainedCheckHook(Hook):
    """Stop a training run whose pretrained weights did not arrive, and log how many tensors did.

    mmengine's ``Pretrained`` initializer is not strict: a checkpoint of another layout, or a missing ``prefix``,
    loads nothing, logs a list of keys, and the backbone trains from scratch. This hook compares each module that has
    such an initializer with its checkpoint after loading. ``load_from`` is not strict either: the hook logs how much
    of the model it gives and stops if that is nothing. :class:`~deit_detr.engine.start.preflight.PreflightHook` checks
    the files of the initializers before.

    Args:
        min_loaded (float): The share of a module's tensors, in 0..1, that its checkpoint has to give.
    """

    def __init__(self, min_loaded: float = MIN_LOADED) -> None:
        self.min_loaded = min_loaded

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Log how much of the model a training's ``load_from`` gives, before mmengine loads it.

        Raises:
            UserError: If it gives nothing.
        """
        if not isinstance(runner._train_loop, BaseLoop) or runner._resume:  # there the whole model has to fit
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        loaded, left_out = describe_start(model, checkpoint, runner._load_from)
        runner.logger.info(loaded)
        if left_out:
            runner.logger.warning(left_out)

    def before_train(self, runner: Runner) -> None:
        """Compare before the first step, unless a checkpoint of the whole model was loaded over the weights.

        Raises:
            UserError: If less than ``min_loaded`` of a module's tensors are in its checkpoint, or one did not arrive.
        """
        if runner._has_loaded:
            return
        lines = compare_loaded(runner.model, self.min_loaded)
        for line in lines:
            runner.logger.info(line)
        if not lines:
            runner.logger.warning('no part of the model is pretrained: everything trains from scratch')
