#!/usr/bin/env python
"""Convert DeiT or ViT weights (layout of DeiT's authors or timm, .pth or .safetensors) to mmpretrain's layout.

The result is what `init_cfg=dict(type='Pretrained', checkpoint=DST, prefix='backbone.')` expects. Every tensor is
mapped, or dropped with the reason printed; if one fits no rule, nothing is written.

Example:
    python tools/model_converters/deit_to_mmpretrain.py deit_tiny_patch16_224.pth deit-tiny_mmpretrain.pth
    DEIT_CHECKPOINT=deit-tiny_mmpretrain.pth python tools/train.py CONFIG
"""

import argparse

from deit_detr.errors import run_cli
from deit_detr.migration.deit import convert_deit


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', help='DeiT or timm weights')
    parser.add_argument('destination', metavar='DST', help='checkpoint to write')
    parser.add_argument(
        '--keep-distillation', action='store_true',
        help='keep the distillation token of a distilled model, for mmpretrain.DistilledVisionTransformer; without '
        'this it is left out, because the plain VisionTransformer of the recipes has none')
    return parser.parse_args()


def main() -> None:
    """Convert and report."""
    args = parse_args()
    convert_deit(args.source, args.keep_distillation).save(args.destination, meta={})


if __name__ == '__main__':
    run_cli(main)
