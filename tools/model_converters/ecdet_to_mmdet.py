#!/usr/bin/env python
"""Convert a checkpoint of ECDet-S or of its backbone ECViT-tiny (https://github.com/Intellindust-AI-Lab/EdgeCrafter).

Every tensor is mapped, or dropped with a printed reason; if tensors are unknown or missing, they are listed and nothing
is written. ECDet-S can then be loaded without a config; the backbone suits `model.backbone.init_cfg`.

Example:
    python tools/model_converters/ecdet_to_mmdet.py ecdet_s.pth ecdet-s.pth
    python tools/model_converters/ecdet_to_mmdet.py ecvitt.pth ecvit-tiny.pth
"""

import argparse

from deit_detr.command_line import run_cli
from deit_detr.migration.ecdet import convert_ecdet


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', help='checkpoint of EdgeCrafter')
    parser.add_argument('destination', metavar='DST', help='checkpoint to write')
    parser.add_argument('--config', help='recipe of the same architecture (default: that of ECDet-S)')
    return parser.parse_args()


def main() -> None:
    """Convert the checkpoint and print what was done."""
    args = parse_args()
    convert_ecdet(args.source, args.config).save(args.destination)


if __name__ == '__main__':
    run_cli(main)
