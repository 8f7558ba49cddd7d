#!/usr/bin/env python
"""Convert a DETR checkpoint of mmdet 2.x (ResNet or mmcls ViT/DeiT backbone) to mmdet 3.x.

Every tensor is mapped, or dropped with a printed reason; if tensors match no rule, they are listed and nothing is
written. The class names are kept. docs/migrate.md has the details.

Example:
    python tools/model_converters/mmdet2x_to_3x.py epoch_150_2x.pth epoch_150_3x.pth
"""

import argparse

from deit_detr.command_line import run_cli
from deit_detr.migration.checkpoint_2x import convert_checkpoint_2x


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
        help='use the ema_* copies in place of the plain tensors, for a checkpoint saved during an epoch: the EMA '
        'hooks of mmdet swap the averaged weights into the plain tensors before they save an epoch')
    return parser.parse_args()


def main() -> None:
    """Convert the checkpoint and print what was done."""
    args = parse_args()
    conversion = convert_checkpoint_2x(args.source, args.keep_cls_token, args.use_ema_copies)
    conversion.save(args.destination)
    if 'dataset_meta' in conversion.meta:
        classes = conversion.meta['dataset_meta']['classes']
        print(f'  {len(classes)} class names: {", ".join(classes)}')
    else:
        print('  no class names in the source: without a config, inference will use the names of COCO')


if __name__ == '__main__':
    run_cli(main)
