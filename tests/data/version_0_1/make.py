"""Train a tiny model with version 0.1, once to the end and once until a signal after step 3.

This wrote the checkpoint and printed the losses of tests/test_compatibility.py. Run it in an empty folder, with version
0.1 (commit 5c56a60, checked out as OLD) before the installed package:

    PYTHONPATH=OLD/projects/deit_detr:REPO python REPO/tests/data/version_0_1/make.py OLD
"""

import lzma
import os
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

import deit_detr
from tests.helpers.drawn_coco import draw_scannet
from tests.helpers.interruptions import InterruptHook
from tests.helpers.tiny_training import StepLog

CONFIG = """
_base_ = '{old}/projects/deit_detr/configs/detr-fast_deit-tiny_1xb8-50e_mini-scannet.py'
custom_imports = dict(imports=['mmpretrain.models', 'deit_detr'], allow_failed_imports=False)
attention = dict(embed_dims=16, num_heads=2)
ffn = dict(embed_dims=16, feedforward_channels=16)
model = dict(
    num_queries=10,
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=8, num_layers=1, num_heads=1, feedforward_channels=16), img_size=64,
        init_cfg=None),
    neck=dict(in_channels=[8], out_channels=16),
    encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)),
    positional_encoding=dict(num_feats=8), bbox_head=dict(embed_dims=16), test_cfg=dict(max_per_img=10))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=0.01))
log_processor = dict(window_size=1)
default_hooks = dict(logger=dict(interval=1), ema=dict(type='EMAHook', momentum=0.1))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(vis_backends=vis_backends)
randomness = dict(seed=7)
launcher = 'none'
"""

if __name__ == '__main__':
    assert deit_detr.__version__ == '0.1.0'
    Path('config.py').write_text(CONFIG.format(old=sys.argv[1]))
    os.environ['MINI_SCANNET_ROOT'] = f'{draw_scannet(Path("rooms"))}/'
    for name, *hooks in (('whole',), ('work', InterruptHook(step=3, number='SIGUSR1'))):
        cfg = Config.fromfile('config.py')
        cfg.work_dir, cfg.experiment_name = name, name
        runner = Runner.from_cfg(cfg)
        for hook in (log := StepLog(), *hooks):
            runner.register_hook(hook)
        try:
            runner.train()
        finally:
            print(name, log.losses)
            for path in Path(name).glob('preempted_*.pth'):
                Path(f'{path.name}.xz').write_bytes(lzma.compress(path.read_bytes(), preset=9))
