"""Several processes compute what one process computes on the same images, and survive if one of them ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.helpers.fork_server import SERVER
from tests.helpers.paths import REPO

PROCESSES = REPO / 'tests/helpers/processes'
CONFIGS = REPO / 'projects/deit_detr/configs'
pytestmark = pytest.mark.slow
#: Only the weights are random: dropout would draw other numbers in every process.
WITHOUT_DROPOUT = [
    'model.encoder.layer_cfg.self_attn_cfg.dropout=0', 'model.encoder.layer_cfg.ffn_cfg.ffn_drop=0',
    'model.decoder.layer_cfg.self_attn_cfg.dropout=0', 'model.decoder.layer_cfg.cross_attn_cfg.dropout=0',
    'model.decoder.layer_cfg.ffn_cfg.ffn_drop=0']
MODELS = {
    'detr_deit-tiny_1xb8-50e_mini-scannet.py': [
        'model.encoder.num_layers=1', 'model.decoder.num_layers=2', *WITHOUT_DROPOUT,
        # the recipe, as in 2.x, normalizes the class loss in each process separately
        'model.bbox_head.sync_cls_avg_factor=True',
    ],
    'lw-detr_deit-tiny_1xb4-16e_mini-scannet.py': ['model.decoder.num_layers=2'],
}


def data_root(folder: Path, mini_scannet: Path, images: int, empty: int | None = None) -> Path:
    """Make a data set of the first training images, for training and validation; ``empty`` has no box."""
    content = json.loads((mini_scannet / 'scannet_objdet_train.json').read_text())
    content['images'] = content['images'][:images]
    kept = [image['id'] for index, image in enumerate(content['images']) if index != empty]
    content['annotations'] = [box for box in content['annotations'] if box['image_id'] in kept]
    folder.mkdir()
    for split in ('train', 'val'):
        (folder / f'scannet_objdet_{split}.json').write_text(json.dumps(content))
        (folder / split).symlink_to(mini_scannet / 'train')
    return folder


@pytest.mark.parametrize('recipe', MODELS)
def test_gradients_equal_those_of_one_process(recipe, run, tmp_path, mini_scannet):
    """The fourth of 8 images has no box, so the fourth of 8 processes has none."""
    root = data_root(tmp_path / 'data', mini_scannet, images=8, empty=3)
    run(sys.executable, PROCESSES / 'first_step.py', CONFIGS / recipe, tmp_path, '--processes', 1, 2, 4, 8,
        '--cfg-options', 'model.backbone.init_cfg=None', 'train_dataloader.dataset.filter_cfg=None',
        'train_dataloader.dataset.pipeline.3.prob=0.0', *MODELS[recipe],
        MINI_SCANNET_ROOT=f'{root}/', CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS=1)
    single = torch.load(tmp_path / '1.pth', weights_only=True)
    largest = max(gradient.abs().max() for gradient in single['gradients'])
    for processes in (2, 4, 8):
        several = torch.load(tmp_path / f'{processes}.pth', weights_only=True)
        assert several['loss'] == pytest.approx(single['loss'], rel=1e-6)
        for gradient, expected in zip(several['gradients'], single['gradients'], strict=True):
            assert (gradient - expected).abs().max() <= 1e-6 * largest
            assert (gradient - expected).norm() <= 5e-5 * expected.norm()  # also of small ones; 2e-5 was measured


#: A model that learns seven images by heart in seconds.
TINY = """
_base_ = '{base}'
model = dict(
    num_queries=30, num_groups=2, test_cfg=dict(max_per_img=30), decoder=dict(num_layers=1),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=192, num_layers=3, num_heads=3, feedforward_channels=384),
        init_cfg=None, global_layers=[2], out_indices=[1, 2]),
    neck=dict(in_channels=[192, 192]))
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
param_scheduler = []
train_cfg = dict(max_epochs=15, val_interval=15)
train_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
custom_hooks = []
env_cfg = dict(dist_cfg=dict(timeout=20))
randomness = dict(seed=0)
"""


def processes_of(launcher: subprocess.Popen) -> dict[int, int]:
    """Return the process ids of torchrun's workers by rank."""
    found = {}
    for children in Path('/proc', str(launcher.pid), 'task').glob('*/children'):
        for pid in children.read_text().split():
            rank = re.search(rb'\0RANK=(\d+)\0', Path('/proc', pid, 'environ').read_bytes())
            if rank:
                found[int(rank[1])] = int(pid)
    return found


def wait_for_epoch(epoch: int, work_dir: Path, launcher: subprocess.Popen, seconds: float = 300) -> None:
    last = work_dir / 'last_checkpoint'  # written when the checkpoint is whole
    end = time.monotonic() + seconds
    while int((re.findall(r'epoch_(\d+)', last.read_text() if last.exists() else '') or ['0'])[-1]) < epoch:
        assert launcher.poll() is None and time.monotonic() < end, f'epoch {epoch} does not come'
        time.sleep(0.1)


