"""Check that the pretrained checkpoints of a model's parts fit, and how many tensors were loaded."""

from pathlib import Path

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from deit_detr.checkpoints.fit import check_fit
from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.errors import UserError

#: The share of a module's tensors that has to come from its checkpoint. Not 1: the position embedding loses its
#: class-token slot, and another input size resizes it.
MIN_LOADED = 0.99


def read_pretrained(checkpoint: str) -> dict[str, Tensor]:
    """Read the state dict behind an ``init_cfg.checkpoint``.

    Args:
        checkpoint: Path or address. An address is downloaded into torch's cache, or taken from there.

    Returns:
        dict[str, Tensor]: Key to tensor.

    Raises:
        UserError: If the file is missing, cannot be downloaded, is not a checkpoint, or is damaged.
    """
    if '://' not in checkpoint:
        return find_state_dict(load_checkpoint_file(Path(checkpoint).expanduser()), checkpoint)
    try:
        return find_state_dict(CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu'), checkpoint)
    except UserError:
        raise
    except Exception as error:  # mmengine's backends for networks, caches and formats may raise anything
        cached = Path(torch.hub.get_dir()) / 'checkpoints' / checkpoint.rpartition('/')[2]
        if cached.is_file():
            load_checkpoint_file(cached)
        raise UserError(
            f'{checkpoint}: cannot be loaded ({type(error).__name__}: {error}). Without network, download it '
            'elsewhere and name the file in init_cfg.checkpoint or, for the recipes here, in DEIT_CHECKPOINT') from None


def pretrained_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return name and module of each part of a model that has a ``Pretrained`` initializer."""
    model = model.module if is_model_wrapper(model) else model
    return {name: module for name, module in model.named_modules()
            if (getattr(module, 'init_cfg', None) or {}).get('type') == 'Pretrained'}


def check_pretrained(model: nn.Module) -> None:
    """Read the pretrained checkpoints of a model's parts and check that they fit, without loading them.

    Raises:
        UserError: If a checkpoint is missing, damaged, unsafe, or of another layout or architecture.
    """
    for name, module in pretrained_modules(model).items():
        _check_part(name, module, read_pretrained(module.init_cfg['checkpoint']))


def _check_part(name: str, module: nn.Module, source: dict[str, Tensor], min_loaded: float = MIN_LOADED) -> None:
    check_fit(
        module.state_dict(), source, module.init_cfg['checkpoint'], part=f'model.{name}', prefix=_prefix(module),
        least=min_loaded, remedy=f'Set model.{name}.init_cfg to a checkpoint of this architecture')


def _prefix(module: nn.Module) -> str:
    """Return what precedes the names of a module's tensors in its checkpoint."""
    prefix = module.init_cfg.get('prefix')
    return f'{prefix.rstrip(".")}.' if prefix else ''


def compare_loaded(model: nn.Module, min_loaded: float = MIN_LOADED) -> list[str]:
    """Compare a model right after its initialization with its pretrained checkpoints.

    Args:
        model: The model.
        min_loaded: The share of a part's tensors, in 0..1, that has to equal its checkpoint's.

    Returns:
        list[str]: For each pretrained part how much of it came from where.

    Raises:
        UserError: If less of a part is equal, because the checkpoint does not fit or something changed the part after
            loading.
    """
    lines = []
    for name, module in pretrained_modules(model).items():
        checkpoint = module.init_cfg['checkpoint']
        source = read_pretrained(checkpoint)
        equal, total = count_loaded_tensors(module, source, _prefix(module))
        if equal < min_loaded * total:
            _check_part(name, module, source, min_loaded)
            raise UserError(
                f'{checkpoint}: fits model.{name}, but only {equal} of {total} tensors still equal it after '
                f'initialization. Something initializes model.{name} again after loading')
        lines.append(f'{name}: {equal} of {total} tensors pretrained, from {checkpoint}')
    return lines


def count_loaded_tensors(module: nn.Module, source: dict[str, Tensor], prefix: str = '') -> tuple[int, int]:
    """Count the tensors of a module that equal those of its pretrained checkpoint.

    Args:
        module: The module right after ``init_weights``.
        source: The state dict, see :func:`read_pretrained`.
        prefix: What precedes the module's names in the state dict.

    Returns:
        tuple[int, int]: Equal tensors, and all tensors of the module.
    """
    own = module.state_dict()
    equal = sum(
        prefix + key in source and torch.equal(source[prefix + key].to(tensor), tensor) for key, tensor in own.items())
    return equal, len(own)
