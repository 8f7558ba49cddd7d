"""Preflight draws the learning rates with mmengine's schedulers and names what a schedule never reaches."""

import sys
import time
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.optim.scheduler import ConstantLR
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from torch.utils.data import DataLoader

from deit_detr.engine.start.findings import OK, UNKNOWN, WARN
from deit_detr.engine.start.schedule import check_schedule
from deit_detr.errors import UserError
from tests.helpers.paths import REPO
from tests.helpers.tiny_training import RECIPE, read_log, tiny_config, train


def check(schedulers, length: int = 100, rates: tuple = (1e-4,), **train_cfg) -> tuple[str, str]:
    init_default_scope('mmdet')
    cfg = Config(dict(train_cfg=train_cfg or dict(max_epochs=12), param_scheduler=schedulers))
    return check_schedule(cfg, list(rates), range(length))


def milestones(*values: int, **more) -> dict:
    return dict(type='MultiStepLR', milestones=list(values), **more)


def warm_up(**more) -> dict:
    return dict(type='LinearLR', start_factor=0.01, **more)


@pytest.mark.parametrize('schedulers, train_cfg, drawn', [
    ([milestones(8, 11)], {}, 'lr 0.0001 at the start, 1e-05 after 8 epochs, 1e-06 after 11 epochs'),
    ([warm_up(end=50, by_epoch=False), milestones(8)], {},
     'lr 1e-06 at the start, rises to 0.0001 after 49 iterations, 1e-05 after 8 epochs'),
    ([milestones(80, begin=5)], dict(max_epochs=100), 'lr 0.0001 at the start, 1e-05 after 85 epochs'),
    (milestones(600, by_epoch=False), dict(type='IterBasedTrainLoop', max_iters=1000),
     'lr 0.0001 at the start, 1e-05 after 600 iterations'),
    ([dict(type='CosineAnnealingLR', T_max=12, eta_min=9e-5, convert_to_iter_based=True)], {},
     'lr 0.0001 at the start, falls to 9e-05 after 1199 iterations'),
    ([warm_up(end=50, by_epoch=False), dict(
        type='CosineAnnealingLR', begin=6, eta_min_ratio=0.5, convert_to_iter_based=True)], {},  # flat, then a cosine
     'lr 1e-06 at the start, rises to 0.0001 after 49 iterations, stays until 6 epochs, falls to '),
    ([], {}, 'lr 0.0001 at the start'),
    ([dict(type='ReduceOnPlateauLR', monitor='coco/bbox_mAP')], {}, 'lr 0.0001 at the start; ReduceOnPlateau may'),
])
def test_turning_points(schedulers, train_cfg, drawn):
    status, message = check(schedulers, **train_cfg)
    assert (status, message[:len(drawn)]) == (OK, drawn)


@pytest.mark.parametrize('schedulers, train_cfg, words', [
    ([milestones(80, begin=5)], dict(max_epochs=84),
     'param_scheduler.0 (MultiStepLR) never reaches milestones 80: counted from begin=5, that is epoch 85; the '
     'training ends at epoch 84: lower milestones'),
    ([milestones(8, 12)], {}, 'never reaches milestones 12; the training ends at epoch 12'),
    ([milestones(8, 11, end=10)], {},
     'milestones 11; the scheduler ends at epoch 10: lower milestones or raise its end'),
    ([milestones(60000)], {}, 'milestones 60000; the training ends at epoch 12'),
    ([milestones(8, begin=6, convert_to_iter_based=True)], {}, 'milestones 8: counted from begin=6, that is epoch 14'),
    ([milestones(600)], dict(max_iters=1000),
     'counts epochs, and a training with train_cfg.max_iters has only one: set its by_epoch=False'),
    ([dict(type='StepLR', step_size=30)], {}, 'param_scheduler.0 (StepLR) never reaches step_size 30'),
    ([milestones(8), warm_up(by_epoch=False)], {},
     'param_scheduler.1 (LinearLR) warms up until iteration 1200, the training ends at iteration 1200: set its end'),
    ([warm_up()], {}, 'warms up until epoch 12'),
    ([dict(type='ConstantLR', factor=0.1, by_epoch=False, end=5000)], {}, '(ConstantLR) warms up until iteration 5000'),
    ([dict(type='QuadraticWarmupLR', end=20, convert_to_iter_based=True)], {}, 'warms up until epoch 20'),
    ([dict(type='CosineAnnealingLR', begin=12, end=20, T_max=8)], {},
     'param_scheduler.0 (CosineAnnealingLR) begins at epoch 12, but the training ends at epoch 12: lower its begin'),
])
def test_what_never_happens_is_named(schedulers, train_cfg, words):
    status, message = check(schedulers, **train_cfg)
    assert status == WARN and words in message and ' at the start' in message, message


def test_schedules_that_end_low_on_purpose_are_fine():
    for schedulers in ([dict(type='LinearLR', start_factor=1.0, end_factor=0.1)],
                       [dict(type='ConstantLR', factor=1.0, begin=10)], [milestones(0, begin=11)]):
        assert check(schedulers)[0] == OK


