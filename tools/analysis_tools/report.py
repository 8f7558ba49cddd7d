#!/usr/bin/env python
"""Write one HTML page about a training run: curves, AP, errors, pictures.

Example:
    python tools/analysis_tools/report.py work_dirs/dino_deit-tiny_1xb4-8e_mini-scannet
"""

import argparse
from pathlib import Path

from deit_detr.command_line import run_cli  # first: it says in a sentence which package cannot be imported

# isort: split
from deit_detr.config_file import Options
from deit_detr.pages.report import make_report

EPILOG = """\
The best checkpoint of the run (or its last) runs on the validation data of its config, and the detections are kept
beside the page. To write the page again without running it, use --predictions report.bbox.json. tools/test.py also
makes such a file, with --cfg-options test_evaluator.outfile_prefix=results. The page lists everything that is missing.
"""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, metavar='WORK_DIR', help='work folder of a run, finished or not')
    parser.add_argument('--compare', type=Path, metavar='WORK_DIR2', help='another run to compare with')
    parser.add_argument('--out', type=Path, metavar='FILE', help='the page (default: WORK_DIR/report.html)')
    parser.add_argument('--checkpoint', type=Path, help='checkpoint to use in place of the best one of WORK_DIR')
    parser.add_argument(
        '--predictions', type=Path, nargs='+', default=[], metavar='FILE.bbox.json',
        help='detections in COCO format of WORK_DIR and WORK_DIR2, to use instead of running the detectors')
    parser.add_argument('--images', type=int, default=100, metavar='N', help='pictures in the page (default: 100)')
    parser.add_argument(
        '--attention', type=int, default=4, metavar='N', help='images whose attention is shown (default: 4)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, metavar='KEY=VALUE',
        help='override settings of the configs, e.g. val_dataloader.dataset.data_root=elsewhere/')
    args = parser.parse_args()
    if args.images < 0 or args.attention < 0:
        parser.error('--images and --attention must not be negative')
    return args


def main() -> None:
    """Write the page and print what is missing from it."""
    args = parse_args()
    out = args.out or args.work_dir / 'report.html'
    missing = make_report(
        [args.work_dir, *([args.compare] if args.compare else [])], out, checkpoint=args.checkpoint,
        predictions=args.predictions, max_images=args.images, max_attention=args.attention,
        cfg_options=args.cfg_options)
    for text in missing:
        print(f'missing: {text}')
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    run_cli(main)
