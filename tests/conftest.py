"""Data and weights that the tests share: rooms rendered here, and real inputs when they lie beside the repository."""

import os
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / 'shared'  # photographs and pretrained weights; not part of the repository

#: Options that turn the MiniScanNet recipe into a run of seconds.
TINY_RUN = [
    '--cfg-options', 'model.backbone.init_cfg=None', 'model.encoder.num_layers=1', 'model.decoder.num_layers=1',
    'train_dataloader.batch_size=4', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False', 'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False', 'train_cfg.val_interval=1', 'default_hooks.logger.interval=1',
]  # fmt: skip


def from_shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f'needs {name} in a folder "shared" beside the repository')
    return path


@pytest.fixture(scope='session')
def indoor_photos() -> Path:
    """52 photographs in the layout of scannet_frames_25k."""
    return from_shared('data/indoor_photos')


@pytest.fixture(scope='session')
def deit_checkpoint() -> Path:
    """DeiT-tiny, pretrained, in mmpretrain layout."""
    return from_shared('weights/deit-tiny_in1k.pth')


@pytest.fixture(scope='session')
def mini_frames(tmp_path_factory) -> Path:
    """Rendered rooms in the layout of scannet_frames_25k: 16 training and 8 validation frames of 160x120, 4 a scene."""
    from deit_detr.datasets.mini_scannet import make_mini_scannet

    out_dir = tmp_path_factory.mktemp('rooms') / 'frames'
    make_mini_scannet(out_dir, REPO / 'data/splits', num_train=16, num_val=8, size=(160, 120), seed=0, workers=2)
    return out_dir


@pytest.fixture(scope='session')
def mini_scannet(mini_frames) -> Path:
    """The rooms converted: a data root as the recipes expect it."""
    from deit_detr.datasets.scannet2coco import convert

    convert(mini_frames, mini_frames.parent, REPO / 'data/splits', workers=2)
    return mini_frames.parent


@pytest.fixture
def data_roots(monkeypatch, mini_scannet):
    """Every recipe finds the rooms where it looks for its data."""
    for name in ('MMDET_DATASETS', 'MINI_SCANNET_ROOT'):
        monkeypatch.setenv(name, f'{mini_scannet}/')


@pytest.fixture
def run(tmp_path):
    """Run a command as a user does, in another folder; fails with its output unless the status is as expected."""

    def run(*command, status=0, cwd=tmp_path, timeout=600, **env) -> str:
        result = subprocess.run(
            list(map(str, command)), cwd=cwd, env=os.environ | {key: str(value) for key, value in env.items()},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False)
        assert result.returncode == status, f'{command} ended with {result.returncode}:\n{result.stdout[-6000:]}'
        return result.stdout

    return run
