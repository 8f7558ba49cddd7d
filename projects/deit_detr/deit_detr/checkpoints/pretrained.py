"""How much of a module's pretrained checkpoint really arrived."""

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn


def count_loaded_tensors(module: nn.Module, checkpoint: str, prefix: str | None = None) -> tuple[int, int]:
    """Count the tensors of a module that equal those of its pretrained checkpoint.

    Args:
        module: The module right after ``init_weights``.
        checkpoint: Path or address, as in ``init_cfg``.
        prefix: The part of the checkpoint's keys before the module's own, as in ``init_cfg``.

    Returns:
        tuple[int, int]: Equal tensors, and all tensors of the module.
    """
    source = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    source = source.get('state_dict', source)
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    own = module.state_dict()
    equal = sum(
        prefix + key in source and torch.equal(source[prefix + key], tensor.cpu()) for key, tensor in own.items())
    return equal, len(own)
