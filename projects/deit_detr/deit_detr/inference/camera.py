"""Pictures of a webcam or a stream as they come, and videos that keep their time."""

import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
from mmengine.logging import print_log

from deit_detr.errors import UserError

#: Schemes of addresses that are streams; everything else is a path.
SCHEMES = ('rtsp', 'rtsps', 'rtmp', 'http', 'https', 'udp', 'tcp', 'srt')
#: Seconds that FFmpeg waits for an answer.
_TIMEOUT = 10


def camera_source(text: str) -> int | str | None:
    """Return the number of a webcam or the address of a stream; ``None`` for the path of a file or folder."""
    if text.isdecimal() and not Path(text).exists():
        return int(text)
    return text if '://' in text and text.partition('://')[0].lower() in SCHEMES else None


class CameraFrames:
    """Iterate over the newest pictures of a camera until it is gone.

    A thread reads all pictures and keeps the newest one, so that a detector slower than the camera sees the present. A
    lost connection is opened again for ``patience`` seconds; then the iteration ends, and ``problem`` says why.

    Args:
        source: Number of a webcam, or address of a stream.
        patience: Seconds without a picture after which to give up.

    Attributes:
        name (str): Name for files and messages, without the password that an address may hold.
        problem (str | None): Why the iteration ended, a sentence.

    Raises:
        UserError: If the camera cannot be opened or gives no first picture, or the address is of a video that ends.
    """

    def __init__(self, source: int | str, patience: float = 30.0) -> None:
        self._source, self._patience = source, patience
        self.name = f'camera{source}' if isinstance(source, int) else _name_of(source)
        self.problem: str | None = None
        self._newest: queue.Queue[tuple[float, np.ndarray]] = queue.Queue(1)
        self._stop = threading.Event()
        self._capture = self._open()
        if not self._capture.isOpened():
            kind = 'webcam' if isinstance(source, int) else 'stream'
            raise UserError(f'{self.name}: no {kind} that OpenCV can open. Is it on, connected and not in use?')
        if self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
            raise UserError(f'{self.name}: a video that ends. Download it and give the file')

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the time in seconds, which increases, and the picture, BGR uint8 ``(height, width, 3)``."""
        reader = threading.Thread(target=self._read, name=f'reader of {self.name}', daemon=True)
        reader.start()
        size = None
        try:
            while not self._stop.is_set():
                seconds, frame = self._newest.get(timeout=self._patience)
                size = size or frame.shape[1::-1]
                yield seconds, frame if frame.shape[1::-1] == size else cv2.resize(frame, size)
        except queue.Empty:
            self.problem = f'{self.name}: no picture for {self._patience:g} s; ended'
            if size is None:
                raise UserError(self.problem) from None
        finally:
            self._stop.set()
            reader.join(_TIMEOUT + 2)  # a thread that returns from OpenCV while Python ends aborts the process

    def _open(self) -> cv2.VideoCapture:
        if isinstance(self._source, int):
            return cv2.VideoCapture(self._source)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000 * _TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000 * _TIMEOUT]
        return cv2.VideoCapture(self._source, cv2.CAP_FFMPEG, limits)

    def _read(self) -> None:
        pause = 0.5
        while not self._stop.is_set():
            found, frame = self._capture.read()
            if found:
                pause = 0.5
                while self._newest.full():
                    try:
                        self._newest.get_nowait()
                    except queue.Empty:
                        break
                self._newest.put((time.monotonic(), frame))
                continue
            if pause == 0.5:
                print_log(f'{self.name}: the connection is lost, trying again', 'current')
            self._capture.release()
            self._stop.wait(pause)
            pause = min(2 * pause, 8)
            self._capture = self._open()
        self._capture.release()


def _name_of(address: str) -> str:
    """Return host, port and path of an address as the name of a file."""
    parts = urlsplit(address)
    name = f'{parts.netloc.rpartition("@")[2]}{parts.path}'
    return ''.join(x if x.isalnum() or x in '.-' else '_' for x in name).strip('._') or parts.scheme


@contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """Set an event at Ctrl-C or SIGTERM instead of ending the program, once; the second one ends it as usual."""
    stopped, before = threading.Event(), {}

    def stop(number: int, _) -> None:
        stopped.set()
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_real_time(frames: Iterable[tuple[float, np.ndarray]], fps: float) -> Iterator[np.ndarray]:
    """Repeat or drop pictures so that a video of ``fps`` frames a second keeps the time of the camera.

    Args:
        frames: Seconds, which increase, and picture.
        fps: Frames per second of the video.

    Yields:
        np.ndarray: The pictures of the video; of one or more, at least one.
    """
    begin, number, newest = None, 0, None
    for seconds, frame in frames:
        begin = seconds if begin is None else begin
        while newest is not None and number < int((seconds - begin) * fps):
            yield newest
            number += 1
        newest = frame
    if newest is not None:
        yield newest
