#!/usr/bin/env python
"""Convert scannet_frames_25k, or the raw ScanNetV2 scans, to COCO detection files.

Writes DIR/scannet_objdet_{train,val}.json, and links to the scenes below DIR/train and DIR/val; colour frames inside
.sens files are copied there.

Examples:
    python tools/dataset_converters/scannet2coco.py ~/scannet/scannet_frames_25k --out-dir data/scannet-frames
    python tools/dataset_converters/scannet2coco.py ~/scannet/scans --every 100 --out-dir data/scannet-raw
"""

import argparse
from pathlib import Path

from deit_detr.command_line import run_cli
from deit_detr.scannet.converter import convert

SPLITS_DIR = Path(__file__).resolve().parents[2] / 'data' / 'splits'

EPILOG = """\
Colour frames are .jpg, .jpeg or .png, in any case; if a frame has several, the first kind in this order is read.

A scene of the raw download has SCENE_2d-label-filt.zip and SCENE_2d-instance-filt.zip (or label-filt/ and
instance-filt/; the unfiltered archives if those are missing), and its colour frames in color/ or in SCENE.sens. Raw ids
are mapped through scannetv2-labels.combined.tsv; ids without an NYU40 class are void.

A frame that cannot be used (image missing, truncated or damaged, an 8-bit instance map) is counted, listed in
DIR/scannet_objdet_SPLIT_problems.txt and skipped. A JPEG is checked by its header and its end marker; a PNG is decoded
and its checksums are verified.

Instance ids below 1000 (wall, floor) are cross-checked with the label map in the first frame of each scene that has
any, and in the rest of the scene once one has failed: reading all label maps would take half as long again. A segment
that fails is listed and left out.
"""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'root', type=Path, metavar='SCANNET_ROOT',
        help='scannet_frames_25k, the scans/ of a raw download, or the folder above')
    parser.add_argument('--out-dir', type=Path, metavar='DIR', required=True, help='folder of the results')
    parser.add_argument(
        '--split', nargs='+', choices=('train', 'val', 'test'), default=('train', 'val'),
        help='splits to convert (default: train val); test has no labels: its file has images only')
    parser.add_argument(
        '--splits-dir', type=Path, metavar='DIR', default=SPLITS_DIR,
        help='folder with scannetv2_{train,val,test}.txt (default: data/splits of this project)')
    parser.add_argument(
        '--classes', type=int, choices=(20, 18), default=20,
        help='18 leaves out wall and floor, as Pri3D does (default: 20)')
    parser.add_argument(
        '--min-area', type=int, metavar='PX',
        help='leave out segments with fewer pixels (default: 0 with 20 classes, 1000 with 18, as Pri3D)')
    parser.add_argument(
        '--every', type=int, metavar='N',
        help='take only frames whose number is a multiple of N (default: 100 of raw scans, which gives the frames of '
             'scannet_frames_25k; all frames of scannet_frames_25k)')
    parser.add_argument(
        '--label-map', type=Path, metavar='TSV',
        help='scannetv2-labels.combined.tsv, for raw scans (default: in SCANNET_ROOT or above it)')
    parser.add_argument('--workers', type=int, metavar='N', help='number of processes (default: one per core)')
    parser.add_argument('--no-link', action='store_true', help='do not link the scenes below DIR/SPLIT')
    parser.add_argument('--with-mask', action='store_true', help='add segmentations as RLE (takes twice as long)')
    parser.add_argument('--strict', action='store_true', help='stop at the first problem')
    args = parser.parse_args()
    if args.workers is not None and args.workers < 1:
        parser.error('--workers must be at least 1')
    if args.min_area is not None and args.min_area < 0:
        parser.error('--min-area must not be negative')
    if args.every is not None and args.every < 1:
        parser.error('--every must be at least 1')
    return args


def main() -> None:
    """Convert, and print a summary of each split."""
    args = parse_args()
    convert(
        args.root, args.out_dir, args.splits_dir, args.split, args.classes, args.min_area, args.workers,
        link=not args.no_link, with_mask=args.with_mask, strict=args.strict, every=args.every, label_map=args.label_map)


if __name__ == '__main__':
    run_cli(main)
