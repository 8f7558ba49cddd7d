"""Check that the pretrained checkpoints of a model's parts fit, and how many tensors were loaded."""

from pathlib import Path

import torch
from mmengine.model import PretrainedInit, is_model_wrapper
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from deit_detr.checkpoints.fit import check_load
from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.errors import UserError

#: The share of a module's tensors that its checkpoint has to give.
MIN_LOADED = 0.99
_NOT_CHECKED = '{}: {} converts {} itself, which is not checked'


def read_pretrained(checkpoint: str) -> dict[str, Tensor]:
    """Read the state dict behind an ``init_cfg.checkpoint``, see :func:`read_checkpoint`."""
    return find_state_dict(read_checkpoint(checkpoint), checkpoint)


def read_checkpoint(checkpoint: str, again: bool = False) -> dict:
    """Read the checkpoint of ``init_cfg`` or ``load_from``.

    Args:
        checkpoint: Path or address. An address is downloaded into torch's cache, or taken from there.
        again: Keep the content of a file in memory for the next call, see
            :func:`~deit_detr.checkpoints.safe_loading.load_checkpoint_file`.

    Returns:
        dict: What the file holds.

    Raises:
        UserError: If the file is missing, cannot be downloaded, is not a checkpoint, or is damaged.
    """
    if '://' not in str(checkpoint):
        return load_checkpoint_file(Path(checkpoint).expanduser(), again)
    try:
        return CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    except UserError:
        raise
    except Exception as error:  # mmengine's backends for networks, caches and formats may raise anything
        cached = Path(torch.hub.get_dir()) / 'checkpoints' / checkpoint.rpartition('/')[2]
        if cached.is_file():
            load_checkpoint_file(cached)
        raise UserError(
            f'{checkpoint}: cannot be loaded ({type(error).__name__}: {error}). Without network, download it '
            'elsewhere and name the file instead; the recipes read the name of theirs from DEIT_CHECKPOINT') from None


def pretrained_modules(model: nn.Module) -> dict[str, tuple[nn.Module, dict]]:
    """Return name, module and ``init_cfg`` of each part of a model that has a ``Pretrained`` initializer.

    In a list of initializers, mmengine runs ``Pretrained`` last.
    """
    model = model.module if is_model_wrapper(model) else model
    found = {}
    for name, module in model.named_modules():
        init_cfg = getattr(module, 'init_cfg', None) or []
        for initializer in [init_cfg] if isinstance(init_cfg, dict) else init_cfg:
            if initializer.get('type') in ('Pretrained', PretrainedInit):
                found[name] = module, initializer
    return found


def check_pretrained(model: nn.Module) -> list[str]:
    """Read the pretrained checkpoints of a model's parts and check that they fit, without loading them.

    Returns:
        list[str]: For each pretrained part what was found.

    Raises:
        UserError: If a checkpoint is missing, damaged, unsafe, or of another layout or architecture.
    """
    lines = []
    for name, (module, init_cfg) in pretrained_modules(model).items():
        if _loads_itself(module):
            read_pretrained(init_cfg['checkpoint'])
            lines.append(_NOT_CHECKED.format(name, type(module).__name__, init_cfg['checkpoint']))
        else:
            _read_part(name, module, init_cfg)
            lines.append(f'the checkpoint of {name} fits')
    return lines


def _loads_itself(module: nn.Module) -> bool:
    """Return whether a module reads its checkpoint itself and renames tensors, as mmdet's Swin and PVT do."""
    return hasattr(module, 'convert_weights')


def _read_part(
    name: str, module: nn.Module, init_cfg: dict, min_loaded: float = MIN_LOADED,
) -> tuple[dict[str, Tensor], str]:
    """Return what a checkpoint gives a part of a model, and the prefix of its names."""
    checkpoint, prefix = init_cfg['checkpoint'], init_cfg.get('prefix')
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    return check_load(
        module, read_pretrained(checkpoint), checkpoint, part=f'model.{name}', prefix=prefix, least=min_loaded,
        remedy=f'Set model.{name}.init_cfg to a checkpoint of this architecture'), prefix


def compare_loaded(model: nn.Module, min_loaded: float = MIN_LOADED) -> list[str]:
    """Compare a model right after its initialization with its pretrained checkpoints.

    Args:
        model: The model.
        min_loaded: The share of a part's tensors, in 0..1, that its checkpoint has to give.

    Returns:
        list[str]: For each pretrained part how much of it came from where.

    Raises:
        UserError: If a checkpoint does not fit, or something changed the part after loading.
    """
    lines = []
    for name, (module, init_cfg) in pretrained_modules(model).items():
        checkpoint = init_cfg['checkpoint']
        if _loads_itself(module):
            lines.append(_NOT_CHECKED.format(name, type(module).__name__, checkpoint))
            continue
        source, prefix = _read_part(name, module, init_cfg, min_loaded)
        equal, total = count_loaded_tensors(module, source, prefix)
        given = sum(
            prefix + key in source and source[prefix + key].shape == tensor.shape
            for key, tensor in module.state_dict().items())
        if equal < given:
            raise UserError(
                f'{checkpoint}: fits model.{name}, but {given - equal} of {total} tensors do not equal it after '
                f'initialization. Something initializes model.{name} again after loading; vision transformers of '
                "mmpretrain do unless init_cfg is one dict whose type is the string 'Pretrained'")
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