@pytest.fixture(scope='module', autouse=True)
def survivor(tmp_path_factory, mini_scannet) -> Iterator[Callable[[], tuple[Path, dict, str]]]:
    """Train two processes on seven images; kill one of them, and later stop one, so that it does not answer.

    They wait for most of a minute. Meanwhile the tests that do not call the result run.

    Returns:
        Callable[[], tuple[Path, dict, str]]: Waits for the end and returns the folder of config and run, the
            environment, and what the run printed.
    """
    folder = tmp_path_factory.mktemp('survivor')
    root = data_root(folder / 'data', mini_scannet, images=7)
    (folder / 'tiny.py').write_text(TINY.format(base=CONFIGS / 'lw-detr_deit-tiny_1xb4-16e_mini-scannet.py'))
    env = dict(MINI_SCANNET_ROOT=f'{root}/', CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    with open(folder / 'output.txt', 'w') as output:
        launcher = subprocess.Popen(
            ['bash', REPO / 'tools/dist_train.sh', 'tiny.py', '2', '--work-dir', 'run'], cwd=folder, stdout=output,
            stderr=subprocess.STDOUT, env=os.environ | env | dict(MAX_RESTARTS='2'))

    def hurt() -> None:
        for epoch, what in ((1, signal.SIGKILL), (4, signal.SIGSTOP)):
            wait_for_epoch(epoch, folder / 'run', launcher)
            os.kill(processes_of(launcher)[1], what)

    def end() -> tuple[Path, dict, str]:
        hurting.result()
        launcher.wait(timeout=300)
        output = (folder / 'output.txt').read_text()
        assert launcher.returncode == 0, output[-6000:]
        return folder, env, output

    with launcher, ThreadPoolExecutor() as background:
        hurting = background.submit(hurt)
        yield end
        launcher.terminate()  # where no test has waited for it


def test_two_nodes(run, tmp_path, mini_scannet):
    """In two network namespaces, one node sends the other its gradients, once per step."""
    output = run('bash', PROCESSES / 'two_nodes.sh', tmp_path / 'run', MINI_SCANNET_ROOT=f'{mini_scannet}/')
    if output.startswith('skipped'):
        pytest.skip(output)
    assert 'node 0: status 0' in output and 'node 1: status 0' in output
    weights = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=True)['state_dict']
    volume = 4 * sum(value.numel() for value in weights.values())
    sent = int(re.search(r'node 0 sent (\d+) bytes', output)[1])
    # 16 images, 2 processes with 2 each: 4 steps. At the start the weights are sent twice.
    assert sent == pytest.approx((4 + 2) * volume, rel=0.05)


def test_dead_and_silent_processes_are_replaced(survivor):
    _, _, output = survivor()
    assert 'failed (exitcode: -9) local_rank: 1' in output
    assert 'Timed out waiting 20000ms' in output
    epochs = re.findall(r'Epoch\(train\) +\[(\d+)\]\[4/4\]', output)  # 7 images for 2 processes are 8
    assert len(epochs) <= 17 and set(epochs) == {str(epoch) for epoch in range(1, 16)}


def test_sharded_evaluation_equals_single_process(survivor, run):
    """With seven images, two processes evaluate an eighth, which is not counted."""
    folder, env, output = survivor()
    env |= SERVER.shell()
    metrics = [re.search(r'Epoch\(val\) \[15\]\[4/4\] +(coco/.*?) data_time', output)[1].strip()]
    for name, command in (('one', [sys.executable, 'test.py', 'tiny.py', 'run/epoch_15.pth']),
                          ('two', ['bash', 'dist_test.sh', 'tiny.py', 'run/epoch_15.pth', '2'])):
        command[1] = REPO / 'tools' / command[1]
        output = run(*command, '--work-dir', 'test', '--cfg-options', f'test_evaluator.outfile_prefix={name}',
                     cwd=folder, **env)
        metrics.append(re.search(r'Epoch\(test\) \[\d/\d\] +(coco/.*?) data_time', output)[1].strip())
    assert metrics[0] == metrics[1] == metrics[2]
    assert float(re.search(r'bbox_mAP: (\S+)', metrics[0])[1]) > 0.05
    assert (folder / 'one.bbox.json').read_bytes() == (folder / 'two.bbox.json').read_bytes()


@pytest.mark.parametrize('end, status, stays', [
    ('return', 0, False), ('raise SystemExit(75)', 75, False), ('raise UserError("x")', 2, True)])
def test_processes_part_when_all_is_done(end, status, stays, run, tmp_path):
    """If they did not, gloo's threads could abort a process that has finished; after an error, others may wait."""
    output = run(sys.executable, '-c', f'''
import torch.distributed as dist
from deit_detr.command_line import run_cli
from deit_detr.errors import UserError
dist.init_process_group('gloo', init_method='file://{tmp_path}/store', rank=0, world_size=1)
def main():
    {end}
try:
    run_cli(main)
except SystemExit as end:
    print(end.code, dist.is_initialized())
''')
    assert output.endswith(f'{status} {stays}\n')
