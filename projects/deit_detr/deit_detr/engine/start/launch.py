"""Command-line arguments and start of a run, shared by train.py, test.py and preflight.py."""

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from deit_detr.config_file import Options, read_config
from deit_detr.errors import UserError


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of mmdet's scripts that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, metavar='KEY=VALUE',
        help='override settings of the config, e.g. train_dataloader.batch_size=2 model.num_queries=50')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torchrun sets LOCAL_RANK; older launchers pass it as an argument
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(args: argparse.Namespace) -> Config:
    """Read a config, apply the command line's overrides and prepare the distributed environment.

    Args:
        args: Parsed with :func:`add_run_arguments` and an argument ``config``.

    Returns:
        Config: With ``work_dir`` and ``launcher`` set.

    Raises:
        UserError: If a file is missing or cannot be read, or the overrides do not fit.
    """
    cfg = read_config(args.config, args.cfg_options)
    if 'model' not in cfg:
        raise UserError(f'{args.config}: has no model: it is only a part of a config. Use a recipe')
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        use_cpu_processes(cfg)
    return cfg


def use_cpu_processes(cfg: Config) -> None:
    """Let several processes train on the CPU: mmengine's launcher assumes one GPU per process.

    Args:
        cfg: The config of the run, changed in place. Its ``env_cfg.dist_cfg.timeout``, in seconds, is used.
    """
    from datetime import timedelta

    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout) if timeout else None)
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    print_log(f'no GPU: {torch.distributed.get_world_size()} processes on the CPU, backend gloo', logger='current')


def make_deterministic(cfg: Config) -> None:
    """Let a run use deterministic algorithms only; an operation without one stops it with its name.

    Args:
        cfg: The config of the run, changed in place. Without ``randomness.seed`` a seed is drawn; the log and
            ``run.json`` name it.
    """
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # cuBLAS reads it at its first call
    cfg.randomness = dict(dict(seed=None) | (cfg.get('randomness') or {}), deterministic=True)
