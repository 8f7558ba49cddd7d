"""A hook that checks whether pretrained weights arrived in the model."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from deit_detr.checkpoints.pretrained import MIN_LOADED, compare_loaded


@HOOKS.register_module()
class PretrainedCheckHook(Hook):
    """Stop a training run whose pretrained weights did not arrive, and log how many tensors did.

    mmengine's ``Pretrained`` initializer is not strict: a checkpoint of another layout, or a missing ``prefix``,
    loads nothing, logs a list of keys, and the backbone trains from scratch. This hook compares each module that has
    such an initializer with its checkpoint after loading. :class:`~deit_detr.engine.start.preflight.PreflightHook`
    checks the files before.

    Args:
        min_loaded (float): The share of a module's tensors, in 0..1, that has to equal the checkpoint's.
    """

    def __init__(self, min_loaded: float = MIN_LOADED) -> None:
        self.min_loaded = min_loaded

    def before_train(self, runner: Runner) -> None:
        """Compare before the first step, unless a checkpoint of the whole model was loaded over the weights.

        Raises:
            UserError: If less than ``min_loaded`` of a module's tensors came from its checkpoint.
        """
        if runner._has_loaded:
            return
        lines = compare_loaded(runner.model, self.min_loaded)
        for line in lines:
            runner.logger.info(line)
        if not lines:
            runner.logger.warning('no part of the model is pretrained: everything trains from scratch')
