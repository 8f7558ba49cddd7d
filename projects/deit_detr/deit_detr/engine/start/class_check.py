"""A hook that checks whether a checkpoint belongs to the model and the classes that it is tested with."""

from mmdet.registry import HOOKS
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from deit_detr.checkpoints.fit import check_trained_classes, load_weights
from deit_detr.datasets.wrappers import unwrap
from deit_detr.engine.start.classes import check_classes, dataset_classes
from deit_detr.engine.start.depth import find_deep_images
from deit_detr.engine.start.findings import Finding, require
from deit_detr.engine.start.preflight import PreflightHook


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Stop a test before its first image if model, data, evaluation and checkpoint do not belong together.

    mmengine loads what fits of a checkpoint and leaves the rest at random without an error. This hook requires all of
    it, and the same class names in the same order in the checkpoint, the data sets and the files of the evaluators;
    mmdet's ``NumClassCheckHook`` compares their number in training only.

    A training is checked by :class:`~deit_detr.engine.start.preflight.PreflightHook`. Without that one, this hook
    compares the classes of its data, evaluators and model.
    """

    def before_run(self, runner: Runner) -> None:
        """Compare the model's config, the data sets and the evaluators.

        Raises:
            UserError: If they differ.
        """
        loops = _loops(runner)
        if 'train' in loops and any(isinstance(hook, PreflightHook) for hook in runner.hooks):
            return
        metrics = {name: getattr(getattr(loop, 'evaluator', None), 'metrics', []) for name, loop in loops.items()}
        require([Finding('classes', *check_classes(_datasets(loops), metrics, runner.cfg.get('model', {})))])
        if get_rank() == 0:
            for name, dataset in _datasets(loops).items():
                for deep in filter(None, [find_deep_images(leaf) for _, leaf in unwrap(dataset)]):
                    runner.logger.warning(f'{name} images: {deep}')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the classes that a checkpoint was trained on with those of the test data, and load all of it.

        Raises:
            UserError: If the classes differ, or it does not fit the model.
        """
        loops = _loops(runner)
        if 'train' in loops:  # training may start from another model
            return
        path = runner._load_from or 'the checkpoint'
        for field, classes in dataset_classes(_datasets(loops)):
            check_trained_classes(checkpoint, path, classes, field)
        load_weights(runner.model.module if is_model_wrapper(runner.model) else runner.model, checkpoint, path)


def _loops(runner: Runner) -> dict[str, BaseLoop]:
    """Return the loops of this run: those that are not built will not run."""
    loops = dict(train=runner._train_loop, val=runner._val_loop, test=runner._test_loop)
    return {name: loop for name, loop in loops.items() if isinstance(loop, BaseLoop)}


def _datasets(loops: dict[str, BaseLoop]) -> dict:
    return {name: loop.dataloader.dataset for name, loop in loops.items()}
