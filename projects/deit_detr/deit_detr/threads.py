"""How many threads compute, and how they wait, beside other programs on the same cores.

PyTorch takes a thread a core. The threads of OpenMP wait for each other at the end of every operation, by spinning for
milliseconds: with another program on a core, all of them wait for the one that has to share it, and a training step
takes three to five times as long. docs/install.md has the measurements.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

#: Turns that a waiting thread of GNU's OpenMP, which torch brings, spins before it sleeps.
SPINS = '3000'
#: The user's own choices; then nothing is changed.
THREADS, WAITING = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'), ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')
SHORTEST = 0.3  # seconds; the system counts in hundredths


@dataclass(frozen=True)
class Load:
    """What the cores that this process may use have done.

    Attributes:
        busy: Seconds of all of them together, since the system started.
        own: Seconds of this process.
        clock: When this was read.
    """

    busy: float
    own: float
    clock: float


def bound_waiting() -> Load | None:
    """Let waiting threads sleep soon, where torch is not imported yet, and look at the cores; for :func:`fit_threads`.

    Returns:
        Load | None: None where the system does not tell.
    """
    if 'torch' not in sys.modules and not os.environ.keys() & set(WAITING):
        os.environ['GOMP_SPINCOUNT'] = SPINS
    return read_load()


def fit_threads(start: Load | None) -> None:
    """Compute with as many threads as there were cores without another program since :func:`bound_waiting`.

    Args:
        start: What that returned. Nothing is changed less than 0.3 s later, or where the user has set the number.
    """
    now = read_load()
    if start is None or now is None or now.clock - start.clock < SHORTEST or os.environ.keys() & set(THREADS):
        return
    import torch

    free = cores() - (now.busy - start.busy - (now.own - start.own)) / (now.clock - start.clock)
    torch.set_num_threads(max(1, min(torch.get_num_threads(), round(free))))


def read_load() -> Load | None:
    """What the cores have done until now; None where the system does not tell."""
    try:
        mine = {f'cpu{number}' for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path('/proc/stat').read_text().splitlines() if line.startswith('cpu')]
    except (OSError, AttributeError):
        return None
    # user, nice, system, idle, waiting for disks, two kinds of interrupts, stolen by the host of a virtual machine
    ticks = [[int(number) for number in line[1:9]] for line in lines if line[0] in mine]
    busy = sum(sum(core) - core[3] - core[4] for core in ticks) / os.sysconf('SC_CLK_TCK')
    return Load(busy, time.process_time(), time.perf_counter())


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def words() -> str:
    """How many threads compute and how they wait, for a log."""
    import torch

    waiting = [f'{name}={os.environ[name]}' for name in WAITING if name in os.environ]
    return f'{torch.get_num_threads()} threads on {cores()} cores ({", ".join(waiting) or "waiting as OpenMP does"})'