def test_configs_of_mmdet_have_no_dead_schedules():
    """No false alarm: of mmdet's own recipes, only those are named whose milestones are indeed beyond the end."""
    folder = Path(mmdet.__file__).parent / '.mim/configs'
    if not folder.is_dir():
        pytest.skip('this mmdet comes without its configs')
    found = {}
    for path in [*folder.glob('_base_/schedules/*.py'), *folder.glob('rtmdet/*_8xb*.py'), *folder.glob('yolox/*.py'),
                 *folder.glob('*detr*/*.py'), *folder.glob('dino/*.py'), *folder.glob('mask2former/*.py')]:
        cfg = Config.fromfile(path)
        if cfg.get('train_cfg') and cfg.get('param_scheduler'):
            init_default_scope('mmdet')
            status, message = check_schedule(Config(dict(
                train_cfg=cfg.train_cfg, param_scheduler=cfg.param_scheduler)), [1e-4], range(7330))
            found[path.name] = message if status != OK else ''
    assert len(found) > 30
    assert not {name: message for name, message in found.items() if message}


def test_long_trainings_are_drawn_in_a_moment():
    begin = time.process_time()
    status, message = check([warm_up(end=500, by_epoch=False), milestones(100)], 25000, max_epochs=150)
    assert status == OK and message.endswith('1e-05 after 100 epochs')
    status, message = check(
        [dict(type='CosineAnnealingLR', T_max=150, convert_to_iter_based=True)], 25000, max_epochs=150)
    assert status == OK and 'after 149 epochs' in message and 'drawn for' not in message
    status, message = check([dict(type='PolyLR', by_epoch=False)], max_iters=10**7)
    assert status == OK and message.endswith('(drawn for 100000 of 10000000 iterations)')
    assert time.process_time() - begin < 20


def test_what_cannot_be_built_names_its_field():
    with pytest.raises(UserError, match=r'param_scheduler.1 \(LinearLR\) cannot be built: .*end should be larger'):
        check([milestones(8), warm_up(begin=5, end=4)])
    assert check([milestones(8)], type='OwnLoop')[0] == UNKNOWN


@pytest.mark.slow
def test_rates_are_those_in_force(mini_scannet, monkeypatch, tmp_path, run):
    """Half of the recipe's 4 images per update; the training and the tool say the same."""
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    options = {
        'train_cfg.max_epochs': 3, 'param_scheduler': [milestones(1, begin=1), milestones(5)],
        'train_dataloader.batch_size': 1, 'optim_wrapper.accumulative_counts': 2, 'auto_scale_lr.enable': True,
        'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None, 'optim_wrapper.optimizer.lr': 0.008}
    tiny_config(tmp_path / 'work', options).dump(tmp_path / 'short.py')
    for command in (('preflight.py',), ('train.py', '--auto-scale-lr')):
        output = run(sys.executable, REPO / 'tools' / command[0], tmp_path / 'short.py', '--work-dir',
                     tmp_path / 'work', *command[1:], OMP_NUM_THREADS=1)
        (line,) = [line for line in output.splitlines() if line.startswith('schedule ')]
        assert ' '.join(line.split()) == (
            'schedule warn param_scheduler.1 (MultiStepLR) never reaches milestones 5; the training ends at epoch 3: '
            'lower milestones; lr 0.004 at the start, 0.0004 after 2 epochs; parameter groups have 0.5 to 1 times '
            'that; scaled by auto_scale_lr for 2 images per update')


@PARAM_SCHEDULERS.register_module()
class AdamOnly(ConstantLR):
    """A scheduler of a user that does not work on the optimizer that preflight takes."""

    def __init__(self, optimizer, **kwargs) -> None:
        assert isinstance(optimizer.optimizer, torch.optim.AdamW)
        super().__init__(optimizer, **kwargs)


@pytest.mark.slow
def test_a_scheduler_that_cannot_be_drawn_stops_no_training(mini_scannet, monkeypatch, tmp_path):
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    options = {'train_cfg.max_epochs': 1, 'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None,
               'param_scheduler': [dict(type='AdamOnly', end=1)]}
    assert len(train(tiny_config(tmp_path / 'work', options)).losses) == 4
    assert 'unknown  not drawn: param_scheduler.0 (AdamOnly) cannot be built' in read_log(tmp_path / 'work')


def test_augmentation_that_never_stops_is_named(mini_scannet):
    init_default_scope('mmdet')
    cfg = Config.fromfile(RECIPE)
    cfg.train_dataloader.dataset.update(data_root=f'{mini_scannet}/', augment=dict(mosaic=0.5, photometric=0.5))
    loader = DataLoader(DATASETS.build(cfg.train_dataloader.dataset))
    assert check_schedule(cfg, [1e-4], loader)[0] == OK
    assert check_schedule(cfg, [1e-4], loader)[1].endswith('; mosaic until 8 epochs; photometric until 15 epochs')
    cfg.train_cfg.type = 'EpochBasedTrainLoop'
    status, message = check_schedule(cfg, [1e-4], loader)
    assert status == WARN and message.startswith('augment never stops: only ResumableTrainLoop')
