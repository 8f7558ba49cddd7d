"""A training of seconds with everything that must survive an interruption, and the comparison of two of them."""

import itertools
import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from tests.helpers.interruptions import InterruptHook
from tests.helpers.paths import REPO

RECIPE = REPO / 'projects/deit_detr/configs/lw-detr_deit-tiny_1xb4-16e_mini-scannet.py'
#: With dropout, a moving average, two groups of aspect ratios and random flips; the log has unsmoothed numbers.
TINY = f"""
_base_ = '{RECIPE}'
model = dict(
    num_queries=20, num_groups=2,
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=192, num_layers=2, num_heads=3, feedforward_channels=96),
        out_indices=[0, 1], global_layers=[1], drop_path_rate=0.1, init_cfg=None),
    neck=dict(in_channels=[192] * 2),
    decoder=dict(num_layers=1, layer_cfg=dict(
        self_attn_cfg=dict(dropout=0.1), ffn_cfg=dict(feedforward_channels=64))),
    test_cfg=dict(max_per_img=20))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(indices=8))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=4))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2, val_interval=1)
log_processor = dict(window_size=1)
default_hooks = dict(logger=dict(interval=1), ema=dict(type='EMAHook', momentum=0.1))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(vis_backends=vis_backends)
randomness = dict(seed=7)
"""
NAMES = itertools.count()


def turn_half(root: Path, out_dir: Path) -> Path:
    """Copy a converted data set and turn every second image with its boxes by 90 degrees."""
    for split in ('train', 'val'):
        content = json.loads((root / f'scannet_objdet_{split}.json').read_text())
        turned = {image['id'] for image in content['images'][::2]}
        for image in content['images']:
            target = out_dir / split / image['file_name']
            target.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.open(root / split / image['file_name'])
            if image['id'] in turned:
                picture = picture.transpose(Image.Transpose.TRANSPOSE)
                image['width'], image['height'] = image['height'], image['width']
            picture.save(target)
        for box in content['annotations']:
            if box['image_id'] in turned:
                left, top, width, height = box['bbox']
                box['bbox'] = [top, left, height, width]
        (out_dir / f'scannet_objdet_{split}.json').write_text(json.dumps(content))
    return out_dir


class StepLog(Hook):
    """Record the unrounded loss and the images of each step."""

    def __init__(self) -> None:
        self.losses, self.images = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append(outputs['loss'].item())
        self.images.append([sample.img_path for sample in data_batch['data_samples']])


def tiny_config(work_dir: Path, options: dict | None = None, resume: bool | str = False) -> Config:
    """Load the config of a run in this process; its file is beside the work folder."""
    path = work_dir.parent / 'tiny.py'
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TINY)
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options or {})
    cfg.work_dir, cfg.launcher, cfg.experiment_name = str(work_dir), 'none', f'tiny_{next(NAMES)}'
    cfg.resume, cfg.load_from = bool(resume), resume if isinstance(resume, str) else None
    return cfg


def train(cfg: Config, interrupt: InterruptHook | None = None) -> StepLog:
    """Train in this process and return the log, whose ``status`` is that of the exit of a preempted training."""
    runner = Runner.from_cfg(cfg)
    log = StepLog()
    runner.register_hook(log)
    if interrupt:
        runner.register_hook(interrupt)
    log.status = 0
    try:
        runner.train()
    except SystemExit as end:
        log.status = end.code
    close_workers(runner)
    return log


def close_workers(runner: Runner) -> None:
    """End workers that are kept. When garbage is collected, PyTorch waits for 5 seconds for each of them."""
    workers = getattr(runner.train_loop.dataloader, '_iterator', None)
    if workers:
        workers._shutdown_workers()


def read_log(work_dir: Path) -> str:
    """Read the log of the last start."""
    return sorted(work_dir.glob('*/*.log'))[-1].read_text()


def differences(one: object, other: object, place: str = '') -> list[str]:
    """List the places where two nested structures are not bitwise equal."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [place]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [place]
        return [line for key in one for line in differences(one[key], other[key], f'{place}/{key}')]
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=True)
        return [line for index, pair in enumerate(pairs) for line in differences(*pair, f'{place}/{index}')]
    return [] if one == other else [place]


def assert_same_training(checkpoint: Path, other: Path) -> None:
    """Compare weights, moving average, optimizer and schedulers of two checkpoints bitwise."""
    one, two = (torch.load(path, weights_only=True) for path in (checkpoint, other))
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert not differences(one[part], two[part]), part
    assert (one['meta']['epoch'], one['meta']['iter']) == (two['meta']['epoch'], two['meta']['iter'])
