"""Run all checks: a line for each as it ends, then the table and the JSON file."""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TextIO

from mmengine.logging import MMLogger

from deit_detr.errors import CannotWrite
from deit_detr.files import write_json
from deit_detr.machine import describe, device
from deit_detr.measuring.gpu_check.commands import check_commands
from deit_detr.measuring.gpu_check.losses import check_losses
from deit_detr.measuring.gpu_check.machine import check_machine
from deit_detr.measuring.gpu_check.rows import FAIL, Check, Row, in_turn, table
from deit_detr.measuring.gpu_check.setting import FAMILIES, Setting, render_rooms, variables
from deit_detr.measuring.gpu_check.training import check_memory, check_training

#: Groups of checks in order: timed ones come before those that keep the machine busy.
GROUPS = ('training', 'losses', 'memory', 'commands')
#: Families whose memory is checked on a CPU, where preflight only estimates.
CPU_MEMORY = ('detr-fast', 'lw-detr')


def check_gpu(
    repo: Path, folder: Path, json_file: Path, only: Sequence[str] = GROUPS, families: Sequence[str] = FAMILIES,
) -> int:
    """Run the checks, print their rows and write them to a file.

    Args:
        repo: Folder of this repository.
        folder: Folder for rooms, runs and the log; rooms of an earlier call are used again.
        json_file: File for the rows, for programs.
        only: Some of :data:`GROUPS`.
        families: Some of :data:`FAMILIES`.

    Returns:
        int: Exit status: 1 if a row failed.

    Raises:
        CannotWrite: If the folder or a file cannot be written.
    """
    start = time.perf_counter()
    machine = describe()
    print(f'GPU: {machine["device"]}' if device().type == 'cuda' else
          'No GPU: the CPU is checked instead, with the small recipes; checks that need a GPU are skipped')
    setting = Setting(repo.resolve(), folder.resolve(), tuple(families))
    try:
        setting.folder.mkdir(parents=True, exist_ok=True)
        log_file = setting.folder / 'check_gpu.log'
        log = log_file.open('w', buffering=1)  # child processes write to it as well, in order
    except OSError as error:
        raise CannotWrite(error.errno, error.strerror, error.filename) from error
    rows = []
    with log, variables(setting.environment):
        MMLogger.get_current_instance().setLevel('ERROR')
        for row in _rows(setting, only, log):
            rows.append(row)
            print(row, flush=True)
            if row.trace:
                log.write(f'\n== {row.name}\n{row.trace}')
                log.flush()
    seconds = time.perf_counter() - start
    print(f'\n{table(rows)} in {seconds:.0f} s')
    if any(row.trace for row in rows):
        print(f'The tracebacks are in {log_file}')
    write_json(json_file, dict(machine=machine, seconds=seconds, rows=[asdict(row) for row in rows]))
    return int(any(row.status == FAIL for row in rows))


def _rows(setting: Setting, only: Sequence[str], log: TextIO) -> Iterator[Row]:
    """Run the checks of some groups; a failing group does not stop the others."""
    for check in (Check('machine', check_machine), Check('rooms', partial(render_rooms, setting))):
        yield from in_turn([check], log)  # each on its own: rooms need no GPU
    checks = []
    if 'training' in only:
        checks += [
            Check(f'training {family} {name}', partial(check_training, setting, family, amp))
            for family in setting.families for name, amp in (('float32', False), ('bfloat16', True))]
    if 'losses' in only:
        checks += [
            Check(f'losses {family}', partial(check_losses, setting, family)) for family in setting.families]
    if 'memory' in only:
        checks += [
            Check(f'memory {family}', partial(check_memory, setting, family))
            for family in setting.families if setting.on_gpu or family in CPU_MEMORY]
    yield from in_turn(checks, log)
    if 'commands' in only:
        runs = setting.folder / 'runs'
        shutil.rmtree(runs, ignore_errors=True)
        yield from check_commands(setting, runs, log)
