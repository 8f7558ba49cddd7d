"""Which checkpoint of a folder a training can be continued from, and by which model."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from deit_detr.checkpoints.safe_loading import load_checkpoint_file
from deit_detr.errors import UserError


def check_whole(path: str | Path) -> None:
    """Read all of a checkpoint and compare it with the checksums in it.

    Args:
        path: A ``torch.save`` file.

    Raises:
        UserError: If it is missing, cut off, changed since it was written, or not a checkpoint.
    """
    if zipfile.is_zipfile(path):
        _read_members(path, '')
    load_checkpoint_file(path)


def read_header(path: str | Path) -> dict:
    """Open a checkpoint without reading its tensors, which are read when they are used.

    Args:
        path: A ``torch.save`` file.

    Returns:
        dict: What the file holds.

    Raises:
        UserError: If it is missing, cut off, or not a checkpoint.
    """
    if not zipfile.is_zipfile(path):  # missing, cut off, or of a version of PyTorch that wrote no such files
        return load_checkpoint_file(path)
    _read_members(path, '.pkl')
    try:
        return torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception:  # another reader, another error; this one has the words for what a file can be
        return load_checkpoint_file(path)


def _read_members(path: str | Path, ending: str) -> None:
    """Compare those of an archive's files whose names end so with their checksums."""
    name = 'the list of its parts'
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(ending):
                    with archive.open(name) as member:
                        while member.read(1 << 24):
                            pass
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError):
        raise UserError(f'{path}: damaged: the checksum of {name} does not fit. Copy it again') from None


def find_resumable(folders: list[Path]) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint that a training can be continued from.

    The newest by the time that is in it: copying a folder changes the times of its files.

    Args:
        folders: Where to look. Weights without an optimizer, as in ``best_*.pth``, are passed over.

    Returns:
        tuple: Its path, or ``None`` if there is no whole one; and those found damaged on the way, with what is wrong.
    """
    damaged, found = {}, []
    for path in sorted({path.resolve() for folder in folders for path in folder.glob('*.pth')}):
        try:
            checkpoint = read_header(path)
        except UserError as error:
            damaged[path] = str(error)
            continue
        meta = checkpoint.get('meta', {})
        if 'optimizer' in checkpoint and 'iter' in meta:
            found.append((meta.get('saved', path.stat().st_mtime), meta['iter'], path))
    for _, _, path in sorted(found, reverse=True):
        try:
            check_whole(path)
        except UserError as error:
            damaged[path] = str(error)
        else:
            return path, damaged
    return None, damaged


def find_misfits(own: dict[str, Tensor], saved: dict[str, Tensor]) -> list[str]:
    """Compare the tensors of a model with those of a checkpoint.

    Returns:
        list[str]: A phrase for each tensor that only one of them has, or that has another shape.
    """
    misfits = [
        f'{name} is {_shape(saved[name])} in the checkpoint and {_shape(own[name])} in the model'
        for name in own if name in saved and saved[name].shape != own[name].shape]
    misfits += [f'{name} is not in the checkpoint' for name in own if name not in saved]
    return misfits + [f'{name} is not in the model' for name in saved if name not in own]


def _shape(tensor: Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) or 'a number'
