"""Detectors that other projects publish, by name: downloaded, converted and kept in the cache folder."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch

from deit_detr.checkpoints.safe_loading import read_header
from deit_detr.config_file import recipe_path
from deit_detr.errors import UserError
from deit_detr.files import write_text
from deit_detr.migration import ecdet, lw_detr
from deit_detr.migration.conversion import Conversion
from deit_detr.versions import VERSION


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        address (str): Where its project publishes it.
        recipe (str): File name of the recipe here that it fits.
        convert (Callable): Converts the file for the recipe.
    """

    address: str
    recipe: str
    convert: Callable[[Path], Conversion]

    @property
    def path(self) -> Path:
        """Where the file is looked for, and downloaded to: PyTorch's cache folder, which ``TORCH_HOME`` moves."""
        return Path(torch.hub.get_dir(), 'checkpoints', self.address.rpartition('/')[2])


PUBLISHED = {
    'ecdet-s-coco': Published(
        'https://github.com/capsule2077/edgecrafter/releases/download/edgecrafterv1/ecdet_s.pth', ecdet.RECIPE,
        ecdet.convert_ecdet),
    'lw-detr-tiny-coco': Published(
        'https://huggingface.co/xbsu/LW-DETR/resolve/main/pretrain_weights/LWDETR_tiny_60e_coco.pth',
        lw_detr.RECIPE, lw_detr.convert_lw_detr),
}


def find_published(source: str | Path) -> tuple[Path, Path]:
    """Find recipe and checkpoint of a published detector.

    Args:
        source: A name in :data:`PUBLISHED`, or a checkpoint that was converted from one.

    Returns:
        tuple[Path, Path]: Recipe and converted checkpoint.

    Raises:
        UserError: If there is no such detector, or it can neither be found nor downloaded.
    """
    if str(source) in PUBLISHED:
        return recipe_path(PUBLISHED[str(source)].recipe), converted(str(source))
    is_checkpoint = Path(source).is_file() and Path(source).suffix != '.py'
    recipe = (read_header(source).get('meta') or {}).get('recipe') if is_checkpoint else None
    if not isinstance(recipe, str) or Path(recipe).name != recipe:
        raise UserError(
            f'{source}: neither a published detector ({", ".join(PUBLISHED)}) nor a checkpoint converted from one. '
            'Give a config and its checkpoint')
    return recipe_path(recipe), Path(source)


def converted(name: str) -> Path:
    """Return the converted checkpoint of a published detector, after downloading and converting it if needed.

    Raises:
        UserError: If it can neither be found nor downloaded, or the file has changed since its first use.
    """
    known = PUBLISHED[name]
    result = known.path.parent / f'deit_detr-{VERSION}' / f'{name}.pth'
    if not result.is_file():
        if not known.path.is_file():
            _download(name, known)
        conversion = known.convert(known.path)
        _check_unchanged(known.path)
        conversion.save(result)
    return result


def _download(name: str, known: Published) -> None:
    print(f'{name}: downloading {known.address} to {known.path}', flush=True)
    try:
        os.makedirs(known.path.parent, exist_ok=True)
        torch.hub.download_url_to_file(known.address, str(known.path))
    except (OSError, HTTPException) as error:
        raise UserError(
            f'{name}: {known.address} cannot be downloaded ({error}). Download it on a machine with a network, and put '
            f'{known.path.name} into {known.path.parent}, or set TORCH_HOME to a folder with hub/checkpoints/'
            f'{known.path.name} in it') from None


def _check_unchanged(path: Path) -> None:
    """Compare a file with the SHA256 in ``.sha256`` beside it; without one, record it. The projects publish none.

    Raises:
        UserError: If it differs.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    beside = path.with_name(f'{path.name}.sha256')
    if not beside.is_file():
        write_text(beside, f'{digest}  {path.name}\n')
    elif beside.read_text().split()[:1] != [digest]:
        raise UserError(
            f'{path}: its SHA256 is {digest}, but {beside.name} beside it says another one: the file is damaged or was '
            'replaced. Delete it to download it again; delete both if the new file is right')
