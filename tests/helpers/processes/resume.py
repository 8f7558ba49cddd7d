"""Three trainings in each of two processes: whole, preempted by a signal to the second one, and resumed.

Run by engine/test_resume.py in a folder: ``RANK.json`` gets status and losses of each. The processes are forked from
one that has imported everything.
"""

import json
import os
from pathlib import Path

import torch
from torch.distributed.elastic.utils.distributed import get_free_port

from deit_detr.engine.start.launch import use_cpu_processes
from tests.helpers.interruptions import InterruptHook
from tests.helpers.tiny_training import tiny_config, train

FOLDER = Path('trainings').absolute()
OPTIONS = {
    'train_cfg.max_epochs': 1, 'train_dataloader.batch_size': 1, 'val_cfg': None, 'val_dataloader': None,
    'val_evaluator': None, 'default_hooks.preemption.interval': 2, 'env_cfg.dist_cfg.timeout': 60}


def trainings(rank: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    losses = {}
    for name in ('whole', 'first', 'second'):
        cfg = tiny_config(FOLDER / ('whole' if name == 'whole' else 'work'), OPTIONS, resume=name == 'second')
        cfg.launcher = 'pytorch'
        if name == 'whole':
            use_cpu_processes(cfg)
            wrapper = cfg.model_wrapper_cfg
        cfg.model_wrapper_cfg = wrapper
        log = train(cfg, InterruptHook(step=1, number='SIGUSR1', rank=1) if name == 'first' else None)
        losses[name] = (log.status, log.losses)
    Path(f'{rank}.json').write_text(json.dumps(losses))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    tiny_config(FOLDER / 'work')
    torch.multiprocessing.start_processes(trainings, (get_free_port(),), 2, start_method='fork')
