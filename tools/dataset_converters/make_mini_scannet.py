#!/usr/bin/env python
"""Render MiniScanNet: synthetic rooms in the layout of scannet_frames_25k.

Example:
    python tools/dataset_converters/make_mini_scannet.py data/mini-scannet/frames
"""

import argparse
from pathlib import Path

from deit_detr.command_line import run_cli
from deit_detr.scannet.mini_scannet import make_mini_scannet

SPLITS_DIR = Path(__file__).resolve().parents[2] / 'data' / 'splits'


def image_size(text: str) -> tuple[int, int]:
    """Return width and height from ``'320x240'``."""
    try:
        width, height = map(int, text.lower().split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not of the form WIDTHxHEIGHT, such as 320x240') from None
    return width, height


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out_dir', help='folder to create; nothing is done if it already holds this data set')
    parser.add_argument('--train', type=int, default=400, metavar='N', help='training frames (default: %(default)s)')
    parser.add_argument('--val', type=int, default=80, metavar='N', help='validation frames (default: %(default)s)')
    parser.add_argument('--size', type=image_size, default=(320, 240), metavar='WxH', help='pixels (default: 320x240)')
    parser.add_argument('--seed', type=int, default=0, metavar='S', help='seed of the rooms (default: %(default)s)')
    parser.add_argument('--workers', type=int, metavar='N', help='number of processes (default: one per core)')
    parser.add_argument('--splits-dir', default=SPLITS_DIR, metavar='DIR', help='folder with scannetv2_{train,val}.txt')
    return parser.parse_args()


def main() -> None:
    """Render, then print the number of objects per class."""
    args = parse_args()
    result = make_mini_scannet(args.out_dir, args.splits_dir, args.train, args.val, args.size, args.seed, args.workers)
    print(f'{args.out_dir} already holds this MiniScanNet' if result['reused'] else f'wrote {args.out_dir}')
    boxes = result['boxes']
    print(f'{"objects":<16}{"train":>7}{"val":>7}')
    for name in boxes['train']:
        print(f'{name:<16}{boxes["train"][name]:>7}{boxes["val"][name]:>7}')


if __name__ == '__main__':
    run_cli(main)
