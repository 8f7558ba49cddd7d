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
from deit_detr.engine.resume.preemption import PreemptionHook
from deit_detr.engine.resume.train_loop import seeded_loader
from deit_detr.errors import UserError
from tests.helpers.checkpoint_reads import count_reads
from tests.helpers.interruptions import InterruptHook
from tests.helpers.paths import REPO
from tests.helpers.tiny_training import assert_same_training, read_log, tiny_config, train, turn_half

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
    assert 'model: ' not in log.split('the config is not the one')[1].split(' - mmengine - ')[0]


class Sizes(torch.utils.data.Dataset):
    """Random numbers in the place of images, upright or not."""

    def get_data_info(self, index: int) -> dict:
        return dict(width=2 + index % 3, height=3)

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple:
        return index, random.random(), torch.rand(1).item()


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
