"""A hook that checks whether pretrained weights arrived in the model, and fits a detector's to other classes."""

from mmdet.registry import HOOKS, MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from deit_detr.checkpoints.pretrained import MIN_LOADED, compare_loaded, read_checkpoint
from deit_detr.checkpoints.start import prepare_start
from deit_detr.engine.start.classes import dataset_classes, with_another_class
from deit_detr.engine.start.findings import OK, WARN
from deit_detr.engine.start.trial_step import same_random_state
from deit_detr.errors import UserError


@HOOKS.register_module()
class PretrainedCheckHook(Hook):
    """Stop a training run whose pretrained weights did not arrive, and log how many tensors did.

    mmengine's ``Pretrained`` initializer is not strict: a checkpoint of another layout, or a missing ``prefix``,
    loads nothing, logs a list of keys, and the backbone trains from scratch. This hook compares each module that has
    such an initializer with its checkpoint after loading. ``load_from`` is not strict either: the hook logs how much
    of the model it gives and stops if that is nothing. :class:`~deit_detr.engine.start.preflight.PreflightHook` checks
    the files before.

    If ``load_from`` is a detector of other classes, those of the same name keep their rows in every tensor that
    depends on the classes, and new ones start from the model's initialization
    (:func:`~deit_detr.checkpoints.start.take_rows`). mmengine would take the rows in their order if there are as many,
    and none otherwise.

    Args:
        min_loaded (float): The share of a module's tensors, in 0..1, that its checkpoint has to give.
        same_classes (dict[str, str], optional): Class of the training data -> what the checkpoint of ``load_from``
            calls it. Spaces may be left out, as ``--cfg-options`` does.
    """

    priority = 'ABOVE_NORMAL'  # EMAHook copies the weights of the checkpoint

    def __init__(self, min_loaded: float = MIN_LOADED, same_classes: dict[str, str] | None = None) -> None:
        self.min_loaded = min_loaded
        self.same_classes = same_classes

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Fit a training's ``load_from`` to its classes and log what it gives, before mmengine loads it.

        Raises:
            UserError: If it gives nothing, or ``same_classes`` has an unknown class.
        """
        if not isinstance(runner._train_loop, BaseLoop) or runner._resume:  # there the whole model has to fit
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        dataset = runner._train_loop.dataloader.dataset
        loaded, left_out = _prepare(model, runner.cfg, dataset, checkpoint, runner._load_from, self.same_classes)
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


def check_start(
    model: nn.Module, cfg: Config, dataset: Dataset, same_classes: dict[str, str] | None,
) -> tuple[str, str]:
    """Say what a training will get from its ``load_from``. Every process has to call this if it is an address.

    Args:
        model: The detector, not wrapped. Not changed.
        cfg: The config of the run.
        dataset: The training data.
        same_classes: As for :class:`PretrainedCheckHook`.

    Raises:
        UserError: If the checkpoint cannot be read or gives nothing, or ``same_classes`` has an unknown class.
    """
    checkpoint = dict(read_checkpoint(cfg.load_from, again=True))
    loaded, left_out = _prepare(model, cfg, dataset, checkpoint, cfg.load_from, same_classes)
    return WARN if left_out else OK, '. '.join(filter(None, [loaded, left_out]))


def _prepare(
    model: nn.Module, cfg: Config, dataset: Dataset, checkpoint: dict, path: str, same_classes: dict[str, str] | None,
) -> tuple[str, str]:
    def larger() -> dict[str, Tensor]:
        if not isinstance(cfg.get('model'), dict):
            raise UserError('the runner was built without a config of its model')
        with same_random_state():
            return MODELS.build(with_another_class(cfg.model)).state_dict()

    classes = next((names for _, names in dataset_classes(dict(train=dataset))), ())
    return prepare_start(model, checkpoint, path, classes, larger, same_classes)
