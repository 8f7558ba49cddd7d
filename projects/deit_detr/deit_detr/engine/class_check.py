"""A hook that compares what model, data, evaluation and checkpoint say about the classes."""

from collections.abc import Iterator, Sequence

from mmdet.evaluation import CocoMetric
from mmdet.registry import HOOKS
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from deit_detr.errors import UserError
from deit_detr.evaluation import Pri3DMetric


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Stop a run before its first step if its parts disagree about the classes, and name all that do.

    mmdet's ``NumClassCheckHook`` asserts that the model's number is that of the training and validation data. This
    one compares names and order as well, looks at test runs, at the files of the evaluators and, when nothing is
    trained, at the checkpoint: mmengine leaves a classification layer of another shape at random without an error.
    """

    def before_run(self, runner: Runner) -> None:
        """Compare the model's config, the data sets and the evaluators.

        Raises:
            UserError: If they differ.
        """
        datasets = _datasets(runner)
        if not datasets:
            return
        (first, classes), *rest = datasets.items()
        differing = [f'{field} has {_words(other)}' for field, other in rest if other != classes]
        differing += [
            f'{field} has {_words(names)}' for field, names in _evaluator_files(runner) if names != classes]
        differing += [
            f'{field} is {number}' for field, number in _num_classes(runner.cfg.get('model', {}))
            if number != len(classes)]
        if differing:
            raise UserError(
                f'the classes differ: {first} has {_words(classes)}, but {"; ".join(differing)}. Make them equal in '
                'the config, in number, names and order')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the classes that a checkpoint was trained on with those of the test data.

        Raises:
            UserError: If they differ.
        """
        if isinstance(runner._train_loop, BaseLoop):  # training may start from a model of other classes
            return
        trained = (checkpoint.get('meta', {}).get('dataset_meta') or {}).get('classes')
        for field, classes in _datasets(runner).items():
            if trained and tuple(trained) != classes:
                raise UserError(
                    f'the classes differ: the checkpoint was trained on {_words(trained)}, but {field} has '
                    f'{_words(classes)}. Use the config of the training')


def _loops(runner: Runner) -> dict[str, BaseLoop]:
    """The loops of this run: those that are not built will not run."""
    loops = dict(train=runner._train_loop, val=runner._val_loop, test=runner._test_loop)
    return {name: loop for name, loop in loops.items() if isinstance(loop, BaseLoop)}


def _datasets(runner: Runner) -> dict[str, tuple[str, ...]]:
    """Config field and class names of each data set that knows its classes."""
    metainfo = {
        name: getattr(loop.dataloader.dataset, 'metainfo', {}) for name, loop in _loops(runner).items()}
    return {
        f'{name}_dataloader.dataset.metainfo.classes': tuple(meta['classes'])
        for name, meta in metainfo.items() if 'classes' in meta}


def _evaluator_files(runner: Runner) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Config field and class names of each annotation file that numbers classes as the data set does."""
    for name, loop in _loops(runner).items():
        for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', []):
            # Pri3DMetric goes by names and reads a file of fewer classes
            if isinstance(metric, CocoMetric) and metric._coco_api and not isinstance(metric, Pri3DMetric):
                categories = metric._coco_api.dataset['categories']
                yield f'{name}_evaluator.ann_file', tuple(category['name'] for category in categories)


def _num_classes(cfg: ConfigDict, path: str = 'model') -> Iterator[tuple[str, int]]:
    """Every field ``num_classes`` of a detector's config, but for those of backbone and proposals."""
    for key, value in cfg.items():
        if key == 'num_classes':
            yield f'{path}.{key}', value
        elif isinstance(value, dict) and key not in ('backbone', 'rpn_head'):
            yield from _num_classes(value, f'{path}.{key}')


def _words(classes: Sequence[str]) -> str:
    shown = ', '.join(classes[:20]) + (', ...' if len(classes) > 20 else '')
    return f'{len(classes)} ({shown})'
