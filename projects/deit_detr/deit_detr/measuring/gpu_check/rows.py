"""Checks, the table rows of their results, and a runner that no failing check stops."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import TextIO

import torch

from deit_detr.errors import UserError, printable
from deit_detr.machine import reset_peak_memory

OK, FAIL, SKIPPED = 'ok', 'FAIL', 'skipped'


class Skipped(Exception):
    """Raised by a check that cannot run here; the message says why."""


class Failed(Exception):
    """Raised by a check that found something wrong; the message is the whole explanation."""


@dataclass(frozen=True)
class Check:
    """A function to run, with the name of its row.

    Attributes:
        name: Name of the row.
        run: Returns its findings in one line. Any exception but :class:`Skipped` makes the row fail.
    """

    name: str
    run: Callable[[], str]


@dataclass(frozen=True)
class Row:
    """The result of a check.

    Attributes:
        name: Name of the check.
        status: ``OK``, ``FAIL`` or ``SKIPPED``.
        detail: One line.
        seconds: Wall time.
        trace: Traceback of an unexpected error.
    """

    name: str
    status: str
    detail: str
    seconds: float
    trace: str = ''

    def __str__(self) -> str:
        return f'{self.name:<33}  {self.status:<7}  {self.seconds:6.1f} s  {self.detail}'


def run_check(check: Check) -> Row:
    """Run a check and catch whatever it raises."""
    start, trace = time.perf_counter(), ''
    try:
        status, detail = OK, check.run()
    except Skipped as reason:
        status, detail = SKIPPED, str(reason)
    except (Failed, UserError) as reason:
        status, detail = FAIL, str(reason)
    except Exception as error:  # any library can raise any error on hardware that is new to this project
        # only the first line: messages of CUDA continue with general advice
        status, detail = FAIL, f'{type(error).__name__}: {error}'.split('\n')[0]
        trace = traceback.format_exc()
    return Row(check.name, status, printable(detail), time.perf_counter() - start, trace)


def in_turn(checks: list[Check], log: TextIO) -> Iterator[Row]:
    """Run checks in this process, one after the other.

    After an error in a GPU kernel, the process cannot use the GPU any more. All later checks would repeat that error,
    so they are skipped.

    Args:
        checks: The checks, in order.
        log: Receives everything that libraries print.
    """
    lost = None
    for check in checks:
        if lost:
            yield Row(check.name, SKIPPED, f'the GPU was lost in "{lost}": leave that out with --families or --only', 0)
            continue
        log.write(f'\n== {check.name}\n')
        log.flush()
        with quiet(log):
            row = run_check(Check(check.name, partial(_run_afresh, check)))
        if row.status == FAIL and not _gpu_answers():
            lost = check.name
        yield row


def side_by_side(checks: list[Check], workers: int) -> Iterator[Row]:
    """Run checks in threads, ``workers`` at a time, and yield each row when its check ends.

    The checks must not depend on each other; they only wait for processes and print nothing.
    """
    with ThreadPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(run_check, check) for check in checks]):
            yield future.result()


def table(rows: list[Row]) -> str:
    """Format the rows as lines of text, with the number of rows of each status."""
    counts = {status: sum(row.status == status for row in rows) for status in (OK, FAIL, SKIPPED)}
    summary = ', '.join(f'{count} {status}' for status, count in counts.items() if count)
    return '\n'.join([*map(str, rows), '', summary])


@contextmanager
def quiet(log: TextIO) -> Iterator[None]:
    """Send what this process and its child processes print to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        with redirect_stdout(log), redirect_stderr(log):
            yield
    finally:
        log.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _run_afresh(check: Check) -> str:
    reset_peak_memory()
    return check.run()


def _gpu_answers() -> bool:
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        return bool(torch.ones(1, device='cuda').item())
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False
