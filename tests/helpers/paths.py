"""Paths, and the options of a training that takes seconds."""

from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / 'shared'  # photographs and pretrained weights; not part of the repository

#: Options that make the MiniScanNet recipe a run of seconds.
TINY_RUN = [
    '--cfg-options', 'model.backbone.init_cfg=None', 'model.encoder.num_layers=1', 'model.decoder.num_layers=1',
    'train_dataloader.batch_size=4', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False', 'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False', 'train_cfg.val_interval=1', 'default_hooks.logger.interval=1',
]


def from_shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f'needs {name} in a folder "shared" beside the repository')
    return path
