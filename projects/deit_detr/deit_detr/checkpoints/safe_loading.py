"""Reading checkpoints without running code from them, and writing them whole or not at all."""

import os
import re
import struct
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from deit_detr.errors import UserError


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(..., weights_only=True)``, the default since torch 2.6, read mmengine checkpoints.

    The message hub in them keeps its scalars in ``HistoryBuffer`` objects, which hold NumPy arrays and name their
    own methods through ``getattr``. Only those classes, and ``getattr`` for those methods alone, are added to
    torch's list; everything else stays refused.
    """
    torch.serialization.add_safe_globals([
        HistoryBuffer,
        (_getattr_of_history_buffer, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        np._core.multiarray._reconstruct,
        np._core.multiarray.scalar,
        # NumPy 1 wrote the same functions under this name
        (np._core.multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
        (np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
    ])


def _getattr_of_history_buffer(owner: type, name: str) -> object:
    """Stand in for ``getattr`` while a checkpoint is read, which could otherwise reach any attribute of any object."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise UnpicklingError(f'Unsupported global: GLOBAL builtins.getattr for {name!r}')
    return getattr(owner, name)


def load_checkpoint_file(path: str | Path) -> dict:
    """Read a local checkpoint onto the CPU; no code of the file is run.

    Args:
        path: A ``torch.save`` file, or a ``.safetensors`` file, which gives a flat dict of tensors.

    Returns:
        dict: What the file holds.

    Raises:
        UserError: If there is no such file, or it is not a checkpoint, damaged, or holds more than plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{path}: no such checkpoint file')
    with path.open('rb') as file:
        head = file.read(512).lstrip()
    if not head:
        raise UserError(f'{path}: the file is empty. Download or copy it again')
    if head.lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise UserError(f'{path}: this is a web page, not a checkpoint. Download the file behind the link instead')
    if head.startswith(b'version https://git-lfs'):
        raise UserError(f'{path}: this is a Git LFS pointer, not a checkpoint. Fetch the file with `git lfs pull`')
    if path.suffix == '.safetensors':
        return _load_safetensors(path)
    if head.startswith(b'PK') and not zipfile.is_zipfile(path):
        raise UserError(f'{path}: the file is truncated. Download or copy it again')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except UnpicklingError as error:
        refused = re.search(r'GLOBAL (\S+)', str(error))
        if refused is None:
            raise UserError(f'{path}: this is not a PyTorch checkpoint, or it is damaged') from None
        raise UserError(
            f'{path}: refused, because loading it would run code: it holds a {refused[1]} object. If you trust where '
            'it is from, open it in the environment that wrote it and save only the tensors, '
            'torch.save({"state_dict": checkpoint["state_dict"]}, NEW_FILE), or ask its author for a .safetensors '
            'file') from None
    except (EOFError, OSError, RuntimeError, struct.error):
        raise UserError(f'{path}: the file is truncated or damaged. Download or copy it again') from None
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path}: holds a {type(checkpoint).__name__}, not a checkpoint or a state dict')
    return checkpoint


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f'{path}: reading it needs the safetensors package: pip install safetensors') from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f'{path}: not a safetensors file, or damaged ({error})') from None


def find_state_dict(checkpoint: dict, path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the ``module.`` that data-parallel wrappers put before every key.

    Args:
        checkpoint: From :func:`load_checkpoint_file`: the tensors lie under ``state_dict`` (OpenMMLab), ``model``
            (DeiT) or at the top.
        path: Its file, for the message.

    Returns:
        dict[str, Tensor]: Key to tensor.

    Raises:
        UserError: If there are no tensors, or something else among them.
    """
    state_dict = checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
    if not isinstance(state_dict, dict) or not state_dict:
        raise UserError(f'{path}: no tensors under "state_dict", under "model" or at the top')
    other = [str(key) for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if other:
        raise UserError(f'{path}: these entries of the state dict are not tensors: {", ".join(other[:10])}')
    if all(key.startswith('module.') for key in state_dict):
        state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    return dict(state_dict)


def save_checkpoint_file(checkpoint: dict, path: str | Path) -> None:
    """Write a checkpoint through a temporary file beside it, so that no half-written one is left behind.

    Args:
        checkpoint: What to write.
        path: Where; folders are made, a file there is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        torch.save(checkpoint, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
