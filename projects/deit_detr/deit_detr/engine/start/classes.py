"""Check that data, evaluation and model agree about the classes."""

import copy
from collections.abc import Iterator, Sequence

from mmdet.evaluation import CocoMetric
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from torch.utils.data import Dataset

from deit_detr.checkpoints.fit import describe_classes
from deit_detr.datasets.wrappers import unwrap
from deit_detr.engine.start.findings import FAIL, OK, UNKNOWN
from deit_detr.evaluation.pri3d import Pri3DMetric


def check_classes(
    datasets: dict[str, Dataset], metrics: dict[str, Sequence[BaseMetric]], model: ConfigDict,
) -> tuple[str, str]:
    """Compare everything that has classes with the first data set, and name all fields that differ from it.

    Args:
        datasets: Split, e.g. ``'val'`` -> data set.
        metrics: Split -> the metrics of its evaluator.
        model: The config's ``model``.
    """
    fields = dict(dataset_classes(datasets))
    if not fields:
        return UNKNOWN, 'no data set knows its classes'
    first, classes = next(iter(fields.items()))
    compared = (*fields.items(), *_evaluator_files(metrics, classes))
    differing = [f'{field} has {describe_classes(names)}' for field, names in compared if names != classes]
    differing += [
        f'{field} is {part["num_classes"]}' for field, part in _num_classes(model)
        if part['num_classes'] != len(classes)]
    if not differing:
        return OK, 'data, evaluator and model have the same'
    return FAIL, (
        f'{first} has {describe_classes(classes)}, but {"; ".join(differing)}. Make them equal in the config, in '
        'number, names and order')


def dataset_classes(datasets: dict[str, Dataset]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield config field and class names of each data set, given by its split, that knows its classes."""
    for split, dataset in datasets.items():
        for name, part in unwrap(dataset, f'{split}_dataloader.dataset'):
            meta = getattr(part, 'metainfo', {})
            if 'classes' in meta:
                yield f'{name}.metainfo.classes', tuple(meta['classes'])


def _evaluator_files(
    metrics: dict[str, Sequence[BaseMetric]], classes: tuple[str, ...],
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield config field and class names of each annotation file that numbers classes as the data set does.

    Others of its classes do not count in mmdet: a detector may be trained on one class of COCO.
    """
    for name, of_split in metrics.items():
        for metric in of_split:
            # Pri3DMetric matches classes by name and reads a file of fewer classes
            if isinstance(metric, CocoMetric) and metric._coco_api and not isinstance(metric, Pri3DMetric):
                names = tuple(category['name'] for category in metric._coco_api.dataset['categories'])
                known = tuple(name for name in names if name in classes)
                yield f'{name}_evaluator.ann_file', known if len(known) == len(classes) else names


def with_another_class(model: ConfigDict) -> ConfigDict:
    """Return the config of the same detector with one class more."""
    model = copy.deepcopy(model)
    for _, part in _num_classes(model):
        part['num_classes'] += 1
    return model


def _num_classes(cfg: ConfigDict, path: str = 'model') -> Iterator[tuple[str, ConfigDict]]:
    """Yield every field ``num_classes`` of a detector's config, except those of backbone and proposals.

    Yields:
        tuple[str, ConfigDict]: The name of the field, and the part of the config that has it.
    """
    for key, value in cfg.items():
        if key == 'num_classes':
            yield f'{path}.{key}', cfg
        elif key not in ('backbone', 'rpn_head'):
            parts = dict(enumerate(value)) if isinstance(value, list) else {'': value}  # a cascade has several heads
            for index, part in parts.items():
                if isinstance(part, dict):
                    yield from _num_classes(part, '.'.join(filter(None, [path, key, str(index)])))
