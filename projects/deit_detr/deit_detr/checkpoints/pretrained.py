"""Whether a module's pretrained checkpoint fits, and how much of it really arrived."""

from collections import Counter
from pathlib import Path

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.errors import UserError


def read_pretrained(checkpoint: str) -> dict[str, Tensor]:
    """Read the state dict behind an ``init_cfg.checkpoint``, with a clear message for each way that this can fail.

    Args:
        checkpoint: Path or address. An address is downloaded into torch's cache, or taken from there.

    Returns:
        dict[str, Tensor]: Key to tensor.

    Raises:
        UserError: If the file is missing, cannot be downloaded, or is not a sound checkpoint.
    """
    if '://' not in checkpoint:
        return find_state_dict(load_checkpoint_file(Path(checkpoint).expanduser()), checkpoint)
    try:
        return find_state_dict(CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu'), checkpoint)
    except UserError:
        raise
    except Exception as error:  # whatever the backends of mmengine raise for networks, caches and formats
        cached = Path(torch.hub.get_dir()) / 'checkpoints' / checkpoint.rpartition('/')[2]
        if cached.is_file():
            load_checkpoint_file(cached)
        raise UserError(
            f'{checkpoint}: cannot be loaded ({type(error).__name__}: {error}). Without network, download it '
            'elsewhere and name the file in init_cfg.checkpoint or, for the recipes here, in DEIT_CHECKPOINT') from None


def check_layout(module: nn.Module, source: dict[str, Tensor], prefix: str | None, min_loaded: float) -> None:
    """Check, before anything is loaded, that a state dict is for this module.

    Args:
        module: The module to load into.
        source: The state dict.
        prefix: The part of the state dict's keys before the module's own, as in ``init_cfg``.
        min_loaded: The share of the module's tensors, in 0..1, that has to be there.

    Raises:
        UserError: If less is there. The message says why: another prefix, the layout of timm, another architecture.
    """
    own = module.state_dict()
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    needed = min_loaded * len(own)
    same_name = [key for key in own if prefix + key in source]
    same_shape = [key for key in same_name if source[prefix + key].shape == own[key].shape]
    if len(same_shape) >= needed:
        return
    if len(same_name) >= needed:
        # the position embedding depends on the image size too: it is named last
        key = min((key for key in same_name if key not in same_shape), key='pos_embed'.__eq__)
        raise UserError(
            f'the checkpoint is of another architecture: {prefix}{key} is {tuple(source[prefix + key].shape)} there '
            f'and {tuple(own[key].shape)} in the model')
    if any(key.endswith('blocks.0.norm1.weight') for key in source):
        raise UserError(
            'the checkpoint is in the layout of timm and DeiT. Convert it with '
            'tools/model_converters/deit_to_mmpretrain.py')
    other_prefixes = Counter(
        key.removesuffix(name) for name in own for key in source if key == name or key.endswith(f'.{name}'))
    best, found = other_prefixes.most_common(1)[0] if other_prefixes else ('', 0)
    if found >= needed:
        raise UserError(f'init_cfg.prefix is {prefix or None!r}; with this checkpoint it has to be {best or None!r}')
    raise UserError(
        f'only {len(same_name)} of {len(own)} tensors are in the checkpoint. It has {", ".join(list(source)[:3])}, '
        f'...; looked for were {", ".join(prefix + key for key in list(own)[:3])}, ...')


def count_loaded_tensors(module: nn.Module, source: dict[str, Tensor], prefix: str | None = None) -> tuple[int, int]:
    """Count the tensors of a module that equal those of its pretrained checkpoint.

    Args:
        module: The module right after ``init_weights``.
        source: The state dict, see :func:`read_pretrained`.
        prefix: The part of the state dict's keys before the module's own, as in ``init_cfg``.

    Returns:
        tuple[int, int]: Equal tensors, and all tensors of the module.
    """
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    own = module.state_dict()
    equal = sum(
        prefix + key in source and torch.equal(source[prefix + key].to(tensor), tensor) for key, tensor in own.items())
    return equal, len(own)
