"""The check of the hardware and software that all other checks run on."""

import platform
import shutil
import subprocess

import torch

from deit_detr.machine import GB, describe
from deit_detr.measuring.gpu_check.rows import Failed
from deit_detr.threads import cores
from deit_detr.versions import operators


def check_machine() -> str:
    """Name the hardware and the software; the check fails if PyTorch cannot use the GPU."""
    machine = describe()
    software = f'torch {machine["torch"]} (CUDA {torch.version.cuda}), Python {platform.python_version()}, ' \
               f'operators of mmcv: {operators()}, commit {machine["commit"]}'
    seen = _nvidia_smi('name,driver_version,memory.total,compute_mode')
    if not torch.cuda.is_available():
        if seen:
            raise Failed(f'nvidia-smi finds {seen}, PyTorch does not: install another build of torch or a newer '
                         f'driver; {software}')
        return f'{machine["device"]}; {software}'
    properties = torch.cuda.get_device_properties(0)
    architecture = f'{properties.major}.{properties.minor}'
    side = torch.ones(256, 256, device='cuda')
    if (side @ side).sum().item() != 256.0**3:  # a build without code for this GPU raises an error instead
        raise Failed(f'{machine["device"]}: a matrix product of ones is wrong')
    return f'{machine["device"]}, compute capability {architecture}, {properties.total_memory / GB:.0f} GB, ' \
           f'{torch.cuda.device_count()} GPUs; nvidia-smi: {seen or "not found"}; ' \
           f'{cores()} cores; {software}'


def _nvidia_smi(fields: str) -> str:
    """Return fields of the first GPU; an empty text if nvidia-smi does not exist or fails."""
    if not shutil.which('nvidia-smi'):
        return ''
    result = subprocess.run(
        ['nvidia-smi', f'--query-gpu={fields}', '--format=csv,noheader'], capture_output=True, text=True, check=False)
    return result.stdout.strip().split('\n')[0] if result.returncode == 0 else ''
