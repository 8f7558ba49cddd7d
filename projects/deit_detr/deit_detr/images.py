"""Open image files of unknown origin with few decoders, and only if their pixels fit into memory."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

#: Pixels of the largest image that is decoded: 3 bytes each, in several copies. A ScanNet frame has 1.25 million.
MAX_PIXELS = 80_000_000
#: Pillow's names of the formats that are opened; decoders of others are not needed here.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
#: Formats that Pillow decodes by running a program.
PROGRAMS = ('EPS', 'WMF')


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


def open_image(file: str | Path | BinaryIO, formats: tuple[str, ...] = FORMATS, max_pixels: int = MAX_PIXELS) -> Image:
    """Open an image file and read its header.

    Args:
        file: Path, or an open file.
        formats: Pillow's names of the expected formats.
        max_pixels: Largest number of pixels.

    Returns:
        Image: For use in a ``with`` statement; decode it within :func:`decoding`.

    Raises:
        ImageFileError: If it has another format, a damaged header, too many pixels or floating-point pixels, or is a
            pipe or a device.
        OSError: If the file cannot be opened.
    """
    with decoding():
        if isinstance(file, (str, Path)) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ImageFileError('not a regular file')  # reading a pipe blocks, reading a device never ends
        image = Image.open(file, formats=formats)
    if image.width * image.height > max_pixels:
        reason = f'too large: {image.width}x{image.height}, more than {max_pixels / 1e6:g} million pixels'
    elif image.mode == 'F':  # OpenCV would round them, and they may be between 0 and 1
        reason = 'its pixels are floating-point numbers: integers are needed'
    else:
        return image
    image.close()
    raise ImageFileError(reason)
