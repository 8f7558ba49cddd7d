"""The command-line tools, run on rendered rooms."""

import sys

import pytest
import torch

from tests.helpers.fork_server import start
from tests.helpers.paths import REPO, TINY_RUN

TOOLS = REPO / 'tools'
CONFIG = REPO / 'projects/deit_detr/configs/detr_deit-tiny_1xb8-50e_mini-scannet.py'


@pytest.fixture(scope='module')
def trained(mini_scannet, tmp_path_factory):
    """Train for one epoch; return the work folder and the output."""
    work_dir = tmp_path_factory.mktemp('trained')
    result = start(
        sys.executable, TOOLS / 'train.py', CONFIG, '--work-dir', work_dir, '--auto-scale-lr', *TINY_RUN,
        'train_cfg.max_epochs=1', cwd=work_dir, env=dict(MINI_SCANNET_ROOT=f'{mini_scannet}/'))
    assert result.returncode == 0, result.stdout[-3000:]
    return work_dir, result.stdout


def test_train_writes_checkpoints_and_a_readable_log(trained):
    work_dir, output = trained
    assert (work_dir / 'epoch_1.pth').is_file()
    assert list(work_dir.glob('best_coco_bbox_mAP_epoch_1.pth'))
    assert list(work_dir.glob('*/vis_data/events.out.tfevents*')), 'TensorBoard logging is on'
    assert 'paramwise_options' not in output
    assert 'no part of the model is pretrained' in output
    assert 'Scaling the original LR by 0.5' in output, 'batches of 4 for a base of 8'
    assert ' lr: 5.0000e-06 ' in output, 'half of a tenth of 1e-4'
    assert 'coco/wall_precision' in output


def test_checkpoint_loads_with_weights_only(trained):
    work_dir, _ = trained
    checkpoint = torch.load(work_dir / 'epoch_1.pth', weights_only=True)
    assert {'state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta'} <= set(checkpoint)


@pytest.mark.slow
def test_resume_continues_after_the_last_epoch(trained, mini_scannet, run, tmp_path):
    work_dir, _ = trained
    env = dict(MINI_SCANNET_ROOT=f'{mini_scannet}/')
    output = run(
        sys.executable, TOOLS / 'train.py', CONFIG, '--work-dir', tmp_path, '--resume', work_dir / 'epoch_1.pth',
        *TINY_RUN, 'train_cfg.max_epochs=2', **env)
    assert 'resumed epoch: 1' in output
    assert 'Epoch(train) [2]' in output and 'Epoch(train) [1]' not in output
    auto = run(sys.executable, TOOLS / 'train.py', CONFIG, '--work-dir', tmp_path, '--resume', *TINY_RUN,
               'train_cfg.max_epochs=3', **env)
    assert 'resumed epoch: 2' in auto


def test_test_evaluates_and_draws(trained, mini_scannet, run, tmp_path):
    work_dir, trained_output = trained
    output = run(
        sys.executable, TOOLS / 'test.py', CONFIG, work_dir / 'epoch_1.pth', '--work-dir', tmp_path, '--out',
        tmp_path / 'predictions.pkl', '--show-dir', 'pictures', *TINY_RUN, MINI_SCANNET_ROOT=f'{mini_scannet}/')

    def mean_ap(text):
        return text.rsplit('coco/bbox_mAP: ', 1)[1].split()[0]

    assert mean_ap(output) == mean_ap(trained_output)
    assert len(list(tmp_path.glob('*/pictures/scene*/*.jpg'))) == 8, 'frames of two scenes have the same names'
    assert (tmp_path / 'predictions.pkl').is_file()


@pytest.mark.parametrize('hooks', [[], ['custom_hooks=[]']], ids=['recipe', 'config of another project'])
def test_checkpoint_that_does_not_fit_is_not_tested(hooks, trained, mini_scannet, run):
    output = run(
        sys.executable, TOOLS / 'test.py', CONFIG, trained[0] / 'epoch_1.pth', *TINY_RUN, 'model.num_queries=30',
        'model.test_cfg.max_per_img=30', *hooks, MINI_SCANNET_ROOT=f'{mini_scannet}/', status=2)
    (error,) = [line for line in output.splitlines() if line.startswith('error: ')]
    assert 'epoch_1.pth: does not fit the model: 1 tensors are of another shape (query_embedding.weight (' in error
    assert 'Epoch(test)' not in output


@pytest.mark.slow
def test_mim_trains_and_tests_from_another_folder(trained, mini_scannet, run, tmp_path):
    """`mim` runs mmdet's scripts, which find this project only because it is installed."""
    pytest.importorskip('mim')
    work_dir, _ = trained
    env = dict(MINI_SCANNET_ROOT=f'{mini_scannet}/')
    mim = [sys.executable, '-m', 'mim']
    run(*mim, 'train', 'mmdet', CONFIG, '--gpus', 0, '--work-dir', tmp_path / 'mim', '--resume',
        work_dir / 'epoch_1.pth', *TINY_RUN, 'train_cfg.max_epochs=2', **env)
    assert (tmp_path / 'mim/epoch_2.pth').is_file()
    output = run(*mim, 'test', 'mmdet', CONFIG, '--checkpoint', tmp_path / 'mim/epoch_2.pth', '--gpus', 0,
                 '--work-dir', tmp_path / 'mim', *TINY_RUN, **env)
    assert 'coco/bbox_mAP' in output


@pytest.mark.parametrize(
    'command, message',
    [
        (['train.py', 'missing.py'], 'missing.py: no such config file'),
        (['train.py', CONFIG, *TINY_RUN, 'train_dataloader.dataset.ann_file=gone.json'], 'gone.json: no such'),
        (['test.py', CONFIG, 'missing.pth'], 'missing.pth: no such checkpoint'),
        (['train.py', CONFIG, '--amp', *TINY_RUN], '--amp needs a GPU'),
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
