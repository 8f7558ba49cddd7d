"""The speed of the training data: steps of the pipeline, and the loader as a whole."""

import copy
import time
from collections.abc import Iterable, Iterator

import cv2
from mmdet.registry import DATASETS
from mmengine.runner import Runner

from deit_detr.measuring.variants import load_recipe


def pipeline_times(config: str, images: int) -> list[dict]:
    """Measure the time that each step of the training pipeline takes in one process.

    Args:
        config: Path of a recipe whose data exists.
        images: Number of images to load.

    Returns:
        list[dict]: ``name`` and ``milliseconds`` per image of each step; the sum comes last.
    """
    cfg = load_recipe(config)
    cv2.setNumThreads(cfg.env_cfg.mp_cfg.get('opencv_num_threads', 0))
    dataset = DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset))
    totals = {}
    for index in range(images):
        item = dataset.get_data_info(index % len(dataset))
        for transform in dataset.pipeline.transforms:
            start = time.perf_counter()
            item = transform(item)
            name = type(transform).__name__
            totals[name] = totals.get(name, 0.0) + time.perf_counter() - start
    totals['sum'] = sum(totals.values())
    return [dict(name=name, milliseconds=1000 * total / images) for name, total in totals.items()]


def loader_rate(config: str, workers: int, images: int) -> float:
    """Measure how fast the recipe's data loader delivers images.

    Args:
        config: Path of a recipe whose data exists.
        workers: Worker processes; 0 loads in this one.
        images: Number of images to wait for, after the first batch of every worker.

    Returns:
        float: Images per second.
    """
    loader_cfg = load_recipe(config).train_dataloader.to_dict()
    loader_cfg.update(num_workers=workers, persistent_workers=workers > 0)
    source = endless(Runner.build_dataloader(loader_cfg, seed=0))
    for _ in range(max(1, workers)):
        next(source)
    number, start = 0, time.perf_counter()
    while number < images:
        number += len(next(source)['inputs'])
    return number / (time.perf_counter() - start)


def endless(loader: Iterable[dict]) -> Iterator[dict]:
    """Yield the batches of a loader, one epoch after the other without end."""
    while True:
        yield from loader
