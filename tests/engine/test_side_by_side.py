"""Settings of mmengine and mmdet, each trained twice: with mmengine's loop and hooks, and with this project's.

Ours may add to a training, and must not change what a setting does: the images of each step, the learning rates, the
evaluations, the checkpoints and the moving average are those of the plain training.
"""

import copy
import json
import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests.helpers.tiny_training import close_workers, tiny_config

pytestmark = pytest.mark.slow


def wrapped(kind: str, **more):
    """Put a wrapper around the training data."""
    def change(cfg: Config) -> None:
        dataset = cfg.train_dataloader.dataset
        inner = dict(datasets=[dataset, copy.deepcopy(dataset)]) if kind == 'ConcatDataset' else dict(dataset=dataset)
        cfg.train_dataloader.dataset = dict(type=kind, **inner, **more)
    return change


def by_iterations(cfg: Config) -> None:
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=5, val_interval=2)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.param_scheduler = [dict(type='MultiStepLR', begin=0, end=5, by_epoch=False, milestones=[3], gamma=0.1)]
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    cfg.log_processor.by_epoch = False


def no_evaluation(cfg: Config) -> None:
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.save_best = None


def two_metrics(cfg: Config) -> None:
    cfg.val_evaluator = [cfg.val_evaluator, dict(
        type='CocoMetric', ann_file=cfg.val_evaluator.ann_file, metric='proposal', prefix='second')]


def early_stopping(cfg: Config) -> None:
    cfg.train_cfg.max_epochs = 4
    cfg.custom_hooks.append(dict(
        type='EarlyStoppingHook', monitor='coco/bbox_mAP', patience=1, min_delta=2.0, rule='greater'))


def new_pipeline(cfg: Config) -> None:
    cfg.custom_hooks.append(dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=[
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(96, 72), keep_ratio=True), dict(type='PackDetInputs')]))


def rates(*schedulers: dict):
    def change(cfg: Config) -> None:
        cfg.param_scheduler = list(schedulers)
    return change


def accumulated_by_iterations(cfg: Config) -> None:
    by_iterations(cfg)
    cfg.optim_wrapper.accumulative_counts = 2


def late_average(cfg: Config) -> None:
    cfg.default_hooks.pop('ema')
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1, begin_epoch=1, priority='ABOVE_NORMAL'))


def several_best(cfg: Config) -> None:
    cfg.val_evaluator.metric_items = ['mAP', 'mAP_50']
    cfg.default_hooks.checkpoint.update(
        save_best=['coco/bbox_mAP', 'coco/bbox_mAP_50'], rule=['greater', 'greater'], filename_tmpl='state_{}.pth')


def plateau(cfg: Config) -> None:
    cfg.param_scheduler = [dict(
        type='ReduceOnPlateauLR', monitor='coco/bbox_mAP', rule='greater', threshold=2.0, threshold_rule='abs',
        patience=0)]


def more_hooks(cfg: Config) -> None:
    cfg.custom_hooks[0].priority = 'LOWEST'  # PreflightHook
    cfg.custom_hooks += [
        dict(type='NumClassCheckHook'), dict(type='CheckInvalidLossHook', interval=1), dict(type='SyncBuffersHook'),
        dict(type='EmptyCacheHook', after_epoch=True, priority='VERY_HIGH')]


