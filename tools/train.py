#!/usr/bin/env python
"""Train a detector: mmdet's train.py, with this project's start-up checks.

Example:
    python tools/train.py projects/deit_detr/configs/detr_deit-tiny_8xb1-150e_scannet.py --auto-scale-lr
"""

import argparse

from deit_detr.command_line import run_cli  # first: names a package that cannot be imported in a sentence
from deit_detr.errors import UserError

# isort: split
import torch

from deit_detr.engine.batch import count_accumulation
from deit_detr.engine.resume.choice import resume_newest
from deit_detr.engine.start.launch import add_run_arguments, load_config, make_deterministic
from deit_detr.engine.start.preflight import build_runner


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='continue from a checkpoint, or without a value from the newest one in the work folder; while there is '
             'none, start as without --resume')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision in bfloat16')
    parser.add_argument(
        '--auto-scale-lr', action='store_true',
        help='scale the learning rate to the actual batch size, accumulative_counts included')
    parser.add_argument(
        '--deterministic', action='store_true',
        help='get the same weights each time on the same machine and software; also set randomness.seed')
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Build the runner and train."""
    args = parse_args()
    cfg = load_config(args)
    if args.amp:
        if not torch.cuda.is_available():
            raise UserError('--amp needs a GPU: leave it out on this machine')
        # bfloat16 needs no loss scaling; float16 overflows in the matching costs of DETR
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(f'{args.config}: --auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
        cfg.auto_scale_lr.enable = True
    if args.deterministic:
        make_deterministic(cfg)
    if args.resume == 'auto':
        resume_newest(cfg)
    elif args.resume:
        cfg.resume, cfg.load_from = True, args.resume
    runner = build_runner(cfg)
    count_accumulation(runner)
    runner.train()


if __name__ == '__main__':
    run_cli(main)
