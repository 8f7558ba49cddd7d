"""Whether pretrained weights arrived."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn

from deit_detr.checkpoints.pretrained import check_layout, count_loaded_tensors, read_pretrained
from deit_detr.errors import UserError


@HOOKS.register_module()
class PretrainedCheckHook(Hook):
    """Stop a training run whose pretrained weights are unusable or did not arrive.

    mmengine's ``Pretrained`` initializer is not strict: a checkpoint of another layout, or a missing ``prefix``,
    loads nothing, logs a list of keys, and the backbone trains from scratch. This hook looks at each module that
    has such an initializer: before loading, whether its checkpoint can be read and fits; after loading, how many of
    its tensors equal the checkpoint's. It says in the log how many that were, or that nothing is pretrained.

    Args:
        min_loaded (float): The share of a module's tensors, in 0..1, that has to equal the checkpoint's. Not 1:
            the position embedding loses its class-token slot, and another input size resizes it.
    """

    def __init__(self, min_loaded: float = 0.99) -> None:
        self.min_loaded = min_loaded

    def before_run(self, runner: Runner) -> None:
        """Look at the checkpoints before mmengine loads them, which it does in training only.

        Raises:
            UserError: If a checkpoint is missing, damaged, unsafe, or of another layout or architecture.
        """
        if not isinstance(runner._train_loop, BaseLoop):
            return
        check_checkpoints(runner.model, self.min_loaded)

    def before_train(self, runner: Runner) -> None:
        """Compare before the first step, unless a checkpoint of the whole model was loaded over the weights.

        Raises:
            UserError: If less than ``min_loaded`` of a module's tensors came from its checkpoint.
        """
        if runner._has_loaded:
            return
        lines = loaded_parts(runner.model, self.min_loaded)
        for line in lines:
            runner.logger.info(line)
        if not lines:
            runner.logger.warning('no part of the model is pretrained: everything trains from scratch')


def check_checkpoints(model: nn.Module, min_loaded: float) -> None:
    """Read the pretrained checkpoints of a model's parts, before anything is loaded.

    Args:
        model: The model.
        min_loaded: The share of a part's tensors, in 0..1, that has to be in its checkpoint.

    Raises:
        UserError: If a checkpoint is missing, damaged, unsafe, or of another layout or architecture.
    """
    for name, module in pretrained_modules(model).items():
        checkpoint, prefix = module.init_cfg['checkpoint'], module.init_cfg.get('prefix')
        source = read_pretrained(checkpoint)
        try:
            check_layout(module, source, prefix, min_loaded)
        except UserError as error:
            raise UserError(f'{checkpoint}, for model.{name}: {error}') from None


def loaded_parts(model: nn.Module, min_loaded: float) -> list[str]:
    """Compare a model right after its initialization with its pretrained checkpoints.

    Args:
        model: The model.
        min_loaded: The share of a part's tensors, in 0..1, that has to equal its checkpoint's.

    Returns:
        list[str]: For each pretrained part how much of it came from where.

    Raises:
        UserError: If it is less.
    """
    lines = []
    for name, module in pretrained_modules(model).items():
        checkpoint = module.init_cfg['checkpoint']
        equal, total = count_loaded_tensors(module, read_pretrained(checkpoint), module.init_cfg.get('prefix'))
        if equal < min_loaded * total:
            raise UserError(
                f'{checkpoint}: fits model.{name}, but only {equal} of {total} tensors still equal it after '
                f'initialization. Something initializes model.{name} again after loading')
        lines.append(f'{name}: {equal} of {total} tensors pretrained, from {checkpoint}')
    return lines


def pretrained_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name and module of each part of a model that has a ``Pretrained`` initializer."""
    model = model.module if is_model_wrapper(model) else model
    return {
        name: module
        for name, module in model.named_modules()
        if (getattr(module, 'init_cfg', None) or {}).get('type') == 'Pretrained'
    }
