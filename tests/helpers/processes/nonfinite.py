"""A training in which only process 1 meets a broken image; prints what each process did.

Run by engine/test_nonfinite.py. The two processes are forked from one that has imported everything.
"""

import argparse
import os
import sys

from mmengine.dist import get_rank
from mmengine.runner import Runner
from torch import multiprocessing
from torch.distributed.elastic.utils.distributed import get_free_port

from deit_detr.engine.start.launch import add_run_arguments, load_config
from deit_detr.engine.watch.nonfinite import NonFiniteHook
from deit_detr.errors import UserError
from tests.helpers.interruptions import Breaker


def train(rank: int, args: argparse.Namespace, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    cfg = load_config(args)
    cfg.custom_hooks = []
    runner = Runner.from_cfg(cfg)
    breaker = Breaker(2, 3) if get_rank() == 1 else Breaker()
    runner.register_hook(breaker)
    runner.register_hook(NonFiniteHook(max_skips=1))
    try:
        runner.train()
    except UserError as error:
        message = str(error)
        step, name = message.split('step ')[1].split()[0], message.split('nonfinite/')[1].split()[0]
        sys.stdout.write(f'RANK {get_rank()} changed {breaker.changed} stopped at step {step}, {name}\n')
        sys.stdout.flush()


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    add_run_arguments(parser)
    multiprocessing.start_processes(train, (parser.parse_args(), get_free_port()), 2, start_method='fork')
