#!/usr/bin/env python
"""Convert a checkpoint of LW-DETR-tiny (https://github.com/Atten4Vis/LW-DETR).

Every tensor is mapped, or dropped with a printed reason; if tensors are unknown or missing, they are listed and nothing
is written. The result can be loaded without a config. docs/migrate.md has the details.

Example:
    python tools/model_converters/lw_detr_to_mmdet.py LWDETR_tiny_60e_coco.pth lw-detr-tiny.pth
"""

import argparse

from deit_detr.command_line import run_cli
from deit_detr.migration.lw_detr import convert_lw_detr


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', help='checkpoint of LW-DETR')
    parser.add_argument('destination', metavar='DST', help='checkpoint to write')
    parser.add_argument('--config', help='recipe of the same architecture (default: that of LW-DETR-tiny)')
    parser.add_argument(
        '--use-ema', action='store_true',
        help='use the moving average (ema_model) of a training, in place of the weights that LW-DETR evaluates (model)')
    return parser.parse_args()


def main() -> None:
    """Convert the checkpoint and print what was done."""
    args = parse_args()
    conversion = convert_lw_detr(args.source, args.config, 'ema_model' if args.use_ema else 'model')
    conversion.save(args.destination)
    classes = conversion.meta['dataset_meta']['classes']
    print(f'  {len(classes)} classes: {", ".join(classes[:5])}, ...')


if __name__ == '__main__':
    run_cli(main)
