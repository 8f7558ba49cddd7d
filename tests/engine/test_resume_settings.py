"""Settings of mmengine, each trained whole, and interrupted and resumed: the same weights and rates to the last bit."""

import pytest
import torch
from mmengine.config import Config

from tests.helpers.interruptions import InterruptHook
from tests.helpers.tiny_training import differences, read_log, tiny_config, train

pytestmark = pytest.mark.slow

#: Without an evaluation; both loops make 8 steps.
SHORT = {'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None, 'default_hooks.checkpoint.save_best': None}


def rates(*schedulers: dict):
    def change(cfg: Config) -> None:
        cfg.param_scheduler = list(schedulers)
    return change


def by_iterations(counts: int = 1):
    def change(cfg: Config) -> None:
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=8, val_interval=100)
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
        cfg.param_scheduler = [dict(type='MultiStepLR', end=8, by_epoch=False, milestones=[3, 6], gamma=0.1)]
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=4)
        cfg.log_processor.by_epoch = False
        cfg.optim_wrapper.accumulative_counts = counts
    return change


SETTINGS = {
    'a warm-up over several schedules': rates(
        dict(type='LinearLR', start_factor=0.1, end=6, by_epoch=False),
        dict(type='CosineAnnealingLR', begin=1, T_max=2, by_epoch=True, convert_to_iter_based=True),
        dict(type='MultiStepLR', milestones=[1])),
    'CosineRestartLR': rates(dict(type='CosineRestartLR', periods=[3, 5], restart_weights=[1, 0.5], eta_min=1e-6,
                                  by_epoch=False)),
    'OneCycleLR': rates(dict(type='OneCycleLR', eta_max=1e-3, total_steps=8, by_epoch=False)),
    'PolyLR': rates(dict(type='PolyLR', power=0.9, by_epoch=False)),
    'momentum': rates(dict(type='LinearLR', start_factor=0.1, end=6, by_epoch=False),
                      dict(type='CosineAnnealingMomentum', T_max=8, eta_min=0.5, by_epoch=False)),
    'no schedule': {'param_scheduler': None},
    'by iterations': by_iterations(),
    'by iterations, accumulated': by_iterations(2),
    'accumulated': {'optim_wrapper.accumulative_counts': 2},
    'EMAHook from an epoch on': {'default_hooks.ema.begin_epoch': 1},
    'EMAHook of another kind, from an iteration on': {
        'default_hooks.ema.ema_type': 'ExpMomentumEMA', 'default_hooks.ema.update_buffers': True,
        'default_hooks.ema.begin_iter': 2},
    'fewer batches in an epoch': {'train_dataloader.num_batch_per_epoch': 4},
    'images by class': {'train_dataloader.sampler': dict(_delete_=True, type='ClassAwareSampler')},
    'SGD, file names, seeds of processes': {
        'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=1e-3, momentum=0.9, weight_decay=1e-4),
        'default_hooks.checkpoint.filename_tmpl': 'state_{}.pth', 'randomness': dict(seed=7, diff_rank_seed=True)},
}


@pytest.mark.parametrize('name', SETTINGS)
def test_resumed_training_is_the_same(name, mini_scannet, monkeypatch, tmp_path):
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')

    def config(folder: str, resume: bool = False) -> Config:
        change = SETTINGS[name]
        cfg = tiny_config(tmp_path / folder, SHORT, resume)
        change(cfg) if callable(change) else cfg.merge_from_dict(change)
        return cfg

    whole = train(config('whole'))
    first = train(config('work'), InterruptHook(step=6, number='SIGTERM'))
    assert first.status == 75
    second = train(config('work', resume=True))
    assert first.images + second.images == whole.images
    one, other = (torch.load(next((tmp_path / folder).glob('*_[28].pth')), weights_only=True)
                  for folder in ('whole', 'work'))
    assert one.get('param_schedulers') == other.get('param_schedulers')
    assert one['message_hub']['runtime_info'].keys() == other['message_hub']['runtime_info'].keys()
    if 'by iterations' not in name:  # mmengine's loop continues with other random numbers
        assert first.losses + second.losses == whole.losses
        for part in ('state_dict', 'ema_state_dict', 'optimizer'):
            assert not differences(one[part], other[part])
    words = read_log(tmp_path / 'work')
    assert ' stays ' not in words and 'starts again' not in words and 'another type' not in words, words[-3000:]
