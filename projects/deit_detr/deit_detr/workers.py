"""Spread work over processes, with a progress bar and with results in order."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from threading import Thread
from typing import TypeVar

import cv2
from tqdm import tqdm

from deit_detr.errors import UserError
from deit_detr.threads import cores

Job = TypeVar('Job')
Result = TypeVar('Result')


def in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None = None, title: str = '',
    unit: str = 'job', sizes: Sequence[int] | None = None,
) -> Iterator[Result]:
    """Call a function on each job and yield the results in the order of the jobs.

    Args:
        function: The function. It, its argument and its result must be picklable.
        jobs: Arguments of the calls.
        workers: Number of processes; 1 makes the calls in this process. Default: one per core.
        title: Title of the progress bar.
        unit: Unit that the progress bar counts.
        sizes: Number of units of each job. Default: 1.

    Yields:
        Result: Return value of a call. A caller that stops early should ``close()`` the generator, which ends the
        processes.

    Raises:
        UserError: If ``workers`` is below 1, or the system kills a process.
    """
    if workers is not None and workers < 1:
        raise UserError(f'workers must be at least 1, not {workers}')
    sizes = sizes or [1] * len(jobs)
    workers = min(workers or cores(), len(jobs))
    # A forked process shares the memory of this one and imports nothing again. macOS and Windows cannot fork safely.
    context = get_context('fork' if sys.platform == 'linux' else 'spawn')
    # A forked process hangs in its first parallel call if OpenCV's threads were running in this one.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ProcessPoolExecutor(workers, context, _begin, (os.getpid(),)) if workers > 1 else None
    try:
        with tqdm(desc=title, total=sum(sizes), unit=unit) as bar:
            for size, result in zip(sizes, (pool.map if pool else map)(function, jobs), strict=True):
                yield result
                bar.update(size)
    except BrokenProcessPool:
        raise UserError('a worker process was killed, perhaps because memory ran out: try fewer --workers') from None
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _begin(parent: int) -> None:
    """Ignore Ctrl-C, which the main process handles, and end if that process is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=watch, daemon=True).start()
