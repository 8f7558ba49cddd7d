"""Find the data sets inside wrappers such as ``ConcatDataset``."""

from collections.abc import Iterator

from mmengine.config import ConfigDict
from torch.utils.data import Dataset


def unwrap(dataset: Dataset | ConfigDict, name: str = '') -> Iterator[tuple[str, Dataset | ConfigDict]]:
    """Yield the data sets that are made of images.

    Args:
        dataset: A data set or its config, perhaps with wrappers around it such as ``ConcatDataset``,
            ``RepeatDataset``, ``ClassBalancedDataset`` and ``MultiImageMixDataset``.
        name: Its name.

    Yields:
        tuple: Name and data set. Those of a ``ConcatDataset`` are named ``NAME.0``, ``NAME.1`` ...
    """
    if hasattr(dataset, 'datasets'):
        for index, part in enumerate(dataset.datasets):
            yield from unwrap(part, f'{name}.{index}')
    elif hasattr(dataset, 'dataset'):
        yield from unwrap(dataset.dataset, name)
    else:
        yield name, dataset
