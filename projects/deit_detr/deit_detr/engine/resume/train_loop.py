"""A training loop that can be interrupted after any step and continued with the same result."""

import copy
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmdet.registry import LOOPS
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from deit_detr.datasets.augmentation import set_progress
from deit_detr.engine.resume.progress import evaluated_epoch


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """mmengine's epoch loop, with steps that depend only on the checkpoint before them.

    Random numbers are seeded anew for each step and image: the augmentation of an image by the run's seed, the epoch
    and the image's index; the rest of a step (dropout, noisy queries) by the seed, the number of the step and the
    process. So there is no random state to save, and the number of data loading workers does not change the result.

    mmengine continues a checkpoint from the middle of an epoch at the epoch's start. This loop skips the batches that
    are done, without loading their images. If an evaluation was due and is not in the checkpoint, it comes first.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader | dict): The training data.
        *args: As for ``EpochBasedTrainLoop``.
        **kwargs: As for ``EpochBasedTrainLoop``.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *args, **kwargs) -> None:
        super().__init__(runner, dataloader, *args, **kwargs)
        self.dataloader = seeded_loader(self.dataloader)
        self.batches_done = 0  # of the running epoch; SafeCheckpointHook sets it from the checkpoint
        self.seed = 0

    def run(self) -> nn.Module:
        """Train until the last epoch is done.

        Returns:
            nn.Module: The model.
        """
        seeds = [self.runner.seed]  # a resumed run takes its seed from the checkpoint, after the sampler was made
        broadcast_object_list(seeds)
        self.seed = self.dataloader.batch_sampler.seed = seeds[0]
        if hasattr(self.dataloader.batch_sampler.sampler, 'seed'):
            self.dataloader.batch_sampler.sampler.seed = self.seed

        self.runner.call_hook('before_train')
        if self._epoch and not self.batches_done and evaluated_epoch(self.runner) != self._epoch:
            self._evaluate_if_due()
        if self._epoch >= self._max_epochs:
            self.runner.logger.info(
                f'this training is finished: {self._epoch} of {self._max_epochs} epochs are done. A larger '
                'train_cfg.max_epochs continues it')
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._evaluate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for an epoch, or for the rest of a resumed one."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        batches = self.dataloader.batch_sampler
        batches.epoch, batches.start = self._epoch, self.batches_done
        set_progress(self.dataloader.dataset, self._epoch / self._max_epochs)
        for index, data_batch in enumerate(self.dataloader, self.batches_done):
            self.run_iter(index, data_batch)
        self.batches_done = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Train for one step."""
        # Python's generator is the same in all processes: so is what it draws for the whole batch, e.g. its size
        seed_all(self.seed, self._iter, get_rank())
        random.seed(_mix(self.seed, self._iter))
        super().run_iter(idx, data_batch)

    def _evaluate_if_due(self) -> None:
        self._decide_current_val_interval()
        if (self.runner.val_loop is not None and self._epoch >= self.val_begin
                and (self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs)):
            self.runner.val_loop.run()


def seed_all(*numbers: int) -> None:
    """Seed Python, NumPy and PyTorch with a combination of several numbers."""
    seed = _mix(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seeded_loader(loader: DataLoader) -> DataLoader:
    """Return a loader of the same batches that can start in the middle of an epoch and seeds each image.

    Args:
        loader: As mmengine builds it.

    Returns:
        DataLoader: Its ``batch_sampler`` is a :class:`_SeededBatches`. Everything else is that of ``loader``, also the
            data set itself, which hooks read, change and call.
    """
    seeded = copy.copy(loader)
    seeded.__class__ = _SeededLoader
    vars(seeded)['batch_sampler'] = _SeededBatches(loader.batch_sampler)  # PyTorch refuses to set it
    return seeded


class _SeededLoader(DataLoader):
    """A loader whose iterators, with their workers, seed the random numbers before they load an image."""

    def __iter__(self) -> Iterator:
        dataset = self.dataset
        vars(self)['dataset'] = _SeededDataset(dataset)
        try:
            return super().__iter__()
        finally:
            vars(self)['dataset'] = dataset


class _SeededBatches(Sampler):
    """Batches of (index, seeds of its augmentation), starting with batch number ``start``."""

    def __init__(self, batch_sampler: BatchSampler) -> None:
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler
        self.seed = self.epoch = self.start = 0

    def __iter__(self) -> Iterator[list]:
        # a copy: AspectRatioBatchSampler keeps the images of unfilled batches when an epoch is not read to its end
        batches = copy.deepcopy(self.batch_sampler, {id(self.sampler): self.sampler})
        for batch in islice(batches, self.start, None):
            yield [(index, (self.seed, self.epoch, index)) for index in batch]

    def __len__(self) -> int:
        return len(self.batch_sampler)


class _SeededDataset(Dataset):
    """A data set, as an iterator uses it, that seeds the generators of its process before it loads an image."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: tuple) -> Any:
        index, seeds = index
        seed_all(*seeds)
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)
