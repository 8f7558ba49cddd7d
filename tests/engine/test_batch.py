"""The learning rate goes with the images per update of the weights, not per step."""

import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from deit_detr.engine import batch
from deit_detr.engine.watch.hints import learning_rate
from tests.helpers.paths import REPO
from tests.helpers.tiny_training import tiny_config


@pytest.mark.slow
@pytest.mark.parametrize('images, counts, ratio', [(1, 4, 1), (2, 4, 2), (2, 1, 0.5)])
def test_auto_scale_lr_counts_accumulated_steps(images, counts, ratio, run, tmp_path, mini_scannet, monkeypatch):
    """The recipe's rate is meant for 4 images."""
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    options = {'train_cfg.max_epochs': 1, 'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None,
               'train_dataloader.batch_size': images, 'optim_wrapper.accumulative_counts': counts}
    tiny_config(tmp_path / 'work', options).dump(tmp_path / 'short.py')
    output = run(
        sys.executable, REPO / 'tools/train.py', tmp_path / 'short.py', '--auto-scale-lr', '--work-dir',
        tmp_path / 'work', OMP_NUM_THREADS=1)
    saved = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=True)
    rates = {group['initial_lr'] for group in saved['optimizer']['param_groups']}
    assert sorted(rates) == pytest.approx([2e-4 * ratio, 4e-4 * ratio])
    assert f'Scaling the original LR by {ratio:.1f}' in output
    assert (f'accumulative_counts={counts}: {images * counts} images per update' in output) == (counts > 1)


@pytest.mark.parametrize(
    'images, processes, counts, words',
    [
        (1, 1, 4, 'with 4 images per update (accumulative_counts=4)'),
        (1, 2, 2, 'with 4 images per update (accumulative_counts=2)'),
        (4, 1, 1, 'with 4 images per step'),
        (2, 2, 4, 'with 16 images per update (accumulative_counts=4), while the rate is meant for 4 (--auto-scale-lr '
                  'adapts it)'),
    ])
def test_hint_counts_accumulated_steps(images, processes, counts, words, monkeypatch):
    monkeypatch.setattr(batch, 'get_world_size', lambda: processes)
    runner = SimpleNamespace(
        cfg=Config(dict(
            train_dataloader=dict(batch_size=images), optim_wrapper=dict(accumulative_counts=counts),
            auto_scale_lr=dict(base_batch_size=4))),
        optim_wrapper=SimpleNamespace(optimizer=SimpleNamespace(param_groups=[dict(lr=1e-4)])))
    assert learning_rate(runner) == f'a learning rate of 0.0001 {words}'
