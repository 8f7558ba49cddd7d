"""The number of threads that compute, and how they wait, when other programs use the same cores.

PyTorch uses one thread per core. At the end of every operation OpenMP's threads wait for each other, spinning for
milliseconds. If another program runs on a core, all of them wait for the thread that shares it, and a training step
takes three to five times as long. docs/install.md has the measurements.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

#: Iterations that a waiting thread of GNU's OpenMP, which torch includes, spins before it sleeps.
SPINS = '3000'
#: Variables of the user. If one is set, nothing is changed.
THREADS, WAITING = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'), ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')
SHORTEST = 0.3  # seconds; the system counts hundredths


@dataclass(frozen=True)
class Load:
    """Processor time used so far on the cores that this process may use.

    Attributes:
        busy: Busy seconds of all cores together since the system started.
        own: Processor seconds of this process.
        clock: Time of the reading, in seconds.
    """

    busy: float
    own: float
    clock: float


def bound_waiting() -> Load | None:
    """Let waiting threads sleep soon, if torch is not imported yet, and read the load for :func:`fit_threads`.

    Returns:
        Load | None: None if unknown on this system.
    """
    if 'torch' not in sys.modules and not os.environ.keys() & set(WAITING):
        os.environ['GOMP_SPINCOUNT'] = SPINS
    return read_load()


def fit_threads(start: Load | None) -> None:
    """Set PyTorch's threads to the number of cores that were free of other programs since :func:`bound_waiting`.

    Args:
        start: From :func:`bound_waiting`. Nothing changes less than 0.3 s later, or if the user has set the number.
    """
    now = read_load()
    if start is None or now is None or now.clock - start.clock < SHORTEST or os.environ.keys() & set(THREADS):
        return
    import torch

    free = cores() - (now.busy - start.busy - (now.own - start.own)) / (now.clock - start.clock)
    torch.set_num_threads(max(1, min(torch.get_num_threads(), round(free))))


def read_load() -> Load | None:
    """Read the processor time used so far; None if unknown on this system."""
    try:
        mine = {f'cpu{number}' for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path('/proc/stat').read_text().splitlines() if line.startswith('cpu')]
    except (OSError, AttributeError):
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [[int(number) for number in line[1:9]] for line in lines if line[0] in mine]
    busy = sum(sum(core) - core[3] - core[4] for core in ticks) / os.sysconf('SC_CLK_TCK')
    return Load(busy, time.process_time(), time.perf_counter())


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def describe() -> str:
    """Describe for a log how many threads compute and how they wait."""
    import torch

    waiting = [f'{name}={os.environ[name]}' for name in WAITING if name in os.environ]
    return f'{torch.get_num_threads()} threads on {cores()} cores ({", ".join(waiting) or "waiting as OpenMP does"})'
