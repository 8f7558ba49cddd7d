"""One training step of a config in this process group; rank 0 prints what came out (run by test_distributed.py)."""

import argparse
import json

from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from deit_detr.engine.launch import add_run_arguments, load_config


class ReportFirstStep(Hook):
    """Mean loss over the processes, and the gradient norm, which is that of the averaged gradients."""

    priority = 'VERY_LOW'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        loss = outputs['loss'].detach().double()
        all_reduce(loss, 'mean')
        if get_rank() == 0:
            norm = runner.message_hub.get_scalar('train/grad_norm').current()
            print('FIRST_STEP', json.dumps(dict(loss=loss.item(), grad_norm=float(norm))), flush=True)


parser = argparse.ArgumentParser()
parser.add_argument('config')
add_run_arguments(parser)
runner = Runner.from_cfg(load_config(parser.parse_args()))
runner.register_hook(ReportFirstStep())
runner.train()
