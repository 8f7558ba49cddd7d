"""An interrupted training, continued, is the training that was not interrupted: to the last bit."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time

import pytest
import torch
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader

from deit_detr.checkpoints import safe_loading
from deit_detr.command_line import run_cli
from deit_detr.engine.resume.choice import resume_newest
from deit_detr.engine.resume.preemption import PreemptionHook
from deit_detr.engine.resume.train_loop import seeded_loader
from deit_detr.errors import UserError
from tests.helpers.checkpoint_reads import count_reads
from tests.helpers.interruptions import InterruptHook
from tests.helpers.paths import REPO
from tests.helpers.tiny_training import assert_same_training, differences, read_log, tiny_config, train, turn_half

LAST = 'epoch_2.pth'


@pytest.fixture(scope='module')
def rooms(mini_scannet, tmp_path_factory):
    return turn_half(mini_scannet, tmp_path_factory.mktemp('turned'))


@pytest.fixture(autouse=True)
def this_data(rooms, monkeypatch):
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{rooms}/')


@pytest.fixture(scope='module')
def uninterrupted(rooms, tmp_path_factory):
    """A work folder and the log of a training of two epochs of four steps."""
    work_dir = tmp_path_factory.mktemp('reference') / 'work'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MINI_SCANNET_ROOT', f'{rooms}/')
        log = train(tiny_config(work_dir))
    assert len(log.losses) == 8
    return work_dir, log


@pytest.fixture
def started(uninterrupted, tmp_path):
    """A copy of the finished training's work folder, to damage."""
    return shutil.copytree(uninterrupted[0], tmp_path / 'work')


@pytest.mark.slow
@pytest.mark.parametrize(
    'interrupt, workers, done',
    [
        (dict(step=3, number='SIGUSR1'), 0, 3),
        (dict(step=4, number='SIGTERM'), 2, 4),  # the last one of its epoch
        (dict(step=3, number='SIGTERM', when='val'), 0, 4),  # when the moving average is in the model's place
    ],
    ids=['in_an_epoch', 'at_its_end_with_workers', 'in_an_evaluation'])
def test_preempted_training_is_the_same(interrupt, workers, done, uninterrupted, tmp_path):
    work_dir, whole = uninterrupted
    options = {'train_dataloader.num_workers': workers, 'train_dataloader.persistent_workers': workers > 0}
    first = train(tiny_config(tmp_path / 'work', options), InterruptHook(**interrupt))
    assert first.status == 75
    assert len(first.losses) == done and (tmp_path / f'work/preempted_iter_{done}.pth').is_file()

    second = train(tiny_config(tmp_path / 'work', options, resume=True))
    assert second.status == 0
    assert first.images + second.images == whole.images
    assert first.losses + second.losses == whole.losses
    assert_same_training(work_dir / LAST, tmp_path / 'work' / LAST)
    names = {path.name for path in work_dir.glob('*.pth')}
    assert names == {path.name for path in (tmp_path / 'work').glob('*.pth')}, 'no evaluation is lost'


@pytest.mark.slow
@pytest.mark.parametrize(
    'interrupt', [dict(step=6, group=True), dict(step=8, when='write')], ids=['in_an_epoch', 'in_a_checkpoint'])
def test_killed_training_continues_from_its_last_epoch(interrupt, uninterrupted, tmp_path, run):
    work_dir, whole = uninterrupted
    cfg = tiny_config(tmp_path / 'work')
    cfg.custom_hooks = [dict(type='InterruptHook', **interrupt)]
    cfg.custom_imports.imports.append('tests.helpers.interruptions')
    cfg.dump(tmp_path / 'killed.py')
    run('setsid', '--wait', sys.executable, REPO / 'tools/train.py', tmp_path / 'killed.py', '--work-dir',
        tmp_path / 'work', status=-9, OMP_NUM_THREADS=1,
        PYTHONPATH=os.pathsep.join([str(REPO), os.environ.get('PYTHONPATH', '')]))
    assert not (tmp_path / 'work' / LAST).exists()

    log = train(tiny_config(tmp_path / 'work', resume=True))
    assert log.losses == whole.losses[4:]
    assert_same_training(work_dir / LAST, tmp_path / 'work' / LAST)
    assert not list((tmp_path / 'work').glob('.*')), 'nothing half-written is left'


