"""Time and memory of variants that take turns.

Each variant runs in its own process, which gives it a peak memory of its own. The processes take turns step by step, so
that a busy machine slows all of them alike.
"""

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection

import torch

from deit_detr.errors import UserError
from deit_detr.machine import GB, peak_memory
from deit_detr.measuring.variants import Variant, make_step


def seconds_of(step: Callable[[], None]) -> float:
    """Return the wall time of one call, until the device is done."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _limit_memory(limit: float) -> None:
    """Make allocations beyond a limit in bytes fail, so that they do not take the machine down."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    else:
        reserved = int(limit + GB)  # this limit also counts memory that is reserved but never used
        resource.setrlimit(resource.RLIMIT_DATA, (reserved, reserved))


def _serve(pipe: Connection, variant: Variant, warmup: int) -> None:
    """Run in a variant's process: time a step for each ``True`` received, then send the peak memory."""
    try:
        torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', os.cpu_count())))
        before = peak_memory()
        if variant.memory_limit:
            _limit_memory(variant.memory_limit)
        step = make_step(variant)
        for _ in range(warmup):
            seconds_of(step)
        pipe.send(before)
        while pipe.recv():
            pipe.send(seconds_of(step))
        pipe.send(peak_memory())
    except Exception as error:  # any error: the waiting process raises it
        pipe.send(error if isinstance(error, UserError) else UserError(f'{variant.name}: {error}'))


@contextmanager
def _started(variant: Variant, warmup: int) -> Iterator[Callable]:
    """Start a variant's process and yield ``ask(value)``, which sends a value, unless it is ``None``, and waits."""
    context = multiprocessing.get_context('spawn')
    pipe, other_end = context.Pipe()
    process = context.Process(target=_serve, args=(other_end, variant, warmup), daemon=True)
    process.start()
    other_end.close()

    def ask(value: bool | None = None):
        try:
            if value is not None:
                pipe.send(value)
            answer = pipe.recv()
        except (EOFError, ConnectionError):
            process.join()
            raise UserError(
                f'{variant.name}: its process ended with status {process.exitcode}; out of memory?') from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    try:
        yield ask
    finally:
        pipe.close()
        process.kill()
        process.join()


def measure(variants: list[Variant], steps: int, warmup: int) -> list[dict]:
    """Measure variants side by side.

    Args:
        variants: At least one; the others are compared with the last.
        steps: Measured steps of each variant.
        warmup: Steps before the measured ones.

    Returns:
        list[dict]: For each variant its settings, ``seconds`` of every step, ``median``, ``images_per_second``,
        ``peak_gb``, ``empty_gb`` (before the model is built) and, relative to the last variant, ``speedup`` and
        ``memory_ratio``.

    Raises:
        UserError: If a variant cannot be built or runs out of memory.
    """
    with ExitStack() as stack:
        processes = []
        for variant in variants:
            ask = stack.enter_context(_started(variant, warmup))
            processes.append((ask, ask()))
        seconds = [[] for _ in variants]
        for _ in range(steps):
            for (ask, _), times in zip(processes, seconds, strict=True):
                times.append(ask(True))
        peaks = [ask(False) for ask, _ in processes]

    results = []
    for variant, times, peak, (_, empty) in zip(variants, seconds, peaks, processes, strict=True):
        median = statistics.median(times)
        results.append(dict(
            **asdict(variant), seconds=times, median=median, images_per_second=variant.batch / median,
            peak_gb=peak / GB, empty_gb=empty / GB))
    for result in results:
        result['speedup'] = results[-1]['median'] / result['median']
        result['memory_ratio'] = result['peak_gb'] / results[-1]['peak_gb']
    return results