SETTINGS = {
    'as it is': {},
    'by iterations': by_iterations,
    'no evaluation': no_evaluation,
    'two metrics': two_metrics,
    'early stopping': early_stopping,
    'another pipeline from an epoch on': new_pipeline,
    'RepeatDataset': wrapped('RepeatDataset', times=2),
    'ConcatDataset': wrapped('ConcatDataset'),
    'ClassBalancedDataset': wrapped('ClassBalancedDataset', oversample_thr=0.5),
    'MultiImageMixDataset': wrapped('MultiImageMixDataset', pipeline=[]),
    'no batch sampler': {'train_dataloader.batch_sampler': None},
    'the last batch is dropped': {'train_dataloader.batch_size': 3, 'train_dataloader.batch_sampler.drop_last': True},
    'no shuffling': {'train_dataloader.sampler.shuffle': False},
    'one worker, kept': {'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': True},
    'accumulated gradients': {'optim_wrapper.accumulative_counts': 2},
    'no clipping': {'optim_wrapper.clip_grad': None},
    'SGD': {'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=1e-3, weight_decay=1e-4)},
    'first evaluation late': {'train_cfg.val_begin': 2},
    'intervals that change': {'train_cfg.dynamic_intervals': [(1, 2)]},
    'checkpoints by step': {'default_hooks.checkpoint.by_epoch': False, 'default_hooks.checkpoint.interval': 3},
    'all checkpoints kept': {'default_hooks.checkpoint.max_keep_ckpts': -1},
    'no last checkpoint': {'default_hooks.checkpoint.interval': 3, 'default_hooks.checkpoint.save_last': False},
    'no moving average': lambda cfg: cfg.default_hooks.pop('ema'),
    'activation checkpointing': {'activation_checkpointing': ['backbone.layers.0']},
    'warm-up, cosine and milestones at once': rates(
        dict(type='LinearLR', start_factor=0.1, end=3, by_epoch=False),
        dict(type='CosineAnnealingLR', begin=1, T_max=2, convert_to_iter_based=True),
        dict(type='MultiStepLR', begin=1, milestones=[0, 5])),
    'restarts': rates(dict(
        type='CosineRestartLR', periods=[1, 3], restart_weights=[1, 0.5], eta_min=1e-6, by_epoch=False)),
    'one cycle': rates(dict(type='OneCycleLR', eta_max=1e-3, total_steps=4, by_epoch=False)),
    'momentum': rates(dict(type='LinearMomentum', start_factor=0.5, end=3, by_epoch=False)),
    'a rate that waits for AP': plateau,
    'no schedule': {'param_scheduler': None},
    'accumulated by iterations': accumulated_by_iterations,
    'an average from an epoch on': late_average,
    'several best checkpoints of other names': several_best,
    'environment, log by iterations, no timer': {
        'find_unused_parameters': True, 'env_cfg.cudnn_benchmark': True, 'env_cfg.mp_cfg.opencv_num_threads': 2,
        'log_processor': dict(by_epoch=False, window_size=2), 'default_hooks.logger.interval': 2,
        'default_hooks.timer': None},
    'priorities, hooks of mmdet and mmengine': more_hooks,
    'published checkpoints, the first late': {
        'default_hooks.checkpoint.published_keys': ['meta', 'state_dict'], 'default_hooks.checkpoint.save_begin': 2},
    'the best by a metric that mmengine chooses': {'default_hooks.checkpoint.save_best': 'auto'},
    'no checkpoints': {'default_hooks.checkpoint': None},
    'fewer batches in an epoch': {'train_dataloader.num_batch_per_epoch': 1},
    'images by class': {'train_dataloader.sampler': dict(_delete_=True, type='ClassAwareSampler')},
    'stochastic weight averaging': {'default_hooks.ema': dict(
        _delete_=True, type='EMAHook', ema_type='StochasticWeightAverage')},
    "mmengine's constructor": {'optim_wrapper.constructor': 'DefaultOptimWrapperConstructor',
                               'optim_wrapper.paramwise_cfg': dict(_delete_=True, norm_decay_mult=0.0)},
    'clipped values': {'optim_wrapper.clip_grad': dict(_delete_=True, type='value', clip_value=0.1)},
}

#: Settings that do not meet share a training: each of them takes seconds. All others have one of their own.
TOGETHER = [
    ('no shuffling', 'SGD', 'all checkpoints kept', 'no batch sampler'),
    ('no clipping', 'no moving average', 'the last batch is dropped'),
    ('first evaluation late', "mmengine's constructor", 'activation checkpointing'),
    ('RepeatDataset', 'published checkpoints, the first late', 'momentum'),
    ('ClassBalancedDataset', 'clipped values', 'no last checkpoint'),
    ('no schedule', 'the best by a metric that mmengine chooses', 'images by class'),
    ('MultiImageMixDataset', 'restarts', 'stochastic weight averaging'),
    ('ConcatDataset', 'two metrics', 'checkpoints by step'),
    ('fewer batches in an epoch', 'priorities, hooks of mmdet and mmengine', 'an average from an epoch on'),
]
TRAININGS = TOGETHER + [(name,) for name in SETTINGS if not any(name in names for names in TOGETHER)]


class Watch(Hook):
    """Record what a training does."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.steps, self.evaluations = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        rates = sorted({value for group in runner.optim_wrapper.optimizer.param_groups
                        for value in (group['lr'], group.get('momentum', 0))})
        images = [(sample.img_path, sample.img_shape) for sample in data_batch['data_samples']]
        self.steps.append((runner.epoch, runner.iter, images, [f'{rate:.9g}' for rate in rates]))

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.evaluations.append((runner.epoch, runner.iter, sorted(metrics)))


def trained(cfg: Config) -> tuple:
    watch = Watch()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(watch)
    runner.train()
    close_workers(runner)
    folder = Path(cfg.work_dir)
    scalars = [json.loads(line) for path in folder.glob('*/vis_data/scalars.json') for line in path.open()]
    files = {re.sub('-[0-9a-f]{8}', '', path.name) for path in folder.glob('*.pth')
             if not path.name.startswith('best_')}  # AP is at random here
    return watch.steps, watch.evaluations, files, [row['step'] for row in scalars], hasattr(runner, 'ema_model')


@pytest.mark.parametrize('names', TRAININGS, ids=', '.join)
def test_same_as_plain(names, mini_scannet, monkeypatch, tmp_path):
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    outcomes = []
    for kind in ('plain', 'ours'):
        cfg = tiny_config(tmp_path / kind, {'train_dataloader.dataset.indices': 4})
        cfg.visualizer.name = cfg.experiment_name  # mmengine would go on with that of the first training
        for change in map(SETTINGS.get, names):
            change(cfg) if callable(change) else cfg.merge_from_dict(change)
        if kind == 'plain':
            if cfg.train_cfg['type'] == 'ResumableTrainLoop':
                cfg.train_cfg['type'] = 'EpochBasedTrainLoop'
            own = {'PreflightHook', 'PretrainedCheckHook', 'ClassCheckHook', 'NonFiniteHook', 'HintHook'}
            cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook['type'] not in own]
            for hook in ('preemption', 'record'):
                del cfg.default_hooks[hook]
            if cfg.default_hooks.checkpoint:
                cfg.default_hooks.checkpoint.type = 'CheckpointHook'
            cfg.default_hooks.visualization.type = 'DetVisualizationHook'
        outcomes.append(trained(cfg))
    plain, ours = outcomes
    for part, one, other in zip(('steps', 'evaluations', 'files', 'log', 'average'), plain, ours, strict=True):
        assert one == other, part
    assert plain[0]
