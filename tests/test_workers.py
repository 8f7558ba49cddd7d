"""Work in processes: order, progress, errors."""

import os
import signal
import time

import pytest

from deit_detr.errors import UserError
from deit_detr.workers import in_processes


def square(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3))  # later jobs end first
    return number**2, os.getpid()


def fail(number: int) -> int:
    if number == 3:
        raise UserError('the third')
    return number


def be_killed(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('workers', [1, 3])
def test_results_come_in_order(workers, capfd):
    results = list(in_processes(square, range(9), workers, 'squares', 'number', [2] * 9))
    assert [result for result, _ in results] == [number**2 for number in range(9)]
    assert (os.getpid() in {pid for _, pid in results}) == (workers == 1)
    assert 'squares' in (shown := capfd.readouterr().err) and '18/18' in shown and 'number/s' in shown


@pytest.mark.parametrize('workers', [1, 2])
def test_errors_arrive_as_they_are(workers):
    results = in_processes(fail, range(6), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match='the third'):
        next(results)


def test_killed_process_is_named():
    with pytest.raises(UserError, match='a worker process was killed'):
        list(in_processes(be_killed, range(4), 2))
    with pytest.raises(UserError, match='workers must be at least 1, not 0'):
        next(in_processes(fail, [1], 0))


def test_stopping_early_ends_the_processes():
    results = in_processes(square, range(300), 2)
    pids = {next(results)[1] for _ in range(6)}
    results.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
