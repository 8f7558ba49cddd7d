"""Checks, the rows of the table that they become, and a runner that no check can stop."""

import gc
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

OK, FAIL, SKIPPED = 'ok', 'FAIL', 'skipped'


class Skipped(Exception):
    """Raised by a check that cannot be made here; the message says why."""


class Failed(Exception):
    """Raised by a check that found something wrong; the message says all there is to say."""


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
        name: Of its row.
        look: Returns one line of what was seen. Whatever it raises makes the row fail, except for :class:`Skipped`.
    """

    name: str
    look: Callable[[], str]


@dataclass(frozen=True)
class Row:
    """What a check said.

    Attributes:
        name: As the check's.
        status: ``OK``, ``FAIL`` or ``SKIPPED``.
        detail: One line.
        seconds: Wall time.
        trace: The traceback, where an error was not foreseen.
    """

    name: str
    status: str
    detail: str
    seconds: float
    trace: str = ''

    def __str__(self) -> str:
        return f'{self.name:<33}  {self.status:<7}  {self.seconds:6.1f} s  {self.detail}'


def run_check(check: Check) -> Row:
    """Make a check, whatever comes of it."""
    start, trace = time.perf_counter(), ''
    try:
        status, detail = OK, check.look()
    except Skipped as reason:
        status, detail = SKIPPED, str(reason)
    except (Failed, UserError) as reason:
        status, detail = FAIL, str(reason)
    except Exception as error:  # of any library, on hardware that nothing here has seen
        # the first line of the message: those of CUDA go on with general advice
        status, detail = FAIL, f'{type(error).__name__}: {error}'.split('\n')[0]
        trace = traceback.format_exc()
    return Row(check.name, status, printable(detail), time.perf_counter() - start, trace)


def in_turn(checks: list[Check], log: TextIO) -> Iterator[Row]:
    """Make checks in this process, one after the other.

    An error of a GPU's kernel ends the use of the GPU in the process that it happens in. The checks after it would all
    repeat that error, and are skipped.

    Args:
        checks: In their order.
        log: Where everything goes that libraries print.
    """
    lost = None
    for check in checks:
        if lost:
            yield Row(check.name, SKIPPED, f'the GPU was lost in "{lost}": leave that out with --families or --only', 0)
            continue
        log.write(f'\n== {check.name}\n')
        log.flush()
        with quiet(log):
            row = run_check(Check(check.name, partial(_look_afresh, check)))
        if row.status == FAIL and not _gpu_answers():
            lost = check.name
        yield row


def side_by_side(checks: list[Check], workers: int) -> Iterator[Row]:
    """Make checks at the same time, in threads; they only wait for processes, and print nothing.

    Args:
        checks: They do not depend on each other.
        workers: How many at a time.

    Yields:
        Row: As each ends.
    """
    with ThreadPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(run_check, check) for check in checks]):
            yield future.result()


def table(rows: list[Row]) -> str:
    """The rows as lines of text, and how many of them failed."""
    counts = {status: sum(row.status == status for row in rows) for status in (OK, FAIL, SKIPPED)}
    summary = ', '.join(f'{count} {status}' for status, count in counts.items() if count)
    return '\n'.join([*map(str, rows), '', summary])


@contextmanager
def quiet(log: TextIO) -> Iterator[None]:
    """What this process and those that it starts print meanwhile goes to a file."""
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


def _look_afresh(check: Check) -> str:
    free_memory()
    return check.look()


def free_memory() -> None:
    """Let nothing of the last check count in the next one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


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
