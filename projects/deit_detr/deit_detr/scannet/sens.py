"""Read the colour frames of a .sens file, the recording of a ScanNet scan, one after the other.

The format, little endian: version (4), name of the sensor, four 4x4 float32 matrices (intrinsics and extrinsics of
colour and depth), two compression types, two image sizes, depth shift and number of frames. Each frame has its pose,
two timestamps, the sizes of its colour and depth data, and both data. There is no index: a reader goes from header to
header, but need not read the data in between.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

_BEGIN = struct.Struct('<IQ')  # version, length of the sensor's name
_HEADER = struct.Struct('<256x2i4IfQ')  # after the matrices: compressions, width and height twice, shift, frames
_FRAME = struct.Struct('<80x2Q')  # after pose and timestamps: bytes of colour and depth

VERSION = 4
JPEG = 2
#: More frames than any recording has (an hour at 30 a second), and more bytes than any JPEG of a frame has.
MAX_FRAMES = 100_000
MAX_COLOR_BYTES = 20_000_000


class SensError(Exception):
    """The file, or the rest of it, cannot be read.

    Attributes:
        number: The first frame that cannot be read.
    """

    def __init__(self, text: str, number: int = 0):
        super().__init__(text)
        self.number = number


class SensFile:
    """The colour frames of a .sens file.

    Args:
        path: The file. It is opened only while something is read.

    Attributes:
        path: The file.
        num_frames: Number of frames according to its header; a file that was cut off holds fewer.
        first_size: Bytes of the first colour frame, 0 if there is none.

    Raises:
        SensError: If its header is not that of a .sens file with JPEG colour frames.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open('rb') as file:
            version, name_length = _BEGIN.unpack(file.read(_BEGIN.size).ljust(_BEGIN.size, b'\0'))
            if version != VERSION or name_length > 4096:
                raise SensError(f'not a .sens file of version {VERSION}')
            file.seek(name_length, os.SEEK_CUR)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise SensError('ends within its header')
            compression, *_, self.num_frames = _HEADER.unpack(header)
            if compression != JPEG:
                raise SensError(f'its colour frames have compression type {compression}, only {JPEG} (JPEG) is read')
            if self.num_frames > MAX_FRAMES:
                raise SensError(f'its header gives {self.num_frames} frames, which cannot be')
            self._start = file.tell()
            frame = file.read(_FRAME.size)
            self.first_size = min(_FRAME.unpack(frame)[0], MAX_COLOR_BYTES) if len(frame) == _FRAME.size else 0

    def color_frames(self, every: int = 1) -> Iterator[tuple[int, bytes]]:
        """Yield number and JPEG of every ``every``-th frame, from 0 on. One frame is in memory at a time.

        Raises:
            SensError: If the file ends early or has impossible sizes; ``number`` is that of the first frame that is not
                whole, wanted or not.
        """
        with self.path.open('rb') as file:
            end = os.fstat(file.fileno()).st_size
            position = self._start
            for number in range(self.num_frames):
                file.seek(position)
                header = file.read(_FRAME.size)
                if len(header) < _FRAME.size:
                    raise SensError(f'ends before frame {number} of {self.num_frames}', number)
                color_size, depth_size = _FRAME.unpack(header)
                if color_size > MAX_COLOR_BYTES:
                    raise SensError(f'frame {number} of {self.num_frames} has an impossible size', number)
                if position + _FRAME.size + color_size > end:
                    raise SensError(f'ends within frame {number} of {self.num_frames}', number)
                if number % every == 0:
                    yield number, file.read(color_size)
                position += _FRAME.size + color_size + depth_size
                if position > end and number + 1 < self.num_frames:
                    raise SensError(f'ends within frame {number} of {self.num_frames}', number + 1)
