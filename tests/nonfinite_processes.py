"""A training in which only process 1 meets a broken image; says what each process did (run by test_nonfinite.py)."""

import argparse
import sys
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.runner import Runner

sys.path.append(str(Path(__file__).parent / 'engine'))
from test_nonfinite import Breaker  # noqa: E402

from deit_detr.engine.launch import add_run_arguments, load_config  # noqa: E402
from deit_detr.engine.nonfinite import NonFiniteHook  # noqa: E402
from deit_detr.errors import UserError  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument('config')
add_run_arguments(parser)
cfg = load_config(parser.parse_args())
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
