#!/usr/bin/env python
r"""Evaluate a checkpoint: mmdet's test.py, which stops if the checkpoint does not fit the config.

Example:
    python tools/test.py projects/deit_detr/configs/detr_deit-tiny_8xb1-150e_scannet.py \\
        work_dirs/detr_deit-tiny_8xb1-150e_scannet/epoch_150.pth --show-dir pictures
"""

import argparse
from pathlib import Path

from deit_detr.command_line import run_cli  # first: names a package that cannot be imported in a sentence
from deit_detr.errors import UserError

# isort: split
from mmdet.evaluation import DumpDetResults
from mmengine.runner import Runner

from deit_detr.engine.start.class_check import ClassCheckHook
from deit_detr.engine.start.launch import add_run_arguments, load_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions to a pickle file')
    parser.add_argument(
        '--show-dir', help='draw ground truth beside predictions into WORK_DIR/TIMESTAMP/SHOW_DIR')
    add_run_arguments(parser)
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out {args.out}: the file name has to end in .pkl')
    return args


def main() -> None:
    """Build the runner and evaluate."""
    args = parse_args()
    if not Path(args.checkpoint).is_file() and '://' not in args.checkpoint:
        raise UserError(f'{args.checkpoint}: no such checkpoint file')
    cfg = load_config(args)
    cfg.load_from, cfg.resume = args.checkpoint, False  # of a config that a resumed training wrote
    if args.show_dir:
        cfg.default_hooks.visualization.update(draw=True, test_out_dir=args.show_dir)
    runner = Runner.from_cfg(cfg)
    if not any(isinstance(hook, ClassCheckHook) for hook in runner.hooks):  # a config of another project
        runner.register_hook(ClassCheckHook())
    if args.out:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


if __name__ == '__main__':
    run_cli(main)
