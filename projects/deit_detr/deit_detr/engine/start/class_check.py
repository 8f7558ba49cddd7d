"""A hook that compares what model, data, evaluation and checkpoint say about the classes."""

from collections.abc import Iterator, Sequence

from mmdet.evaluation import CocoMetric
from mmdet.registry import HOOKS
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import Dataset

from deit_detr.errors import UserError
from deit_detr.evaluation.pri3d import Pri3DMetric


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
        metrics = {
            name: getattr(getattr(loop, 'evaluator', None), 'metrics', []) for name, loop in _loops(runner).items()}
        difference = class_difference(_datasets(runner), metrics, runner.cfg.get('model', {}))
        if difference:
            raise UserError(difference)

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


def class_difference(
    datasets: dict[str, tuple[str, ...]], metrics: dict[str, Sequence[BaseMetric]], model: ConfigDict,
) -> str | None:
    """Compare everything that has classes.

    Args:
        datasets: Config field -> class names, of each data set.
        metrics: Split, e.g. ``'val'`` -> the metrics of its evaluator.
        model: The config's ``model``.

    Returns:
        str | None: A sentence that names all fields that differ from the first data set; None if none does.
    """
    if not datasets:
        return None
    (first, classes), *rest = datasets.items()
    differing = [f'{field} has {_words(other)}' for field, other in rest if other != classes]
    differing += [
        f'{field} has {_words(names)}' for field, names in _evaluator_files(metrics) if names != classes]
    differing += [
        f'{field} is {number}' for field, number in _num_classes(model) if number != len(classes)]
    if not differing:
        return None
    return (f'the classes differ: {first} has {_words(classes)}, but {"; ".join(differing)}. Make them equal in '
            'the config, in number, names and order')


def _loops(runner: Runner) -> dict[str, BaseLoop]:
    """The loops of this run: those that are not built will not run."""
    loops = dict(train=runner._train_loop, val=runner._val_loop, test=runner._test_loop)
    return {name: loop for name, loop in loops.items() if isinstance(loop, BaseLoop)}


def _datasets(runner: Runner) -> dict[str, tuple[str, ...]]:
    return dataset_classes({name: loop.dataloader.dataset for name, loop in _loops(runner).items()})


def dataset_classes(datasets: dict[str, Dataset]) -> dict[str, tuple[str, ...]]:
    """Config field and class names of each data set, given by its split, that knows its classes."""
    metainfo = {name: getattr(dataset, 'metainfo', {}) for name, dataset in datasets.items()}
    return {
        f'{name}_dataloader.dataset.metainfo.classes': tuple(meta['classes'])
        for name, meta in metainfo.items() if 'classes' in meta}


def _evaluator_files(metrics: dict[str, Sequence[BaseMetric]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Config field and class names of each annotation file that numbers classes as the data set does."""
    for name, of_split in metrics.items():
        for metric in of_split:
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
