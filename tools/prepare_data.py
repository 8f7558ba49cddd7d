#!/usr/bin/env python
"""Convert a labelled folder to COCO files and a config, check both, and print the command that trains.

Reads YOLO with data.yaml, Pascal VOC, CVAT for images, Label Studio (JSON), labelme, COCO (also Roboflow's) and Hugging
Face's imagefolder with metadata.jsonl. Images stay where they are. What cannot be used is counted by reason.

Example:
    python tools/prepare_data.py ~/Downloads/cutlery.v1.yolov8 --out-dir data/cutlery
    python tools/train.py data/cutlery/cutlery.py
"""

import argparse
from pathlib import Path

from deit_detr.command_line import run_cli  # first: names a package that cannot be imported in a sentence

# isort: split
from deit_detr.datasets.formats.prepare import READERS, prepare
from deit_detr.engine.start.findings import FAIL, table
from deit_detr.engine.start.launch import load_config
from deit_detr.engine.start.preflight import check_config
from deit_detr.pages.data_page import make_data_page

RECIPE = Path(__file__).resolve().parents[1] / 'projects/deit_detr/configs/dino_deit-tiny_8xb2-12e_coco.py'


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, metavar='FOLDER', help='folder of images and labels, unpacked')
    parser.add_argument('--out-dir', type=Path, metavar='DIR', required=True, help='folder of the results')
    parser.add_argument('--format', choices=READERS, help='only needed if the folder holds several formats')
    parser.add_argument('--recipe', type=Path, metavar='CONFIG', default=RECIPE,
                        help='config to inherit (default: DINO with DeiT-tiny on COCO)')
    parser.add_argument('--val', type=float, default=0.2, metavar='SHARE',
                        help='share of images for validation if the folder has no such split (default: 0.2)')
    parser.add_argument('--workers', type=int, metavar='N', help='number of processes (default: one per core)')
    parser.add_argument('--no-check', action='store_true', help='only convert: neither the page nor the preflight')
    args = parser.parse_args()
    if not 0 < args.val < 1:
        parser.error('--val must be between 0 and 1')
    return args


def main() -> int:
    """Convert, write the page, run the preflight."""
    args = parse_args()
    prepared = prepare(args.folder, args.out_dir, args.recipe.resolve(), args.format, args.val, args.workers)
    print(prepared.summary)
    if not args.no_check:
        page = args.out_dir / 'browse.html'
        print(make_data_page(prepared.ann_files, page, prepared.img_dirs))
        print(f'{page}: look at it before training')
        run = argparse.Namespace(
            config=prepared.config, cfg_options=None, work_dir=None, launcher='none', local_rank=0)
        findings = check_config(load_config(run))
        print(table(findings))
        if any(finding.status == FAIL for finding in findings):
            print(f'Repair what says FAIL; then: python tools/preflight.py {prepared.config}')
            return 1
    print(f'python tools/train.py {prepared.config}')
    return 0


if __name__ == '__main__':
    run_cli(main)
