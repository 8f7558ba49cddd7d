"""Image files from anywhere: opened by few decoders, and only if their pixels fit into memory."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

#: The largest image that is decoded, in pixels: 3 bytes each, in several copies. A ScanNet frame has 1.25 million.
MAX_PIXELS = 80_000_000
#: Pillow's names of the formats that are opened. Others have decoders that nobody needs here.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
#: Formats that Pillow decodes by starting a program.
PROGRAMS = ('EPS', 'WMF')


class ImageFileError(ValueError):
    """The file is no image that can be decoded; the message says why, and does not name it."""


@contextmanager
def decoding() -> Iterator[None]:
    """A block in which whatever a decoder of Pillow raises becomes an ImageFileError: its kind depends on the bytes.

    Raises:
        ImageFileError: If something is raised that the operating system did not say.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ImageFileError) or isinstance(error, OSError) and error.errno:
            raise
        raise ImageFileError(str(error).split(' <_io', 1)[0].strip() or type(error).__name__) from None


def open_image(file: str | Path | BinaryIO, formats: tuple[str, ...] = FORMATS, max_pixels: int = MAX_PIXELS) -> Image:
    """Open an image file; only its header is read.

    Args:
        file: Path, or an open file.
        formats: Pillow's names of the formats that are expected.
        max_pixels: Refuse images with more.

    Returns:
        Image: To be used in a ``with`` statement, and decoded within :func:`decoding`.

    Raises:
        ImageFileError: If it is not of these formats, damaged at its beginning, too large, of floating-point numbers,
            or a pipe or a device.
        OSError: If the file cannot be opened.
    """
    with decoding():
        if isinstance(file, (str, Path)) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ImageFileError('no regular file')  # a pipe would be waited for, a device read without end
        image = Image.open(file, formats=formats)
    if image.width * image.height > max_pixels:
        reason = f'too large: {image.width}x{image.height}, more than {max_pixels / 1e6:g} million pixels'
    elif image.mode == 'F':  # OpenCV would round them, and they may well be shares of 1
        reason = 'its pixels are floating-point numbers: whole ones are needed'
    else:
        return image
    image.close()
    raise ImageFileError(reason)
