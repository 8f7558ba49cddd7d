#!/usr/bin/env python
"""Check that the whole project works on this machine's GPU, on rooms rendered for this purpose.

It should take about 4 minutes on a GPU; on 2 CPU cores it takes 3.

Each family takes training steps in float32 and bfloat16; losses and gradients are compared with those of the CPU, and
memory with what preflight announces. Then the commands are run. Each check prints a line when it ends, and a table
follows; the exit status is 1 if a check failed. Without a GPU, the CPU is checked with the small recipes.

Examples:
    bash tools/check_gpu.sh
    python tools/misc/check_gpu.py --only losses training --families dino deformable-detr --json dino.json
"""

import argparse
from pathlib import Path

from deit_detr.command_line import run_cli
from deit_detr.measuring.gpu_check.run import GROUPS, check_gpu
from deit_detr.measuring.gpu_check.setting import FAMILIES


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=GROUPS, default=GROUPS, help='checks to run (default: all)')
    parser.add_argument(
        '--families', nargs='+', choices=FAMILIES, default=FAMILIES, help='detectors to check (default: all)')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/check_gpu'),
        help='folder for rooms, runs and the log (default: work_dirs/check_gpu)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='file of the rows (default: WORK_DIR/check_gpu.json)')
    return parser.parse_args()


def main() -> int:
    """Run the checks; return 1 if one failed."""
    args = parse_args()
    repo = Path(__file__).resolve().parents[2]
    return check_gpu(repo, args.work_dir, args.json or args.work_dir / 'check_gpu.json', args.only, args.families)


if __name__ == '__main__':
    run_cli(main)
