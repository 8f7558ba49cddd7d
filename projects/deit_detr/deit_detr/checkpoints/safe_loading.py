"""Reading checkpoints without running code from them, and writing them whole or not at all."""

import re
import tarfile
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, _weights_only_unpickler

from deit_detr.errors import UserError
from deit_detr.files import replacing

#: NumPy's types of plain numbers, as pickles name them.
_NUMBERS = frozenset(('b1', *(f'{kind}{size}' for kind in 'iu' for size in (1, 2, 4, 8)), 'f2', 'f4', 'f8'))


def install_safe_loading() -> None:
    """Let ``torch.load(..., weights_only=True)``, the default since torch 2.6, read mmengine checkpoints.

    The message hub in them keeps its scalars in ``HistoryBuffer`` objects, which hold NumPy arrays. Under the names
    of these classes and functions, stand-ins are added to torch's list, which make nothing but arrays and scalars of
    plain numbers: the state of a real ``numpy.dtype`` can make NumPy take bytes of the file for addresses, and the
    state of a real ``HistoryBuffer`` replaces the statistics of all others. Two names of torch's own list, with which
    a small file can ask for any amount of memory, are narrowed as well.
    """
    torch.serialization.add_safe_globals([
        (_RestoredBuffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (_method_name, 'builtins.getattr'),
        (_Array, 'numpy.ndarray'),
        (_PlainDtype, 'numpy.dtype'),
        # NumPy 1 wrote the same functions under the second name
        *((function, f'numpy.{core}.multiarray.{name}') for core in ('_core', 'core')
          for function, name in ((_empty_array, '_reconstruct'), (_scalar, 'scalar'))),
    ])
    CheckpointLoader.register_scheme(
        '', lambda filename, map_location: load_checkpoint_file(Path(filename).expanduser()), force=True)
    allowed = _weights_only_unpickler._get_allowed_globals()
    allowed.pop('builtins.bytearray', None)
    allowed['_codecs.encode'] = _bytes_of_text


class _PlainDtype:
    """Stands in for ``numpy.dtype``: a type of plain numbers, in ``dtype``."""

    def __init__(self, kind: str, *_) -> None:
        if kind not in _NUMBERS:
            raise UnpicklingError(f'Unsupported global: GLOBAL numpy.dtype of {kind!r}')
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """Stands in for ``numpy.ndarray``, and is one; written to a file again, it is an array like all others."""

    def __new__(cls, *_) -> '_Array':
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, fortran_order, data = state
        if not isinstance(dtype, _PlainDtype):
            raise UnpicklingError('an array without a type')
        super().__setstate__((version, shape, dtype.dtype, fortran_order, data))

    def __reduce__(self) -> tuple:
        return np.asarray(self).__reduce__()


def _empty_array(*_) -> _Array:
    """Stands in for the function that makes the array whose contents follow."""
    return _Array()


def _scalar(dtype: _PlainDtype, data: bytes) -> np.generic:
    (value,) = np.frombuffer(data, dtype.dtype)
    return value


class _RestoredBuffer(HistoryBuffer):
    """Stands in for ``HistoryBuffer``, and becomes one when its numbers are read."""

    def __setstate__(self, state: dict) -> None:
        buffers = state['_log_history'], state['_count_history']
        if not all(isinstance(buffer, _Array) and buffer.ndim == 1 for buffer in buffers):
            raise UnpicklingError('a HistoryBuffer without its numbers')
        self.__init__(*buffers, int(state['max_length']))
        self.__class__ = HistoryBuffer


def _method_name(owner: type, name: str) -> str:
    """Stands in for ``getattr``, which names the statistics of a ``HistoryBuffer`` and could reach anything."""
    if owner is not _RestoredBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise UnpicklingError(f'Unsupported global: GLOBAL builtins.getattr for {name!r}')
    return name


def _bytes_of_text(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, by which pickles hold bytes; other encodings make more of them each time."""
    if encoding != 'latin1':
        raise UnpicklingError(f'Unsupported global: GLOBAL _codecs.encode as {encoding!r}')
    return text.encode('latin1')


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
    if head.startswith(b'PK'):
        _check_archive(path)
    elif tarfile.is_tarfile(path):  # torch would unpack it, whatever it holds
        raise UserError(f'{path}: in the tar format of torch before 0.2. Save it again with a newer one')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged pickle makes the functions that it names raise whatever they like
        refused = re.search(r'GLOBAL (\S+)', str(error))
        if refused:
            raise UserError(
                f'{path}: refused, because loading it would run code: it holds a {refused[1]} object. If you trust '
                'where it is from, open it in the environment that wrote it and save only the tensors, '
                'torch.save({"state_dict": checkpoint["state_dict"]}, NEW_FILE), or ask its author for a .safetensors '
                'file') from None
        if isinstance(error, UnpicklingError):
            raise UserError(f'{path}: this is not a PyTorch checkpoint, or it is damaged') from None
        raise UserError(f'{path}: the file is truncated or damaged. Download or copy it again') from None
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path}: holds a {type(checkpoint).__name__}, not a checkpoint or a state dict')
    return checkpoint


def _check_archive(path: Path) -> None:
    """Compare an archive with its checksums, which torch does not, and refuse compressed entries.

    Torch writes none; one kilobyte can become gigabytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
            damaged = None if compressed else archive.testzip()
    except Exception as error:  # zipfile trusts the directory at the end of the file
        damaged, compressed = error, False
    if compressed:
        raise UserError(f'{path}: a compressed archive, which torch.save does not write. Save it again, or unpack it')
    if damaged:
        raise UserError(f'{path}: the file is truncated or damaged. Download or copy it again')


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f'{path}: reading it needs the safetensors package: pip install safetensors') from None
    try:
        return load_file(path)
    except Exception as error:  # its own, and torch's for types and sizes that torch has not
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
    other = [repr(key) for key, value in state_dict.items() if not (isinstance(key, str) and _is_plain(value))]
    if other:
        raise UserError(
            f'{path}: these entries of the state dict are not named tensors with all their values: '
            f'{", ".join(other[:10])}')
    if all(key.startswith('module.') for key in state_dict):
        state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    return dict(state_dict)


def _is_plain(value: object) -> bool:
    """Whether it is a tensor whose values all lie in the file: a view can repeat one of them without end."""
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes())


def save_checkpoint_file(checkpoint: dict, path: str | Path) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        checkpoint: What to write.
        path: Where; folders are made, a file there is replaced.
    """
    with replacing(path) as part:
        torch.save(checkpoint, part)
