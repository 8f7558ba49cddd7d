"""Tracked videos for the demo: the video, the objects of each frame, and the list of objects seen."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from deit_detr.errors import UserError
from deit_detr.files import replacing, write_json
from deit_detr.inference.camera import CameraFrames, in_real_time, until_interrupted
from deit_detr.inference.detector import Detector, ImageInput
from deit_detr.inference.tracking import ObjectList, TrackedFrame, draw_tracks, track_frames
from deit_detr.inference.video import write_video

#: Formats of the objects of each frame, and the suffix of their file; ``-`` is standard output.
RESULTS = {'jsonl': '.jsonl', 'mot': '.txt', '-': None}


def track_video(
    detector: Detector, detect: Callable, frames: Iterable[ImageInput], out: Path, fps: float, score_thr: float = 0.3,
    results: str | None = None, show: bool = False,
) -> list[str]:
    """Track the objects of a video or scene, and write the video and ``*.objects.json``, the list of objects seen.

    Args:
        detector: The detector.
        detect: Function of an image and the minimum score, such as the detector.
        frames: The frames; files give their names to the list, arrays their numbers.
        out: File for the video, ``*.mp4``.
        fps: Frames per second.
        score_thr: Minimum score of the detection that starts a track, in 0..1.
        results: A key of :data:`RESULTS`, or ``None`` for no results of each frame.
        show: Whether to show the video in a window as well.

    Returns:
        list[str]: A line for each file written.

    Raises:
        UserError: If a package for it is missing, a frame cannot be read or a file cannot be written.
    """
    named = ((frame.stem if isinstance(frame, Path) else str(index), None, frame)
             for index, frame in enumerate(frames))
    seen = ObjectList()
    lines = _write(detector, track_frames(detect, named, fps, score_thr), seen, out, fps, results, show)
    listed = out.with_suffix('.objects.json')
    write_json(listed, seen.list())
    counts = ', '.join(f'{name} {number}' for name, number in sorted(seen.counts().items()))
    return [*lines, f'{listed}: {counts or "nothing"}']


def track_camera(
    detector: Detector, detect: Callable, camera: CameraFrames, out: Path, fps: float, score_thr: float = 0.3,
    results: str | None = None, show: bool = False, frames: int | None = None,
) -> list[str]:
    """Track the objects that a camera sees until it ends, ``frames`` frames are done, or Ctrl-C; see `track_video`.

    The video repeats and drops pictures so that it keeps the time of the camera.
    """
    with until_interrupted() as stopped, closing(iter(camera)) as pictures:

        def named() -> Iterator[tuple[str, float, np.ndarray]]:
            for index, (seconds, frame) in enumerate(islice(pictures, frames)):
                yield str(index), seconds, frame
                if stopped.is_set():
                    return

        tracked = track_frames(detect, named(), fps, score_thr)
        return _write(detector, tracked, ObjectList(keep_frames=False), out, fps, results, show, real_time=True)


def _write(
    detector: Detector, tracked: Iterable[TrackedFrame], seen: ObjectList, out: Path, fps: float, results: str | None,
    show: bool, real_time: bool = False,
) -> list[str]:
    suffix = RESULTS[results] if results else None
    with ExitStack() as stack:
        window = stack.enter_context(_Window(out.stem)) if show else None
        file = None
        if suffix:
            part = stack.enter_context(replacing(out.with_suffix(suffix)))
            file = stack.enter_context(part.open('w', encoding='utf-8'))

        def drawn() -> Iterator[tuple[float, np.ndarray]]:
            for frame in tracked:
                seen.add(frame)
                if file:
                    file.write(frame.json_line() if results == 'jsonl' else frame.mot_lines())
                elif results:
                    sys.stdout.write(frame.json_line())
                    sys.stdout.flush()
                picture = np.asarray(draw_tracks(detector, frame, seen.counts()))[..., ::-1]
                yield frame.seconds, picture
                if window and window.closed(picture):
                    return

        pictures = in_real_time(drawn(), fps) if real_time else (picture for _, picture in drawn())
        number = write_video(out, pictures, fps)
    lines = [f'{out}: {number} frames, {fps:g} per second']
    return [*lines, str(out.with_suffix(suffix))] if suffix else lines


class _Window:
    """A window with the video."""

    def __init__(self, name: str) -> None:
        if sys.platform == 'linux' and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
            raise UserError('--show: there is no display to show a window on')  # Qt would end the process
        self._name = name

    def __enter__(self) -> '_Window':
        return self

    def closed(self, picture: np.ndarray) -> bool:
        """Show a picture; return whether the user has pressed q or Esc."""
        try:
            cv2.imshow(self._name, picture)
            return cv2.waitKey(1) & 0xFF in (ord('q'), 27)
        except cv2.error as error:
            raise UserError(f'--show: this OpenCV cannot open windows ({error.err})') from None

    def __exit__(self, *_) -> None:
        cv2.destroyAllWindows()
