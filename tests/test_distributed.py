"""Several processes compute what one does on the same images."""

import json
import sys

import pytest

from conftest import REPO

CONFIG = REPO / 'projects/deit_detr/configs/detr_deit-tiny_1xb8-50e_mini-scannet.py'
OPTIONS = [
    '--cfg-options', 'model.backbone.init_cfg=None', 'custom_hooks=[]', 'randomness.seed=3',
    'model.encoder.num_layers=1', 'model.decoder.num_layers=2', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=9',
    'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
    # the same images in the same order, and nothing random about them
    'train_dataloader.sampler.shuffle=False', 'train_dataloader.batch_sampler=None',
    'train_dataloader.dataset.pipeline.3.prob=0.0',
    # dropout draws other numbers in every process
    'model.encoder.layer_cfg.self_attn_cfg.dropout=0', 'model.encoder.layer_cfg.ffn_cfg.ffn_drop=0',
    'model.decoder.layer_cfg.self_attn_cfg.dropout=0', 'model.decoder.layer_cfg.cross_attn_cfg.dropout=0',
    'model.decoder.layer_cfg.ffn_cfg.ffn_drop=0',
    # the recipe, as in 2.x, normalises the class loss in each process by itself
    'model.bbox_head.sync_cls_avg_factor=True',
]  # fmt: skip


def first_step(run, tmp_path, mini_scannet, processes: int, images: int) -> dict:
    command = [sys.executable]
    launcher = []
    if processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', processes]
        launcher = ['--launcher', 'pytorch']
    output = run(
        *command, REPO / 'tests/first_step.py', CONFIG, '--work-dir', tmp_path / f'of_{processes}', *launcher, *OPTIONS,
        f'train_dataloader.dataset.indices={images}', f'train_dataloader.batch_size={images // processes}',
        MINI_SCANNET_ROOT=f'{mini_scannet}/', CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS=1)
    (line,) = [line for line in output.splitlines() if line.startswith('FIRST_STEP')]
    return json.loads(line.split(maxsplit=1)[1])


@pytest.mark.parametrize('processes', [2, 8])
def test_first_step_equals_single_process(processes, run, tmp_path, mini_scannet):
    single = first_step(run, tmp_path, mini_scannet, 1, processes)
    several = first_step(run, tmp_path, mini_scannet, processes, processes)
    assert several['loss'] == pytest.approx(single['loss'], rel=1e-5)
    assert several['grad_norm'] == pytest.approx(single['grad_norm'], rel=1e-4)
