"""Training that can be interrupted after any step and continued as if it had not been."""

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


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """mmengine's epoch loop, with steps that depend on the checkpoint before them and on nothing else.

    Whatever is random is seeded for each step or image, and does not go on from what was drawn before: the
    augmentation of an image by the run's seed, the epoch and the image's index; the rest of a step (dropout, noisy
    queries) by the seed, the number of the step and the process. There is thus no random state to save, and the number
    of data loading workers changes nothing.

    mmengine continues a checkpoint from the middle of an epoch at the epoch's start. This loop passes over the
    batches that were done, without loading their images. An evaluation that was due, and is not in the checkpoint, is
    done first.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader | dict): The training data.
        *args: As for ``EpochBasedTrainLoop``.
        **kwargs: As for ``EpochBasedTrainLoop``.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *args, **kwargs) -> None:
        super().__init__(runner, dataloader, *args, **kwargs)
        self.dataloader = seeded_loader(self.dataloader)
        self.batches_done = 0  # of the running epoch, by the checkpoint that is resumed
        self.seed = 0

    def run(self) -> nn.Module:
        """Train until the last epoch is over.

        Returns:
            nn.Module: The model.
        """
        seeds = [self.runner.seed]  # a resumed run takes its seed from the checkpoint, after the sampler was made
        broadcast_object_list(seeds)
        self.seed = self.dataloader.batch_sampler.seed = seeds[0]
        if hasattr(self.dataloader.batch_sampler.sampler, 'seed'):
            self.dataloader.batch_sampler.sampler.seed = self.seed

        self.runner.call_hook('before_train')
        if self._epoch and not self.batches_done and self.runner.message_hub.get_info('evaluated') != self._epoch:
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
        """Train for an epoch, or for what is left of one."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        batches = self.dataloader.batch_sampler
        batches.epoch, batches.start = self._epoch, self.batches_done
        for index, data_batch in enumerate(self.dataloader, self.batches_done):
            self.run_iter(index, data_batch)
        self.batches_done = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Train for a step."""
        # Python's generator alike in all processes: what is drawn for the whole batch, as its size, should be the same
        seed_all(self.seed, self._iter, get_rank())
        random.seed(_mix(self.seed, self._iter))
        super().run_iter(idx, data_batch)

    def _evaluate_if_due(self) -> None:
        self._decide_current_val_interval()
        if (self.runner.val_loop is not None and self._epoch >= self.val_begin
                and (self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs)):
            self.runner.val_loop.run()


def seed_all(*numbers: int) -> None:
    """Seed Python, NumPy and PyTorch by several numbers at once."""
    seed = _mix(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seeded_loader(loader: DataLoader) -> DataLoader:
    """The same batches from a loader that knows how to begin in the middle of an epoch and seeds each image.

    Args:
        loader: As mmengine builds it. It is not used itself.

    Returns:
        DataLoader: Its ``batch_sampler`` is a :class:`_SeededBatches`, its ``dataset`` passes attributes through.
    """
    options = (
        'num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn', 'multiprocessing_context',
        'prefetch_factor', 'persistent_workers')
    return DataLoader(
        _SeededDataset(loader.dataset), batch_sampler=_SeededBatches(loader.batch_sampler),
        **{name: getattr(loader, name) for name in options})


class _SeededBatches(Sampler):
    """Batches of (index, seeds of its augmentation), from the batch number ``start`` on."""

    def __init__(self, batch_sampler: BatchSampler) -> None:
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler
        self.seed = self.epoch = self.start = 0

    def __iter__(self) -> Iterator[list]:
        # a copy: AspectRatioBatchSampler keeps the images of batches that it could not fill if nobody asks on
        batches = copy.deepcopy(self.batch_sampler, {id(self.sampler): self.sampler})
        for batch in islice(batches, self.start, None):
            yield [(index, (self.seed, self.epoch, index)) for index in batch]

    def __len__(self) -> int:
        return len(self.batch_sampler)


class _SeededDataset(Dataset):
    """A data set that seeds before it loads, in whichever process that is."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int | tuple) -> Any:
        if isinstance(index, tuple):
            index, seeds = index
            seed_all(*seeds)
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':  # not what Python or torch ask any object for
            raise AttributeError(name)
        return getattr(self.dataset, name)
