"""The command lines, run for real on rendered rooms."""

import os
import stat
import sys

import pytest
import torch
from conftest import REPO

TOOLS = REPO / 'tools'
CONFIG = REPO / 'projects/deit_detr/configs/detr_deit-tiny_1xb8-50e_mini-scannet.py'
#: A model and a run of seconds, from the same recipe.
SMALL = [
    '--cfg-options', 'model.backbone.init_cfg=None', 'model.encoder.num_layers=1', 'model.decoder.num_layers=1',
    'train_dataloader.batch_size=4', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False', 'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False', 'train_cfg.val_interval=1', 'default_hooks.logger.interval=1',
]  # fmt: skip


@pytest.fixture(scope='module')
def trained(mini_scannet, tmp_path_factory):
    """A work folder after one epoch of train.py, and what it printed."""
    import subprocess

    work_dir = tmp_path_factory.mktemp('trained')
    output = subprocess.run(
        [sys.executable, TOOLS / 'train.py', CONFIG, '--work-dir', work_dir, *SMALL, 'train_cfg.max_epochs=1'],
        cwd=work_dir, env=os.environ | {'MINI_SCANNET_ROOT': f'{mini_scannet}/'}, check=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    return work_dir, output


def test_train_writes_checkpoints_and_a_readable_log(trained):
    work_dir, output = trained
    assert (work_dir / 'epoch_1.pth').is_file()
    assert list(work_dir.glob('best_coco_bbox_mAP_epoch_1.pth'))
    assert list(work_dir.glob('*/vis_data/events.out.tfevents*')), 'TensorBoard logging is on'
    assert 'paramwise_options' not in output
    assert 'no part of the model is pretrained' in output
    assert 'coco/wall_precision' in output


def test_checkpoint_loads_with_weights_only(trained):
    work_dir, _ = trained
    checkpoint = torch.load(work_dir / 'epoch_1.pth', weights_only=True)
    assert {'state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta'} <= set(checkpoint)


def test_resume_continues_after_the_last_epoch(trained, mini_scannet, run, tmp_path):
    work_dir, _ = trained
    env = dict(MINI_SCANNET_ROOT=f'{mini_scannet}/')
    output = run(
        sys.executable, TOOLS / 'train.py', CONFIG, '--work-dir', tmp_path, '--resume', work_dir / 'epoch_1.pth',
        *SMALL, 'train_cfg.max_epochs=2', **env)
    assert 'resumed epoch: 1' in output
    assert 'Epoch(train) [2]' in output and 'Epoch(train) [1]' not in output
    auto = run(sys.executable, TOOLS / 'train.py', CONFIG, '--work-dir', tmp_path, '--resume', *SMALL,
               'train_cfg.max_epochs=3', **env)
    assert 'resumed epoch: 2' in auto


def test_test_evaluates_and_draws(trained, mini_scannet, run, tmp_path):
    work_dir, trained_output = trained
    output = run(
        sys.executable, TOOLS / 'test.py', CONFIG, work_dir / 'epoch_1.pth', '--work-dir', tmp_path, '--out',
        tmp_path / 'predictions.pkl', '--show-dir', 'pictures', *SMALL, MINI_SCANNET_ROOT=f'{mini_scannet}/')

    def mean_ap(text):
        return text.rsplit('coco/bbox_mAP: ', 1)[1].split()[0]

    assert mean_ap(output) == mean_ap(trained_output)
    assert len(list(tmp_path.glob('*/pictures/*.jpg'))) == 4
    assert (tmp_path / 'predictions.pkl').is_file()


def test_mim_trains_and_tests_from_another_folder(trained, mini_scannet, run, tmp_path):
    """`mim` runs mmdet's own scripts: the installed package is all that brings this project along."""
    pytest.importorskip('mim')
    work_dir, _ = trained
    env = dict(MINI_SCANNET_ROOT=f'{mini_scannet}/')
    mim = [sys.executable, '-m', 'mim']
    run(*mim, 'train', 'mmdet', CONFIG, '--gpus', 0, '--work-dir', tmp_path / 'mim', '--resume',
        work_dir / 'epoch_1.pth', *SMALL, 'train_cfg.max_epochs=2', **env)
    assert (tmp_path / 'mim/epoch_2.pth').is_file()
    output = run(*mim, 'test', 'mmdet', CONFIG, '--checkpoint', tmp_path / 'mim/epoch_2.pth', '--gpus', 0,
                 '--work-dir', tmp_path / 'mim', *SMALL, **env)
    assert 'coco/bbox_mAP' in output


@pytest.mark.parametrize(
    'command, message',
    [
        (['train.py', 'missing.py'], 'missing.py: no such config file'),
        (['train.py', CONFIG, *SMALL, 'train_dataloader.dataset.ann_file=gone.json'], 'gone.json: no such annotation'),
        (['test.py', CONFIG, 'missing.pth'], 'missing.pth: no such checkpoint'),
        (['train.py', CONFIG, '--amp', *SMALL], '--amp needs a GPU'),
    ],
    ids=['config', 'annotations', 'checkpoint', 'amp'])
def test_bad_input_ends_in_one_line(command, message, mini_scannet, run):
    if '--amp' in command and torch.cuda.is_available():
        pytest.skip('a GPU is there')
    output = run(
        sys.executable, TOOLS / command[0], *command[1:], status=2, MINI_SCANNET_ROOT=f'{mini_scannet}/')
    error = [line for line in output.splitlines() if line.startswith('error: ')]
    assert len(error) == 1 and message in error[0]
    assert 'Traceback' not in output


@pytest.mark.parametrize('script', sorted(path.name for path in TOOLS.glob('**/*.py')))
def test_help_has_an_example(script, run):
    (path,) = TOOLS.glob(f'**/{script}')
    output = run(sys.executable, path, '--help')
    assert f'python tools/{path.relative_to(TOOLS)}' in output


def fake_nvidia_smi(folder, lines: list[str], status: int = 0):
    script = folder / 'nvidia-smi'
    script.write_text('#!/bin/sh\n' + ''.join(f'echo "{line}"\n' for line in lines) + f'exit {status}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return f'{folder}{os.pathsep}{os.environ["PATH"]}'


@pytest.mark.parametrize(
    'wanted, min_free, expected',
    [
        (-1, 14787, '1,3,0 3'),  # all with the memory, most free first
        (2, 14787, '1,3 2'),
        (1, 40000, '1 1'),
        (-1, 100, '1,3,0,2 4'),
    ])
def test_find_gpu_picks_by_free_memory(wanted, min_free, expected, run, tmp_path):
    path = fake_nvidia_smi(tmp_path, ['0, 15000', '1, 81000', '2, 900', '3, 24000'])
    command = f'. {TOOLS}/find_gpu.sh {wanted} {min_free} && echo "$gpu_id $n_gpu_found"'
    assert run('bash', '-c', command, PATH=path).splitlines()[-1] == expected


@pytest.mark.parametrize(
    'arguments, lines, status, message',
    [
        ('2 14787', ['0, 15000', '1, 900'], 0, '1 GPU(s) with at least 14787 MiB free, 2 wanted'),
        ('-1 14787', ['0, 900'], 0, '0 GPU(s)'),
        ('-1 14787', ['NVIDIA-SMI has failed'], 9, 'NVIDIA-SMI has failed'),
        ('all 14787', ['0, 900'], 0, "not 'all'"),
        ('1', ['0, 900'], 0, 'MIN_FREE_MIB has to be a number'),
    ])
def test_find_gpu_says_why_there_is_none(arguments, lines, status, message, run, tmp_path):
    path = fake_nvidia_smi(tmp_path, lines, status)
    output = run('bash', '-c', f'. {TOOLS}/find_gpu.sh {arguments} || echo "[$gpu_id] $n_gpu_found"', PATH=path)
    assert message in output
    assert output.splitlines()[-1] == '[] 0'


def test_scannet_launcher_stops_without_gpus_and_stamps_a_run(run, tmp_path, mini_scannet):
    path = fake_nvidia_smi(tmp_path, ['0, 900'])
    launcher = TOOLS / 'train_scannet_frames.sh'
    assert '0 GPU(s)' in run('bash', launcher, CONFIG, PATH=path, status=1)
    assert not (tmp_path / 'work_dirs').exists()

    path = fake_nvidia_smi(tmp_path, ['0, 20000', '1, 20000'])  # two "GPUs", which torch does not see: CPU
    output = run('bash', launcher, CONFIG, *SMALL, 'train_cfg.max_epochs=1', PATH=path,
                 MINI_SCANNET_ROOT=f'{mini_scannet}/')
    assert '2 processes on the CPU, backend gloo' in output
    stamps = (tmp_path / 'work_dirs' / CONFIG.stem / 'RUN-train_scannet_frames.txt').read_text()
    assert stamps.startswith('begin: ') and 'end (status 0): ' in stamps
