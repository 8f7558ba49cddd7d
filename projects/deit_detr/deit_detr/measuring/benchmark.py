"""Time and memory of variants that take turns step by step, so that a busy machine slows all of them alike.

On a GPU they run in this process, which saves the start of one for each. On a CPU each runs in its own process, which
gives it a peak memory of its own.
"""

import multiprocessing
import os
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection

import torch

from deit_detr.errors import UserError
from deit_detr.machine import GB, peak_memory, reset_peak_memory
from deit_detr.measuring.device_use import device_use
from deit_detr.measuring.variants import Variant, make_step

#: In the errors of PyTorch, cuBLAS and the CPU's allocator.
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|bad_alloc|ALLOC_FAILED")
CACHE = 256 * 1024**2  # bytes, more than the cache of any GPU


def seconds_of(step: Callable[[], None]) -> float:
    """Return the wall time of one call, until the device is done."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@contextmanager
def limited_memory(limit: float | None) -> Iterator[None]:
    """Make allocations beyond a limit in bytes fail in the block, so that they do not take the machine down."""
    if limit is None:
        yield
    elif torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    else:
        before = resource.getrlimit(resource.RLIMIT_DATA)
        reserved = int(limit + GB)  # this limit also counts memory that is reserved but never used
        resource.setrlimit(resource.RLIMIT_DATA, (reserved, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)


def _serve(pipe: Connection, variant: Variant, warmup: int) -> None:
    """Run in a variant's process: time a step for each ``True`` received, then send the peak memory."""
    try:
        torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', os.cpu_count())))
        before = peak_memory()
        with limited_memory(variant.memory_limit):
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
        ``peak_gb``, ``empty_gb`` (before the model is built; not contained in the peak on a GPU) and, relative to the
        last variant, ``speedup`` and ``memory_ratio``.

    Raises:
        UserError: If a variant cannot be built or runs out of memory.
    """
    results = (measure_here if torch.cuda.is_available() else _measure_in_processes)(variants, steps, warmup)
    for result in results:
        if 'error' in result:
            raise UserError(f'{result["name"]}: {result["error"]}')
    return results


def _measure_in_processes(variants: list[Variant], steps: int, warmup: int) -> list[dict]:
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
    return _with_ratios([
        dict(**asdict(variant), seconds=times, peak_gb=peak / GB, empty_gb=empty / GB)
        for variant, times, peak, (_, empty) in zip(variants, seconds, peaks, processes, strict=True)])


def measure_here(variants: list[Variant], steps: int, warmup: int) -> list[dict]:
    """Measure variants side by side in this process.

    Args:
        variants: As for :func:`measure`; the limit of the first one's memory counts.
        steps: As for ``measure``.
        warmup: As for ``measure``, at least one.

    Returns:
        list[dict]: As of ``measure``, and :func:`~deit_detr.measuring.device_use.device_use` of a step. Peaks are above
        ``empty_gb``. A variant that fails has ``error`` instead, 'out of memory' or a sentence; the others are compared
        with the last one that was measured.
    """
    results, built = [asdict(variant) | dict(seconds=[]) for variant in variants], {}

    def build(index: int, result: dict) -> None:
        reset_peak_memory()
        empty = peak_memory()
        step = make_step(variants[index])
        for _ in range(max(1, warmup)):
            seconds_of(step)
        result.update(empty_gb=empty / GB, peak_gb=max(0, peak_memory() - empty) / GB)
        built[index] = step

    def run(index: int, result: dict) -> None:
        # each step begins with a cold cache, as beside others; not where memory is what is measured
        if torch.cuda.is_available() and variants[index].memory_limit is None:
            torch.empty(CACHE, dtype=torch.int8, device='cuda').zero_()
            torch.cuda.synchronize()
        result['seconds'].append(seconds_of(built[index]))

    def profile(index: int, result: dict) -> None:
        result.update(device_use(built[index], statistics.median(result['seconds'])))

    with limited_memory(variants[0].memory_limit):
        for action in (build, *[run] * steps, profile):
            for index, result in enumerate(results):
                if 'error' not in result:
                    with _reported(result):
                        action(index, result)
    if any(variant.compile for variant in variants):
        torch._dynamo.reset()  # CUDA graphs keep their memory otherwise
    return _with_ratios(results)


@contextmanager
def _reported(result: dict) -> Iterator[None]:
    """Write an error into a result instead of raising it."""
    try:
        yield
    except Exception as error:  # one broken row must not end the others
        text = next(iter(str(error).splitlines()), '')
        if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
            text = 'out of memory'
        elif not isinstance(error, UserError):
            text = f'{type(error).__name__}: {text}'
        result['error'] = text


def _with_ratios(results: list[dict]) -> list[dict]:
    """Add medians, rates and the ratios to the last result that has no error."""
    measured = [result for result in results if 'error' not in result]
    for result in measured:
        result['median'] = statistics.median(result['seconds'])
        result['images_per_second'] = result['batch'] / result['median']
    for result in measured:
        result['speedup'] = measured[-1]['median'] / result['median']
        if measured[-1]['peak_gb']:  # on a CPU, memory that was freed before can be used again
            result['memory_ratio'] = result['peak_gb'] / measured[-1]['peak_gb']
    return results
