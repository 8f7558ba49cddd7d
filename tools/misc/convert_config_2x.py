#!/usr/bin/env python
"""Translate a DETR config of mmdet 2.x into a self-contained one of mmdet 3.x.

OLD.py is read without running it: it may contain assignments of values, dict(...), simple arithmetic and
comprehensions; other code is an error that names its line.

Fields that cannot be translated are listed on standard error and in a comment at the top of the new config; the exit
status is then 1. No field is dropped silently. docs/migrate.md has the details.

Example:
    python tools/misc/convert_config_2x.py detr_deit_tiny_8x1_150e_scannet.py detr_3x.py
"""

import argparse
import sys
from pathlib import Path

from deit_detr.command_line import run_cli
from deit_detr.errors import UserError
from deit_detr.files import write_text
from deit_detr.migration.config_2x import convert_config_2x


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('old', metavar='OLD.py', help='config of mmdet 2.x')
    parser.add_argument('new', metavar='NEW.py', nargs='?', help='config to write (default: standard output)')
    return parser.parse_args()


def main() -> int:
    """Translate a config; return 1 if something is left to do by hand."""
    args = parse_args()
    converted = convert_config_2x(args.old)
    for note in converted.notes:
        print(note, file=sys.stderr)
    if args.new is None:
        print(converted.text, end='')
    else:
        new = Path(args.new)
        if new.resolve() == Path(args.old).resolve():
            raise UserError(f'{new}: old and new config are the same file')
        write_text(new, converted.text)
        print(f'{new}: written', file=sys.stderr)
    if converted.by_hand:
        print(f'not translated, to be done by hand ({len(converted.by_hand)}):', file=sys.stderr)
        for item in converted.by_hand:
            print(f'  {item}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    run_cli(main)
