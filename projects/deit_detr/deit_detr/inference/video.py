"""Reading frames of videos and ScanNet scenes, and writing pictures and videos, whole or not at all."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from deit_detr.errors import UserError
from deit_detr.files import replacing
from deit_detr.scannet.frames import list_images


def scene_frames(scene: str | Path) -> list[Path]:
    """Return the colour frames of a ScanNet scene in order of time.

    Args:
        scene: Folder ``sceneXXXX_YY`` with JPEG or PNG images in ``color/``; their names are numbers, with or without
            leading zeros.

    Returns:
        list[Path]: The frames; empty if there are none.
    """
    return sorted(list_images(Path(scene), 'color').values(), key=lambda path: (path.stem.zfill(12), path.stem))


class VideoFrames:
    """Iterate once over the frames of a video file.

    Args:
        path: The video.

    Attributes:
        fps (float): Frames per second; 25 if the file does not say.

    Raises:
        UserError: If the file is missing, or OpenCV cannot read its first frame.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise UserError(f'{path}: no such file')
        with open(path, 'rb') as file:
            head = file.read(1024)
        if b'\0' not in head or head.startswith((b'#EXTM3U', b'ffconcat')):  # FFmpeg opens the files of a playlist
            raise UserError(f'{path}: neither an image nor a video: this is text')
        self._capture = cv2.VideoCapture(str(path))
        found, self._first = self._capture.read()
        if not found:
            raise UserError(f'{path}: neither an image nor a video that OpenCV can read')
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        self._number = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))

    def __len__(self) -> int:
        """Return the number of frames according to the file; 0 if it does not say."""
        return max(self._number, 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield BGR frames, uint8 ``(height, width, 3)``."""
        frame = self._first
        while frame is not None:
            yield frame
            frame = self._capture.read()[1]
        self._capture.release()


def write_picture(path: str | Path, picture: Image.Image) -> None:
    """Write a picture in the format of the file's suffix.

    Args:
        path: File to write. An existing file is replaced; missing folders are made.
        picture: The picture.

    Raises:
        UserError: If the suffix is not that of a picture, or the file cannot be written.
    """
    with replacing(path) as part:
        try:
            picture.save(part, quality=92)  # of formats that have one
        except ValueError:
            raise UserError(f'{path}: the name has to end in the suffix of a picture, such as .jpg or .png') from None


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write an MPEG-4 video (``mp4v``).

    Args:
        path: File to write, ``*.mp4``. An existing file is replaced; missing folders are made.
        frames: BGR frames of one size, uint8 ``(height, width, 3)``. The encoder drops the last column of an odd width
            and the last row of an odd height.
        fps: Frames per second; rounded, since the time base of MPEG-4 ends at 1/65535 s.

    Returns:
        int: Number of frames written.

    Raises:
        UserError: If there are no frames, sizes differ, or the file cannot be written.
    """
    writer, size, number = cv2.VideoWriter(), None, 0
    fps = round(fps, max((digits for digits in range(4) if fps * 10 ** digits <= 65535), default=0))
    with replacing(path) as part:
        try:
            for frame in frames:
                size = size or frame.shape
                if not number and not writer.open(
                        str(part), cv2.VideoWriter_fourcc(*'mp4v'), fps, (size[1], size[0])):
                    raise UserError(f'{path}: cannot be written, or not at {fps:g} frames per second, or OpenCV was '
                                    'built without an MPEG-4 encoder')
                if frame.shape != size:
                    raise UserError(
                        f'{path}: frame {number} is {frame.shape[1]}x{frame.shape[0]}, the first was '
                        f'{size[1]}x{size[0]}; all frames of a video need one size')
                writer.write(frame)
                number += 1
        finally:
            writer.release()
        if not number:
            raise UserError(f'{path}: there are no frames to write')
        written = int(cv2.VideoCapture(str(part)).get(cv2.CAP_PROP_FRAME_COUNT))
        if written != number:  # OpenCV raises no error when the disk is full
            raise UserError(f'{path}: only {written} of {number} frames could be written. Is the disk full?')
    return number
