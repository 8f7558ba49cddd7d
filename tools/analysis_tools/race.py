#!/usr/bin/env python
r"""Race recipes: same data, same training time, same machine; AP against time and epochs as tables and a plot.

Each run is tools/train.py in its own process, one after the other. The clock counts training only, not start-up and
evaluation; the whole learning-rate schedule of a recipe is fitted to it. The first recipe is the reference. A race that
was interrupted continues with the first run in DIR that is not finished.

Examples:
    python tools/analysis_tools/race.py projects/deit_detr/configs/*mini-scannet.py --minutes 10 --seeds 0 1 2
    python tools/analysis_tools/race.py SEED.py OTHER.py --minutes 10 --full SEED.py --out work_dirs/race
    python tools/analysis_tools/race.py --plot-only work_dirs/race
"""

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path

from deit_detr.command_line import run_cli  # first: it says in a sentence which package cannot be imported
from deit_detr.errors import UserError

# isort: split
from deit_detr.config_file import Options
from deit_detr.measuring import race, race_report

TRAIN = Path(__file__).resolve().parents[1] / 'train.py'


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='recipes; the first is the reference')
    parser.add_argument('--minutes', type=float, default=10, help='training time of a run (default: 10)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], metavar='N', help='one run per seed (default: 0)')
    parser.add_argument('--evals', type=int, default=8, help='evaluations of a run, equally spaced (default: 8)')
    parser.add_argument(
        '--cpu-clock', action='store_true',
        help='minutes are CPU time of the training, loading included: for a machine that has other work')
    parser.add_argument(
        '--full', nargs='+', default=[], metavar='CONFIG',
        help='recipes to train also for all of their epochs, with the first seed')
    parser.add_argument('--out', default='work_dirs/race', metavar='DIR', help='folder (default: work_dirs/race)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, default={}, metavar='KEY=VALUE',
        help='override settings of every recipe')
    parser.add_argument('--plot-only', metavar='DIR', help='only write the tables and plot of DIR again')
    return parser.parse_args()


def main() -> None:
    """Run the race, or write the results of an earlier one again."""
    args = parse_args()
    if args.plot_only:
        path = Path(args.plot_only, 'race.json')
        if not path.is_file():
            raise UserError(f'{path}: no such file')
        out_dir, results = args.plot_only, json.loads(path.read_text())
        race_report.write_results(results, out_dir)
    else:
        if not args.configs:
            raise UserError('no CONFIG given: name the recipes to race')
        if args.minutes <= 0 or args.evals < 1:
            raise UserError('--minutes and --evals must be positive')
        out_dir = args.out
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also ends the training that is running
        runs = race.plan(args.configs, args.full, args.minutes, args.evals, args.seeds, out_dir, args.cpu_clock)
        command = shlex.join(['python', *sys.argv])
        results = race.race(runs, args.cfg_options, TRAIN, out_dir, command)
    print(f'{race_report.to_markdown(results)}\nrace.json, race.md, race.png and race.svg are in {out_dir}')


if __name__ == '__main__':
    run_cli(main)
