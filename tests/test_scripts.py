"""The shell scripts: what they choose, what they pass on, and their messages when something is missing."""

import os
import socket
import stat
import subprocess
import sys

import pytest
import torch

from tests.helpers.fork_server import SERVER
from tests.helpers.paths import REPO, TINY_RUN

TOOLS = REPO / 'tools'
CONFIG = REPO / 'projects/deit_detr/configs/detr_deit-tiny_1xb8-50e_mini-scannet.py'


def fake_command(folder, name: str, body: str) -> str:
    """Put a script before everything else on the PATH."""
    script = folder / name
    script.write_text(f'#!/bin/sh\n{body}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return f'{folder}{os.pathsep}{os.environ["PATH"]}'


def fake_nvidia_smi(folder, lines: list[str], status: int = 0) -> str:
    return fake_command(folder, 'nvidia-smi', '\n'.join([*(f'echo "{line}"' for line in lines), f'exit {status}']))


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


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() > 1, reason='has GPUs for the two that nvidia-smi is made to name')
def test_scannet_launcher_stops_without_gpus_and_stamps_a_run(run, tmp_path, mini_scannet):
    path = fake_nvidia_smi(tmp_path, ['0, 900'])
    launcher = TOOLS / 'train_scannet_frames.sh'
    assert '0 GPU(s)' in run('bash', launcher, CONFIG, PATH=path, status=1)
    assert not (tmp_path / 'work_dirs').exists()

    fake_nvidia_smi(tmp_path, ['0, 20000', '1, 20000'])  # two "GPUs", which torch does not see: CPU
    shell = SERVER.shell()
    output = run('bash', launcher, CONFIG, *TINY_RUN, 'train_cfg.max_epochs=1', PYTHON_EXEC=shell['PYTHON_EXEC'],
                 PATH=f'{tmp_path}{os.pathsep}{shell["PATH"]}', MINI_SCANNET_ROOT=f'{mini_scannet}/')
    assert '2 processes on the CPU, backend gloo' in output
    stamps = (tmp_path / 'work_dirs' / CONFIG.stem / 'RUN-train_scannet_frames.txt').read_text()
    assert stamps.startswith('begin: ') and 'end (status 0): ' in stamps


@pytest.mark.slow
@pytest.mark.parametrize(
    'arguments, env, message',
    [
        ([CONFIG], {}, 'bash tools/dist_train.sh CONFIG GPUS'),
        ([CONFIG, 'eight'], {}, "not 'eight'"),
        ([CONFIG, '2'], dict(NNODES=2, MASTER_ADDR='127.0.0.1'), 'NODE_RANK'),
        ([CONFIG, '2'], dict(NNODES=2, NODE_RANK=0), 'MASTER_ADDR'),
        ([CONFIG, '2'], dict(PORT='http'), "PORT has to be a number, not 'http'"),
        ([CONFIG, '2', '--resume', 'epoch_3.pth'], dict(MAX_RESTARTS=1), 'leave out the value of --resume'),
    ])
def test_dist_train_says_what_is_missing(arguments, env, message, tmp_path):
    result = subprocess.run(
        ['bash', TOOLS / 'dist_train.sh', *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=os.environ | {key: str(value) for key, value in env.items()}, check=False)
    assert result.returncode != 0
    assert message in result.stderr


@pytest.mark.slow
def test_busy_port_is_named(run):
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        output = run('bash', TOOLS / 'dist_train.sh', CONFIG, 1, PORT=port, status=2)
    assert output.splitlines()[-1].startswith(f'error: PORT {port} is already in use on this machine')
    assert 'Traceback' not in output


def test_slurm_passes_everything_on(run, tmp_path):
    path = fake_command(tmp_path, 'srun', 'for word in "$@"; do echo "<$word>"; done')
    words = run('bash', TOOLS / 'slurm_train.sh', 'gpu', 'job', CONFIG, 'work dir', '--amp', PATH=path, GPUS=4,
                SRUN_ARGS='--qos high').split('\n')
    for word in ('--ntasks=4', '--ntasks-per-node=4', '--gres=gpu:4', '--qos', 'high', 'work dir', '--amp', 'slurm'):
        assert f'<{word}>' in words


@pytest.mark.parametrize('status, requeued', [(75, True), (1, False), (0, False)])
def test_slurm_requeues_what_was_asked_to_stop_and_resumes_it(status, requeued, run, tmp_path):
    fake_command(tmp_path, 'scontrol', 'echo "scontrol $*"')
    path = fake_command(tmp_path, 'srun', f'echo "last: $(eval echo \\${{$#}})"; exit {status}')
    output = run('bash', TOOLS / 'slurm_train.sh', 'gpu', 'job', CONFIG, 'work', '--amp', status=status, PATH=path,
                 SLURM_JOB_ID=17, SLURM_RESTART_COUNT=1)
    assert 'last: --resume' in output
    assert ('scontrol requeue 17' in output) == requeued
    assert 'last: --amp' in run('bash', TOOLS / 'slurm_train.sh', 'gpu', 'job', CONFIG, 'work', '--amp', status=status,
                                PATH=path)


#: A PATH without the environment that these tests run in.
BARE_PATH = os.pathsep.join(
    part for part in os.environ['PATH'].split(os.pathsep) if part != os.path.dirname(sys.executable))


@pytest.mark.slow
def test_environment_script_uses_a_complete_environment(run):
    assert '(already complete)' in run('bash', TOOLS / 'setup_env.sh')


@pytest.mark.slow
@pytest.mark.parametrize(
    'env, message',
    [
        (dict(PYTHON='python-of-nobody'), 'no python-of-nobody: install Python'),
        (dict(PYTHON='old-python'), 'Python 3.8.1 is not supported: set PYTHON'),
        (dict(FREE_GB=3), '3 GB free'),
    ],
    ids=['no-python', 'old-python', 'no-disk'])
def test_environment_script_says_what_is_missing(env, message, run, tmp_path):
    bin_dir = tmp_path / 'bin'
    bin_dir.mkdir()
    fake_command(bin_dir, 'old-python', '[ "$1" != --version ] || { echo "Python 3.8.1"; exit 0; }; exit 1')
    free_kb = env.pop('FREE_GB', 100) * 1048576
    fake_command(bin_dir, 'df', f'echo head; echo "disk 1 1 {free_kb} 1% /"')
    env.setdefault('PYTHON', getattr(sys, '_base_executable', sys.executable))
    output = run(
        'bash', TOOLS / 'setup_env.sh', status=1, VENV=tmp_path / 'venv',
        PATH=f'{bin_dir}{os.pathsep}{BARE_PATH}', **env)
    errors = [line for line in output.splitlines() if line.startswith('setup_env: ')]
    assert len(errors) == 1 and message in errors[0]
