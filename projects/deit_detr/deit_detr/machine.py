"""What this process runs on, and how much memory it takes."""

import gc
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from deit_detr.threads import cores

#: Bytes of a gigabyte, everywhere in this project.
GB = 1e9


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def describe() -> dict[str, str]:
    """Return what numbers are measured on, and with which code: ``device``, ``torch``, ``commit`` and ``date``."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        cpu = Path('/proc/cpuinfo')
        names = [line.split(':')[1].strip() for line in cpu.read_text().splitlines() if line.startswith('model name')] \
            if cpu.exists() else [platform.processor()]
        usable = cores()
        share = f'{usable} of {os.cpu_count()}' if usable < os.cpu_count() else f'{usable}'
        name = f'{share} cores, {names[0] if names else platform.machine()}'
    commit = subprocess.run(
        ['git', 'describe', '--always', '--dirty'], cwd=Path(__file__).parent, capture_output=True, text=True,
        check=False).stdout.strip()
    return dict(device=name, torch=torch.__version__, commit=commit, date=time.strftime('%Y-%m-%d'))


def peak_memory() -> int:
    """Return the most memory that this process has held so far, in bytes: allocated on the GPU, or resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path('/proc/self/status')
    if status.exists():  # ru_maxrss of a started process can be its parent's
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if 'VmHWM' in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def reset_peak_memory() -> None:
    """Release cached memory and restart :func:`peak_memory` from what is held now, if the system can do that."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path('/proc/self/clear_refs').write_text('5')


def free_memory(on: torch.device) -> int | None:
    """Return the bytes that this process can still take on a device; ``None`` if unknown on this system."""
    if on.type == 'cuda':
        # what PyTorch has reserved for itself can be used again
        return torch.cuda.mem_get_info(on)[0] + torch.cuda.memory_reserved(on) - torch.cuda.memory_allocated(on)
    info = Path('/proc/meminfo')
    if not info.exists():
        return None
    return next(int(line.split()[1]) * 1024 for line in info.read_text().splitlines() if 'MemAvailable' in line)
