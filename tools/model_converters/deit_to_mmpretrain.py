#!/usr/bin/env python
"""Convert DeiT or ViT weights (layout of DeiT's authors or timm, .pth or .safetensors) to mmpretrain's layout.

The result suits `init_cfg=dict(type='Pretrained', checkpoint=DST, prefix='backbone.')`. Every tensor is mapped, or
dropped with a printed reason; if tensors match no rule, nothing is written.

Example:
    python tools/model_converters/deit_to_mmpretrain.py deit_tiny_patch16_224.pth deit-tiny_mmpretrain.pth
    DEIT_CHECKPOINT=deit-tiny_mmpretrain.pth python tools/train.py CONFIG
"""

import argparse

from deit_detr.command_line import run_cli
from deit_detr.migration.deit import convert_deit


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', help='DeiT or timm weights')
    parser.add_argument('destination', metavar='DST', help='checkpoint to write')
    parser.add_argument(
        '--keep-distillation', action='store_true',
        help='keep the distillation token of a distilled model, for mmpretrain.DistilledVisionTransformer; '
        'by default it is dropped, because the VisionTransformer of the recipes has none')
    return parser.parse_args()


def main() -> None:
    """Convert the weights and print what was done."""
    args = parse_args()
    convert_deit(args.source, args.keep_distillation).save(args.destination)


if __name__ == '__main__':
    run_cli(main)
