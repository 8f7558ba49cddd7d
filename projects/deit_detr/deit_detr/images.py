"""Open image files of unknown origin with few decoders, and only if their pixels fit into memory; name pictures."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from unittest.mock import patch

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

#: Pixels of the largest image that is decoded: 3 bytes each, in several copies. A ScanNet frame has 1.25 million.
MAX_PIXELS = 80_000_000
#: Pillow's names of the formats that are opened; decoders of others are not needed here.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
#: Formats that Pillow decodes by running a program.
PROGRAMS = ('EPS', 'WMF')
#: What is wrong with images of more than 8 bits a channel, and how to convert them.
DEEP = (
    'its pixels have more than 8 bits a channel, of which the upper 8 would be read: nearly black if it uses 12 of 16. '
    "Convert all images alike, e.g. for 12 bits cv2.imwrite('new.png', (cv2.imread('old.png', cv2.IMREAD_UNCHANGED) / "
    "4095 * 255).astype('uint8'))")


class ImageFileError(ValueError):
    """The file is not an image that can be decoded. The message says why and does not name the file."""


@contextmanager
def decoding() -> Iterator[None]:
    """Turn every error of Pillow's decoders in the block into an ImageFileError: their kind depends on the bytes.

    Raises:
        ImageFileError: For every exception except errors of the operating system.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ImageFileError) or isinstance(error, OSError) and error.errno:
            raise
        raise ImageFileError(str(error).split(' <_io', 1)[0].strip() or type(error).__name__) from None


def pixel_problem(image: Image) -> str | None:
    """Return why the pixels of an image that is not decoded yet do not fit into 8 bits a channel; None if they do."""
    if image.mode == 'F':  # OpenCV would round them, and they may be between 0 and 1
        return 'its pixels are floating-point numbers: integers are needed'
    for codec, _, _, how in getattr(image, 'tile', [])[:1]:  # images that are no file have none
        if codec.startswith('ppm') and isinstance(how, tuple) and how[-1] not in (1, 255):
            return f'its brightest pixels are {how[-1]}, and OpenCV takes 255 for that: save it as an 8-bit PNG'
        if re.search(r'(?<!BGR);(12|16|32)', str(how)):  # BGR;16 of a BMP has 5 or 6 bits a channel
            return DEEP
    return DEEP if image.mode.startswith('I') else None


def open_image(
    file: str | Path | BinaryIO, formats: tuple[str, ...] = FORMATS, max_pixels: int = MAX_PIXELS,
    any_depth: bool = False,
) -> Image:
    """Open an image file and read its header.

    Args:
        file: Path, or an open file.
        formats: Pillow's names of the expected formats.
        max_pixels: Largest number of pixels.
        any_depth: Also open images that need more than 8 bits a channel; see :func:`pixel_problem`.

    Returns:
        Image: For use in a ``with`` statement; decode it within :func:`decoding`.

    Raises:
        ImageFileError: If it has another format, a damaged header, too many pixels or more than 8 bits a channel,
            or is a pipe or a device.
        OSError: If the file cannot be opened.
    """
    with decoding():
        if isinstance(file, (str, Path)) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ImageFileError('not a regular file')  # reading a pipe blocks, reading a device never ends
        try:
            image = Image.open(file, formats=formats)
        except UnidentifiedImageError:
            raise ImageFileError(f'damaged, or in none of the formats {", ".join(formats)}') from None
    if image.width * image.height > max_pixels:
        reason = f'too large: {image.width}x{image.height}, more than {max_pixels / 1e6:g} million pixels'
    else:
        reason = None if any_depth else pixel_problem(image)
    if reason is None:
        return image
    image.close()
    raise ImageFileError(reason)


def upright(image: Image) -> Image:
    """Return a PIL image rotated by its EXIF orientation, as OpenCV decodes it; to be used within :func:`decoding`."""
    # without a file name: Pillow maps uncompressed TIFFs into memory, in the wrong size if they are to be rotated
    with patch.object(image, 'filename', '', create=True):
        return ImageOps.exif_transpose(image)


def upright_size(image: Image) -> tuple[int, int]:
    """Return width and height of an image after :func:`upright`, from its header."""
    with decoding():
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8) and image.format != 'TIFF'
    return image.size[::-1] if turned else image.size  # Pillow's size of a TIFF is that after rotation


def picture_names(paths: Iterable[str | Path], folder: str | Path | None = None) -> dict[str | Path, Path]:
    """Return a name for the picture that is made of each image, another for each image.

    Args:
        paths: Files of the images.
        folder: A folder that they are in. Default: the innermost one.

    Returns:
        dict: Path -> its part below ``folder``. ``color`` is left out of ScanNet's ``SCENE/color/NAME.jpg``.
    """
    files = {path: Path(os.path.abspath(path)) for path in paths}
    if folder is None:
        folder = os.path.commonpath([file.parent for file in files.values()] or ['.'])
        if os.path.basename(folder) == 'color':  # there is one scene
            folder = os.path.dirname(os.path.dirname(folder))
    folder = os.path.abspath(folder)
    names = {path: file.relative_to(folder) for path, file in files.items()}
    short = {path: name.parent.parent / name.name if name.parent.name == 'color' else name
             for path, name in names.items()}
    return short if len(set(short.values())) == len(set(names.values())) else names
