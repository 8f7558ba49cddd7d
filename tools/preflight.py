#!/usr/bin/env python
"""Check what training needs: versions, machine, data, config and model. Takes seconds and trains nothing.

Prints one line per check: ok, warn, FAIL with the fix, unknown if it cannot be checked, or ignored if it fails and
PreflightHook.ignore of the config names it. The exit status is 1 if a check says FAIL. Training runs the same checks at
its start (PreflightHook).

Example:
    python tools/preflight.py projects/deit_detr/configs/detr_deit-tiny_8xb1-150e_scannet.py
"""

import argparse

from deit_detr.command_line import run_cli
from deit_detr.engine.start.findings import FAIL, table
from deit_detr.engine.start.launch import add_run_arguments, load_config
from deit_detr.engine.start.preflight import check_config


def main() -> int:
    """Run the checks and print their findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    add_run_arguments(parser)
    findings = check_config(load_config(parser.parse_args()))
    print(table(findings))
    return int(any(finding.status == FAIL for finding in findings))


if __name__ == '__main__':
    run_cli(main)
