"""Hooks of the recipes."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from deit_detr.checkpoints.pretrained import count_loaded_tensors
from deit_detr.errors import UserError


@HOOKS.register_module()
class PretrainedCheckHook(Hook):
    """Stop a training run whose pretrained weights did not arrive.

    mmengine's ``Pretrained`` initializer is not strict: a checkpoint of another layout, or a missing ``prefix``,
    loads nothing, logs a list of keys, and the backbone trains from scratch. This hook compares each module that
    has such an initializer with its checkpoint, and says in the log how many tensors arrived or that there is none.

    Args:
        min_loaded (float): The share of a module's tensors, in 0..1, that has to equal the checkpoint's. Not 1:
            the position embedding loses its class-token slot, and another input size resizes it.
    """

    def __init__(self, min_loaded: float = 0.99) -> None:
        self.min_loaded = min_loaded

    def before_train(self, runner: Runner) -> None:
        """Compare before the first step, unless a checkpoint of the whole model was loaded over the weights.

        Raises:
            UserError: If less than ``min_loaded`` of a module's tensors came from its checkpoint.
        """
        if runner._has_loaded:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        pretrained = {
            name: module
            for name, module in model.named_modules()
            if (getattr(module, 'init_cfg', None) or {}).get('type') == 'Pretrained'
        }
        for name, module in pretrained.items():
            checkpoint, prefix = module.init_cfg['checkpoint'], module.init_cfg.get('prefix')
            equal, total = count_loaded_tensors(module, checkpoint, prefix)
            if equal < self.min_loaded * total:
                raise UserError(
                    f'{checkpoint}: only {equal} of {total} tensors of model.{name} came from this checkpoint. '
                    f'Check model.{name}.init_cfg.prefix (now {prefix!r}) and that the checkpoint is of this '
                    'architecture in mmpretrain layout')
            runner.logger.info(f'{name}: {equal} of {total} tensors pretrained, from {checkpoint}')
        if not pretrained:
            runner.logger.warning('no part of the model is pretrained: everything trains from scratch')
