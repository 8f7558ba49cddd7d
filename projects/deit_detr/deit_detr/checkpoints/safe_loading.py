"""Read checkpoints without running code from them, and write them whole or not at all."""

import re
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, _weights_only_unpickler

from deit_detr.errors import UserError
from deit_detr.files import replacing

#: The checkpoint that the next :func:`load_checkpoint_file` may take from memory, after the state of its file.
_kept: tuple[tuple, dict] | None = None
#: NumPy's names of plain number types in pickles.
_NUMBERS = frozenset(('b1', *(f'{kind}{size}' for kind in 'iu' for size in (1, 2, 4, 8)), 'f2', 'f4', 'f8'))


def install_safe_loading() -> None:
    """Let ``torch.load(..., weights_only=True)``, the default since torch 2.6, read mmengine's checkpoints.

    Their message hub keeps its scalars in ``HistoryBuffer`` objects, which hold NumPy arrays. This function adds
    stand-ins for these classes and functions to torch's allow-list. They only create arrays and scalars of plain
    numbers: the state of a real ``numpy.dtype`` can make NumPy use bytes of the file as addresses, and the state of a
    real ``HistoryBuffer`` replaces the statistics of all others.

    For the whole process it also removes ``bytearray`` from the list and restricts ``_codecs.encode`` to latin1: a
    small file could allocate any amount of memory with them. From then on, ``torch.load`` refuses them in other files
    as well, and mmengine reads all local checkpoints with :func:`load_checkpoint_file`.
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
    """Stand-in for ``numpy.dtype``: a type of plain numbers, in ``dtype``."""

    def __init__(self, kind: str, *_) -> None:
        if kind not in _NUMBERS:
            raise UnpicklingError(f'Unsupported global: GLOBAL numpy.dtype of {kind!r}')
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """Stand-in for ``numpy.ndarray``; saved again, it becomes an ordinary array."""

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
    """Stand in for the function that creates an array before its contents are read."""
    return _Array()


def _scalar(dtype: _PlainDtype, data: bytes) -> np.generic:
    (value,) = np.frombuffer(data, dtype.dtype)
    return value


class _RestoredBuffer(HistoryBuffer):
    """Stand-in for ``HistoryBuffer``; becomes one when its numbers are read."""

    def __setstate__(self, state: dict) -> None:
        buffers = state['_log_history'], state['_count_history']
        if not all(isinstance(buffer, _Array) and buffer.ndim == 1 for buffer in buffers):
            raise UnpicklingError('a HistoryBuffer without its numbers')
        self.__init__(*buffers, int(state['max_length']))
        self.__class__ = HistoryBuffer


def _method_name(owner: type, name: str) -> str:
    """Stand in for ``getattr``, which checkpoints use for the statistics of a ``HistoryBuffer`` only."""
    if owner is not _RestoredBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise UnpicklingError(f'Unsupported global: GLOBAL builtins.getattr for {name!r}')
    return name


def _bytes_of_text(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, which pickles of bytes use; other encodings would multiply the bytes."""
    if encoding != 'latin1':
        raise UnpicklingError(f'Unsupported global: GLOBAL _codecs.encode as {encoding!r}')
    return text.encode('latin1')


def load_checkpoint_file(path: str | Path, again: bool = False) -> dict:
    """Read a local checkpoint onto the CPU without running code from it.

    Args:
        path: A ``torch.save`` file, or a ``.safetensors`` file, which gives a flat dict of tensors.
        again: Keep the content in memory for the next call with the same, unchanged file, which then reads nothing.

    Returns:
        dict: What the file holds.

    Raises:
        UserError: If there is no such file, or it is not a checkpoint, damaged, or holds more than plain data.
    """
    global _kept
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{path}: no such checkpoint file')
    status = path.stat()
    state = path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns
    if _kept and _kept[0] == state:
        (_, checkpoint), _kept = _kept, None
    else:
        checkpoint = _read_checkpoint(path)
    if again:
        _kept = state, checkpoint
    return checkpoint


def forget_checkpoint() -> None:
    """Free a checkpoint that ``load_checkpoint_file(..., again=True)`` kept and no later call took."""
    global _kept
    _kept = None


def read_header(path: str | Path) -> dict:
    """Open a checkpoint without reading its tensors: they are read from the file when they are used.

    Args:
        path: A ``torch.save`` file.

    Returns:
        dict: What the file holds.

    Raises:
        UserError: If it is missing, cut off, or not a checkpoint. Damaged tensors are not noticed.
    """
    if zipfile.is_zipfile(path):
        _check_archive(Path(path), '.pkl')
        with suppress(Exception):
            header = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
            if isinstance(header, dict):
                return header
    return load_checkpoint_file(path)  # which says what is wrong


def _read_checkpoint(path: Path) -> dict:
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
    elif tarfile.is_tarfile(path):  # torch would unpack any tar file
        raise UserError(f'{path}: in the tar format of torch before 0.2. Save it again with a newer one')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # functions that a damaged pickle names may raise anything
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


def _check_archive(path: Path, ending: str = '') -> None:
    """Compare the files of an archive that end with ``ending`` with their checksums, which torch does not do.

    Compressed ones are refused: torch writes none, and one kilobyte can become gigabytes.
    """
    compressed = damaged = False
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
            for entry in () if compressed else archive.infolist():
                if entry.filename.endswith(ending):
                    with archive.open(entry) as file:  # reading to the end compares
                        while file.read(1 << 24):
                            pass
    except Exception:  # zipfile trusts the directory at the end of the file
        damaged = True
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
    except Exception as error:  # safetensors' own errors, and torch's for types and sizes that torch does not support
        raise UserError(f'{path}: not a safetensors file, or damaged ({error})') from None


def find_state_dict(checkpoint: dict, path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, without the ``module.`` that data-parallel wrappers add to every key.

    Args:
        checkpoint: From :func:`load_checkpoint_file`: the tensors lie under ``state_dict`` (OpenMMLab), ``model``
            (DeiT) or at the top.
        path: The file, for the message.

    Returns:
        dict[str, Tensor]: Key to tensor.

    Raises:
        UserError: If there are no tensors, or other values among them.
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
    """Return whether it is a tensor whose values are all in the file: a view can repeat one value many times."""
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes())


def save_checkpoint_file(checkpoint: dict, path: str | Path) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        checkpoint: The content.
        path: The file. Missing folders are created, an existing file is replaced.
    """
    with replacing(path) as part:
        torch.save(checkpoint, part)
