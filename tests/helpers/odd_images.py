"""Image files of many kinds for the fuzz tests: odd modes and formats, damaged ones, and ones that claim huge sizes."""

import io
import struct
import zlib

from hypothesis import strategies as st
from PIL import Image

from tests.helpers.fuzzing import damaged

MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I', 'I;16', 'F')
FORMATS = ('JPEG', 'PNG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'PPM', 'ICO', 'PDF', 'EPS', 'TGA')


def image_file(mode: str, size: tuple[int, int], kind: str, frames: int = 1, orientation: int = 1) -> bytes:
    """Return an image file of a mode and format, converted if the format does not support the mode."""
    image = Image.new(mode, size)
    if mode not in ('F', 'I', 'I;16', '1'):
        image.putpixel((0, 0), tuple([5] * len(image.getbands())) if len(image.getbands()) > 1 else 5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = dict(save_all=True, append_images=[image] * (frames - 1)) if frames > 1 else {}
    if kind in ('JPEG', 'PNG', 'WEBP', 'TIFF'):
        options['exif'] = exif
    for image in (image, image.convert('RGB')):  # noqa: B020 - the second if the first cannot be written
        file = io.BytesIO()
        try:
            image.save(file, kind, **options)
        except (OSError, ValueError, KeyError):
            continue
        return file.getvalue()
    return b''


IMAGES = st.builds(
    image_file, st.sampled_from(MODES), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from(FORMATS),
    st.sampled_from([1, 3]), st.sampled_from([1, 1, 3, 6, 99]))
GOOD_PNG = image_file('I;16', (24, 18), 'PNG')
GOOD_JPEG = image_file('RGB', (24, 18), 'JPEG')
ANY_FILE = st.one_of(IMAGES, IMAGES.flatmap(damaged), damaged(GOOD_PNG), damaged(GOOD_JPEG), st.binary(max_size=40))


def png_header(width: int, height: int, depth: int = 16, colour: int = 0) -> bytes:
    """Return a PNG of a few bytes that claims a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


def jpeg_header(width: int, height: int) -> bytes:
    """Return a JPEG of one pixel that claims a size."""
    data = bytearray(image_file('RGB', (1, 1), 'JPEG'))
    place = data.index(b'\xff\xc0') + 5
    data[place:place + 4] = struct.pack('>HH', height, width)
    return bytes(data)
