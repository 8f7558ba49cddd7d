#!/usr/bin/env python
"""Write one HTML page about annotation files, to inspect before training: pictures, histograms, odd boxes.

Example:
    python tools/analysis_tools/browse_data.py data/scannet-frames/scannet_objdet_{train,val}.json
"""

import argparse
from pathlib import Path

from deit_detr.command_line import run_cli
from deit_detr.pages.data_page import make_data_page


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('ann_file', type=Path, nargs='+', metavar='ANN_FILE', help='COCO detection file')
    parser.add_argument(
        '--img-dir', type=Path, nargs='+', default=[], metavar='DIR',
        help='folder of the images of each file (default: the folder beside it with the name of the split: val/ for '
        '*_val.json)')
    parser.add_argument('--out', type=Path, metavar='FILE', help='page (default: browse.html beside the first file)')
    parser.add_argument('--images', type=int, default=100, metavar='N', help='pictures in the page (default: 100)')
    parser.add_argument('--sheet', type=Path, metavar='FILE.jpg', help='also write a contact sheet of 48 pictures')
    args = parser.parse_args()
    if args.images < 0:
        parser.error('--images must not be negative')
    return args


def main() -> None:
    """Write the page and print what is odd."""
    args = parse_args()
    out = args.out or args.ann_file[0].with_name('browse.html')
    print(make_data_page(args.ann_file, out, args.img_dir, max_images=args.images, sheet=args.sheet))
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    run_cli(main)