@pytest.mark.slow
@pytest.mark.parametrize('damage', ['cut in half', 'one byte', 'empty'])
def test_damaged_checkpoint_is_named_and_the_one_before_resumed(damage, uninterrupted, started):
    content = bytearray((started / LAST).read_bytes())
    if damage == 'one byte':
        content[len(content) // 2] ^= 1
    (started / LAST).write_bytes(dict({'cut in half': content[: len(content) // 2], 'empty': b''}).get(damage, content))
    log = train(tiny_config(started, resume=True))
    (warning,) = [line for line in read_log(started).splitlines() if 'not resumed' in line]
    assert f'{started / LAST}: ' in warning
    assert log.losses == uninterrupted[1].losses[4:]
    assert_same_training(uninterrupted[0] / LAST, started / LAST)


@pytest.mark.slow
def test_no_whole_checkpoint_is_an_error_and_none_at_all_a_start(started, tmp_path):
    for path in started.glob('*.pth'):
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r'no checkpoint to resume is whole: .*epoch_1.pth.*epoch_2.pth'):
        train(tiny_config(started, resume=True))
    log = train(tiny_config(tmp_path / 'fresh', {'train_cfg.max_epochs': 1, 'val_cfg': None, 'val_dataloader': None,
                                                'val_evaluator': None}, resume=True))
    assert len(log.losses) == 4 and 'starts from the beginning' in read_log(tmp_path / 'fresh')


@pytest.mark.slow
def test_finished_training_says_so_and_does_nothing(started):
    before = {path: path.stat().st_mtime_ns for path in started.glob('*.pth')}
    assert train(tiny_config(started, resume=True)).losses == []
    assert 'this training is finished: 2 of 2 epochs' in read_log(started)
    assert before == {path: path.stat().st_mtime_ns for path in started.glob('*.pth')}


@pytest.mark.slow
def test_full_disk_keeps_what_was_written(uninterrupted, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(SystemExit) as end:
            run_cli(lambda: train(tiny_config(tmp_path / 'work'), InterruptHook(step=8, when='full')) and None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert end.value.code == 2
    assert f'error: {tmp_path}/work/epoch_2.pth: cannot be written (File too large)' in capsys.readouterr().err
    log = train(tiny_config(tmp_path / 'work', resume=True))
    assert log.losses == uninterrupted[1].losses[4:]
    assert_same_training(uninterrupted[0] / LAST, tmp_path / 'work' / LAST)


@pytest.mark.slow
@pytest.mark.parametrize(
    'options, message',
    [
        ({'model.num_queries': 30}, r'epoch_1.pth: does not fit the model: .*of another shape \(.*quer.*load_from='),
        ({'optim_wrapper.paramwise_cfg': dict(_delete_=True)}, 'optim_wrapper.paramwise_cfg has to be as it was'),
    ])
def test_what_does_not_fit_is_not_resumed(options, message, started):
    with pytest.raises(UserError, match=message):
        train(tiny_config(started, options, resume=str(started / 'epoch_1.pth')))


@pytest.mark.slow
@pytest.mark.parametrize('chosen, headers', [('epoch_2.pth', 0), ('auto', 3)])
def test_checkpoint_is_read_once(chosen, headers, started, monkeypatch):
    reads = count_reads(monkeypatch)
    train(tiny_config(started, resume=True if chosen == 'auto' else str(started / chosen)))
    assert (reads['whole'], reads['checksum'], reads['header']) == (1, 1, headers)
    assert safe_loading._kept is None


@pytest.mark.slow
def test_changed_config_is_named(started):
    options = {'optim_wrapper.optimizer.lr': 0.5, 'train_cfg.max_epochs': 1}
    train(tiny_config(started, options, resume=str(started / 'epoch_1.pth')))
    log = read_log(started)
    assert 'optim_wrapper: + ' in log and 'lr=0.5' in log and 'train_cfg: - ' in log
    assert 'optim_wrapper.optimizer: lr stays 0.0004, the config has 0.5' in log
    assert 'model: ' not in log.split('the config is not the one')[1].split(' - mmengine - ')[0]


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_preempted_training_is_the_same_across_a_switch_of_the_pipeline(workers, uninterrupted, tmp_path):
    options = {'train_dataloader.num_workers': workers, 'train_dataloader.persistent_workers': workers > 0}

    def config(name: str, resume: bool = False):
        cfg = tiny_config(tmp_path / name, options, resume)
        stage2 = [step for step in cfg.train_dataloader.dataset.pipeline if 'Flip' not in step.type]
        stage2[[step.type for step in stage2].index('PackDetInputs')].meta_keys = ('img_path', 'img_shape')
        stage2.insert(-1, dict(type='Resize', scale=(64, 64)))
        cfg.custom_hooks.append(dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=stage2))
        return cfg

    whole = train(config('whole'))
    assert whole.images == uninterrupted[1].images and whole.losses[:4] == uninterrupted[1].losses[:4]
    assert not set(whole.losses[4:]) & set(uninterrupted[1].losses[4:]), 'the second epoch has the other pipeline'
    first = train(config('work'), InterruptHook(step=6, number='SIGTERM'))
    second = train(config('work', resume=True))
    assert first.losses + second.losses == whole.losses
    assert_same_training(tmp_path / 'whole' / LAST, tmp_path / 'work' / LAST)


@pytest.mark.parametrize('workers', [0, 1])
def test_hooks_have_the_data_set_and_the_loader_of_mmengine(workers):
    dataset = Sizes()
    plain = DataLoader(
        dataset, sampler=DefaultSampler(dataset, shuffle=False), batch_size=2, num_workers=workers, collate_fn=list)
    loader = seeded_loader(plain)
    list(loader)
    assert loader.dataset is dataset and isinstance(loader, DataLoader)
    changed = [name for name, value in vars(plain).items() if vars(loader)[name] is not value]
    assert changed == ['batch_sampler'] and len(loader) == len(plain)
    loader.dataset.offset = 100  # as a hook that changes the augmentation between two epochs
    assert [row[0] for batch in loader for row in batch] == list(range(100, 123))


#: The data of TINY without an evaluation, one epoch.
SHORT = {'train_cfg.max_epochs': 1, 'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None}


@pytest.mark.slow
@pytest.mark.parametrize('hook', ['SafeCheckpointHook', 'CheckpointHook'])
def test_first_start_loads_and_later_ones_resume(hook, uninterrupted, tmp_path):
    start = uninterrupted[0] / 'epoch_1.pth'

    def config(name: str, epochs: int, resume: bool):
        cfg = tiny_config(
            tmp_path / name,
            {**SHORT, 'train_cfg.max_epochs': epochs, 'default_hooks.checkpoint': dict(type=hook, interval=1),
             'default_hooks.checkpoint._delete_': True})
        cfg.load_from = str(start)
        if resume:
            resume_newest(cfg)
        return cfg

    plain = train(config('plain', 2, False))
    first = train(config('work', 1, True))
    safe = hook == 'SafeCheckpointHook'
    assert (f'no checkpoint to resume, the training starts with the weights of load_from={start}' in read_log(
        tmp_path / 'work')) == safe
    second = train(config('work', 2, True))
    assert first.losses == plain.losses[:4] != uninterrupted[1].losses[:4]
    assert len(second.losses) == 4
    if safe:
        assert second.losses == plain.losses[4:]
        assert f'work/epoch_1.pth: the training continues; load_from={start} was for its first' in read_log(
            tmp_path / 'work')


@pytest.mark.slow
def test_train_py_keeps_load_from_for_the_first_start(uninterrupted, tmp_path, run):
    tiny_config(tmp_path / 'work', SHORT).dump(tmp_path / 'short.py')
    start = uninterrupted[0] / 'epoch_1.pth'
    for words in (f'Load checkpoint from {start}', 'work/epoch_1.pth: the training continues; load_from='):
        assert words in run(
            sys.executable, REPO / 'tools/train.py', tmp_path / 'short.py', '--work-dir', tmp_path / 'work',
            '--resume', '--cfg-options', f'load_from={start}', OMP_NUM_THREADS=1)


@pytest.mark.parametrize('files, last', [([], '--amp'), (['last_checkpoint'], '--resume'),
                                         (['preempted_iter_3.pth'], '--resume')])
def test_slurm_names_the_first_checkpoint_again_until_there_is_another(files, last, run, tmp_path):
    (tmp_path / 'srun').write_text('#!/bin/sh\necho "last: $(eval echo \\${$#})"\n')
    (tmp_path / 'srun').chmod(0o755)
    (tmp_path / 'work').mkdir()
    for name in files:
        (tmp_path / 'work' / name).touch()
    output = run(
        'bash', REPO / 'tools/slurm_train.sh', 'gpu', 'job', 'config.py', tmp_path / 'work', '--resume', 'other.pth',
        '--amp', PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}', SLURM_RESTART_COUNT=1)
    assert f'last: {last}' in output


#: Another rate, decay and schedule; the warm-up counts steps, the milestones epochs.
CHANGED = {
    'optim_wrapper.optimizer.lr': 1e-3, 'optim_wrapper.optimizer.weight_decay': 0.5,
    'param_scheduler.0.end': 6, 'param_scheduler.1.milestones': [1]}


@pytest.mark.slow
def test_settings_of_the_config_are_applied_on_demand(uninterrupted, tmp_path):
    take = {'default_hooks.checkpoint.resume_hyperparameters': False}
    train(tiny_config(tmp_path / 'work'), InterruptHook(step=6, number='SIGTERM'))
    shutil.copytree(tmp_path / 'work', tmp_path / 'same')
    shutil.copytree(tmp_path / 'work', tmp_path / 'kept')

    train(tiny_config(tmp_path / 'same', take, resume=True))
    assert_same_training(uninterrupted[0] / LAST, tmp_path / 'same' / LAST)

    train(tiny_config(tmp_path / 'kept', CHANGED, resume=True))
    words = read_log(tmp_path / 'kept')
    for field, name, old, new in (
            ('optim_wrapper.optimizer', 'lr', 0.0004, 0.001), ('optim_wrapper.optimizer', 'weight_decay', 0.0001, 0.5),
            ('param_scheduler.0', 'end', 50, 6), ('param_scheduler.1', 'milestones', [14], [1])):
        line = f'{field}: {name} stays {old}, the config has {new}'
        assert words.index(line) < words.index('Epoch(train)')

    log = train(tiny_config(tmp_path / 'work', CHANGED | take, resume=True))
    assert 'stays' not in read_log(tmp_path / 'work')
    train(tiny_config(tmp_path / 'whole', CHANGED))
    changed, whole = (torch.load(tmp_path / name / LAST, weights_only=True) for name in ('work', 'whole'))
    assert len(log.losses) == 2 and not differences(changed['param_schedulers'], whole['param_schedulers'])
    for part in ('param_groups', 'base_param_settings'):
        assert not differences(changed['optimizer'][part], whole['optimizer'][part])
    assert {int(state['step']) for state in changed['optimizer']['state'].values()} == {8}, 'the moments are kept'


class Sizes(torch.utils.data.Dataset):
    """Random numbers in the place of images, upright or not."""

    def get_data_info(self, index: int) -> dict:
        return dict(width=2 + index % 3, height=3)

    def __len__(self) -> int:
        return 23

    offset = 0

    def __getitem__(self, index: int) -> tuple:
        return index + self.offset, random.random(), torch.rand(1).item()


@pytest.mark.parametrize('workers', [0, 2])
def test_any_batch_can_be_the_first(workers):
    dataset = Sizes()
    plain = DataLoader(
        dataset, num_workers=workers, collate_fn=list, persistent_workers=workers > 0,
        batch_sampler=AspectRatioBatchSampler(DefaultSampler(dataset, seed=3), batch_size=4))
    loader = seeded_loader(plain)
    loader.batch_sampler.epoch = 5
    loader.batch_sampler.sampler.set_epoch(5)
    whole = list(loader)
    assert [[row[0] for row in batch] for batch in whole] == [[row[0] for row in batch] for batch in plain]
    for start in range(len(whole) + 1):
        loader.batch_sampler.start = start
        next(iter(loader), None)  # an epoch that is not finished leaves nothing behind
        assert list(loader) == whole[start:]
    loader.batch_sampler.epoch, loader.batch_sampler.start = 6, 0
    assert [row[1:] for batch in loader for row in batch] != [row[1:] for batch in whole for row in batch]


@pytest.mark.parametrize('pause, ends', [(1.2, signal.SIGTERM), (0.0, 0)], ids=['later', 'same one passed on'])
def test_second_signal_ends_the_process_at_once(pause, ends):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, PreemptionHook()._ask)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(pause)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -ends


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(tmp_path, run):
    run(sys.executable, REPO / 'tests/helpers/processes/resume.py', CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS=1)
    both = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(2)]
    for losses in both:
        assert losses['first'] == [75, losses['whole'][1][:2]], 'asked after step 1, agreed after step 2'
        assert losses['second'] == [0, losses['whole'][1][2:]]
    assert both[0]['whole'] != both[1]['whole'], 'each process has its own images'
    assert_same_training(tmp_path / 'trainings/whole/epoch_1.pth', tmp_path / 'trainings/work/epoch_1.pth')
