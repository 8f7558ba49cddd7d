#!/usr/bin/env python
"""Convert a DETR checkpoint of mmdet 2.x (ResNet or mmcls ViT/DeiT backbone) to mmdet 3.x.

Every tensor is mapped, or dropped with the reason printed; if one fits no rule, nothing is written and all such
tensors are listed. The class names come along. docs/migration.md tells more.

Example:
    python tools/model_converters/mmdet2x_to_3x.py epoch_150_2x.pth epoch_150_3x.pth
"""

import argparse

from deit_detr.errors import run_cli
from deit_detr.migration.checkpoint_2x import convert_mmdet2x


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', help='checkpoint written by mmdet 2.x')
    parser.add_argument('destination', metavar='DST', help='checkpoint to write')
    parser.add_argument(
        '--keep-cls-token', action='store_true',
        help='the ViT runs with its class token (with_cls_token=True in the 2.x config)')
    parser.add_argument(
        '--use-ema-copies', action='store_true',
        help='take the ema_* copies in place of the plain tensors. mmdet\'s own EMA hooks put the averaged weights '
        'into the plain tensors before an epoch is saved; use this for a checkpoint saved between iterations')
    return parser.parse_args()


def main() -> None:
    """Convert and report."""
    args = parse_args()
    books, meta = convert_mmdet2x(args.source, args.keep_cls_token, args.use_ema_copies)
    books.save(args.destination, meta)
    if 'dataset_meta' in meta:
        print(f'  {len(meta["dataset_meta"]["classes"])} class names: {", ".join(meta["dataset_meta"]["classes"])}')
    else:
        print('  no class names in the source: without a config, inference will call the classes by COCO names')


if __name__ == '__main__':
    run_cli(main)
