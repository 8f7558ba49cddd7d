"""First step of a config in process groups of several sizes, all on the same images (run by test_distributed.py).

Each size writes ``OUT_DIR/SIZE.pth``: the loss, a mean over the processes, and each parameter's gradient as DDP
averaged it, before clipping. The processes are forked from one that has imported and built everything.
"""

import argparse
import os
from pathlib import Path

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from torch import distributed, multiprocessing, nn
from torch.distributed.elastic.utils.distributed import get_free_port

from deit_detr.engine.start.launch import add_run_arguments, load_config


class KeepGradients(OptimWrapper):
    """Copies the gradients before they are clipped and used."""

    def step(self, **kwargs) -> None:
        self.gradients = [param.grad.clone() for group in self.param_groups for param in group['params']]
        super().step(**kwargs)


def first_step(rank: int, args: argparse.Namespace, processes: int, port: int, model: nn.Module, samples: list) -> None:
    if processes > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port))
        args.launcher = 'pytorch'
        wrapper = load_config(args).model_wrapper_cfg  # starts the process group
        assert wrapper.pop('type') == 'MMDistributedDataParallel'
        model = MMDistributedDataParallel(model, **wrapper)
    params = [param for param in model.parameters() if param.requires_grad]
    optim = KeepGradients(torch.optim.SGD(params, lr=0.1))
    # as DefaultSampler shares out an epoch
    loss = model.train_step(pseudo_collate(samples[rank::processes]), optim)['loss'].detach() / processes
    if processes > 1:
        distributed.all_reduce(loss)
    if rank == 0:
        torch.save(dict(loss=loss.item(), gradients=optim.gradients), Path(args.out_dir, f'{processes}.pth'))


def build(cfg: Config, images: int) -> tuple[nn.Module, list]:
    """Seeded model and the first samples of the training data."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(3)
    model = MODELS.build(cfg.model)
    model.init_weights()
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    return model.train(), [dataset[index] for index in range(images)]


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    parser.add_argument('out_dir')
    parser.add_argument('--images', type=int, default=8)
    parser.add_argument('--processes', type=int, nargs='+')
    add_run_arguments(parser)
    args = parser.parse_args()
    model, samples = build(load_config(args), args.images)
    for processes in args.processes:
        multiprocessing.start_processes(
            first_step, (args, processes, get_free_port(), model, samples), processes, start_method='fork')
