"""Tracking: the objects of a video get numbers that stay; drawn, counted and written as text."""

import colorsys
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.font_manager import FontProperties, findfont
from mmdet.structures import DetDataSample
from PIL import Image, ImageDraw, ImageFont
from torchvision.ops import batched_nms

from deit_detr.errors import UserError
from deit_detr.fonts import find_fonts
from deit_detr.inference.detector import Detector, ImageInput

#: Detections below the threshold, down to this score, continue a track and start none.
LOW_SCORE = 0.1
#: IoU above which boxes of one class are one object, found by several queries: each would get a number.
_DOUBLE = 0.7
#: Seconds after which an object that is no longer seen is forgotten: it gets a new number when it returns.
_LOST_AFTER = 2.0
#: Seconds over which the rate of frames is taken.
_RATE_OVER = 2.0


class Tracker:
    """ByteTrack ([arXiv 2110.06864](https://arxiv.org/abs/2110.06864)) of the package ``trackers``, class by class.

    Boxes of different classes are moved apart, as ``torchvision.ops.batched_nms`` does: a chair is not continued as the
    table behind it, and all classes share one sequence of numbers.

    Args:
        fps: Frames per second of the video; for a camera, about.
        score_thr: Minimum score of the detection that starts a track, in 0..1.

    Raises:
        UserError: If the package is not installed.
    """

    def __init__(self, fps: float, score_thr: float = 0.3) -> None:
        try:
            import supervision
            from trackers import ByteTrackTracker
        except ImportError:
            raise UserError('tracking needs the package trackers: pip install -r requirements/optional.txt') from None
        self._detections = supervision.Detections
        self._tracker = ByteTrackTracker(
            lost_track_buffer=round(30 * _LOST_AFTER), frame_rate=fps, track_activation_threshold=score_thr,
            high_conf_det_threshold=score_thr)
        self._apart = 0.0

    def __call__(self, sample: DetDataSample, seconds: float | None = None) -> DetDataSample:
        """Number the detections of the next frame.

        Args:
            sample: The detections, from calling a detector with a threshold of at most ``LOW_SCORE``.
            seconds: Time of the frame, for a camera, which increases. Default: all frames are equally far apart.

        Returns:
            DetDataSample: The detections that belong to an object, with its number, from 1, in
            ``pred_instances.instances_id``, as in mmdet's tracking. An object gets its number in the second frame in
            which it is found.
        """
        found = sample.pred_instances
        found = found[batched_nms(found.bboxes, found.scores, found.labels, _DOUBLE)]
        boxes, labels = found.bboxes.numpy().astype(np.float64).reshape(-1, 4), found.labels.numpy()
        self._apart = self._apart or 4.0 * max(sample.ori_shape)
        tracked = self._tracker.update(self._detections(
            xyxy=boxes + self._apart * labels[:, None], confidence=found.scores.numpy(), class_id=labels,
            data=dict(row=np.arange(len(boxes)))), timestamp=seconds)
        numbered = tracked.tracker_id >= 0
        rows = tracked.data['row'][numbered] if len(tracked) else np.zeros(0, int)
        result = found[torch.from_numpy(rows.astype(np.int64))]
        result.instances_id = torch.from_numpy(tracked.tracker_id[numbered].astype(np.int64)) + 1
        return DetDataSample(metainfo=sample.metainfo, pred_instances=result)


@dataclass
class TrackedFrame:
    """A frame of a video with its objects.

    Attributes:
        index: Number of the frame, from 0.
        name: Name of the frame, such as that of its file.
        seconds: Time since the first frame.
        image: The frame.
        sample: Its detections, see :class:`Tracker`.
        rate: Frames processed per second, over the last two seconds.
        counts: Objects of each class in this frame.
    """

    index: int
    name: str
    seconds: float
    image: ImageInput
    sample: DetDataSample
    rate: float
    counts: Counter = field(init=False)

    def __post_init__(self) -> None:
        self.counts = Counter(self.sample.pred_instances.label_names)

    def objects(self) -> list[dict]:
        """Return ``id``, ``class``, ``score`` and ``bbox`` (x1, y1, x2, y2 in pixels) of each object."""
        found = self.sample.pred_instances
        return [dict(id=number, score=round(score, 4), bbox=[round(x, 2) for x in box]) | {'class': name}
                for number, name, score, box in zip(found.instances_id.tolist(), found.label_names,
                                                    found.scores.tolist(), found.bboxes.tolist(), strict=True)]

    def json_line(self) -> str:
        """Return the frame as a line of JSON: ``frame``, ``name``, ``seconds``, ``objects``."""
        return json.dumps(dict(frame=self.index, name=self.name, seconds=round(self.seconds, 3),
                               objects=self.objects()), ensure_ascii=False) + '\n'

    def mot_lines(self) -> str:
        """Return a line of MOTChallenge's format for each object.

        They are frame from 1, id, left, top, width, height, score, class from 1, -1, -1.
        """
        found = self.sample.pred_instances
        rows = zip(found.instances_id.tolist(), found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(),
                   strict=True)
        return ''.join(
            f'{self.index + 1},{number},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},{score:.4f},{label + 1},-1,-1\n'
            for number, (x1, y1, x2, y2), score, label in rows)


def track_frames(
    detect: Callable[[ImageInput, float], DetDataSample], frames: Iterable[tuple[str, float | None, ImageInput]],
    fps: float, score_thr: float = 0.3,
) -> Iterator[TrackedFrame]:
    """Detect and track the objects of a video.

    Args:
        detect: A detector, or another function of an image and the minimum score.
        frames: Name of each frame, its time in seconds or ``None`` where frames are equally far apart, and the frame.
        fps: Frames per second; for a camera, about.
        score_thr: Minimum score of the detection that starts a track, in 0..1.

    Yields:
        TrackedFrame: One for each frame.

    Raises:
        UserError: If ``trackers`` is not installed, or a frame cannot be read.
    """
    tracker, times, begin = Tracker(fps, score_thr), deque([time.perf_counter()]), None
    for index, (name, seconds, image) in enumerate(frames):
        sample = tracker(detect(image, min(LOW_SCORE, score_thr)), seconds)
        begin = begin or seconds or 0.0
        times.append(time.perf_counter())
        while len(times) > 2 and times[0] < times[-1] - _RATE_OVER:
            times.popleft()
        rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
        yield TrackedFrame(index, name, index / fps if seconds is None else seconds - begin, image, sample, rate)


class ObjectList:
    """Objects seen in a video, each with the frames in which it is.

    Args:
        keep_frames: Whether to keep these; of a camera that runs for days they would fill the memory.
    """

    def __init__(self, keep_frames: bool = True) -> None:
        self._objects: dict[int, dict] = {}
        self._counts: Counter = Counter()
        self._last = 0
        self._keep_frames = keep_frames

    def add(self, frame: TrackedFrame) -> None:
        """Add the objects of a frame."""
        for found in sorted(frame.objects(), key=lambda found: found['id']):
            if found['id'] > self._last:  # numbers are given in order
                self._last = found['id']
                self._counts[found['class']] += 1
            if self._keep_frames:
                entry = self._objects.setdefault(
                    found['id'], {'id': found['id'], 'class': found['class'], 'score': 0.0, 'frames': []})
                entry['score'] = max(entry['score'], found['score'])
                entry['frames'].append(frame.name)

    def list(self) -> list[dict]:
        """Return ``id``, ``class``, best ``score`` and names of ``frames`` of each object, by class, then by id."""
        return sorted(self._objects.values(), key=lambda entry: (entry['class'], entry['id']))

    def counts(self) -> Counter:
        """Return the number of objects of each class."""
        return self._counts


def color_of(number: int) -> tuple[int, int, int]:
    """Return the colour of an object, RGB: of its number alone, and unlike those of the numbers near it."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.85, 1 - 0.35 * (number % 3 / 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_tracks(detector: Detector, frame: TrackedFrame, seen: Counter | None = None) -> Image.Image:
    """Draw the objects of a frame with their numbers, the frames a second and the objects of each class.

    This takes milliseconds; :meth:`Detector.draw` takes a tenth of a second.

    Args:
        detector: The detector, for the classes and to read the frame.
        frame: The frame.
        seen: Objects of each class so far, shown beside those in this frame.

    Returns:
        Image.Image: RGB, of the frame's size.
    """
    picture = Image.fromarray(np.ascontiguousarray(detector.read(frame.image)[..., ::-1]))
    pen = ImageDraw.Draw(picture)
    size = max(10, round(max(picture.size) / 60))
    font = _font(detector.classes, size)
    for found in sorted(frame.objects(), key=lambda found: found['score']):
        x1, y1, x2, y2 = found['bbox']
        color = color_of(found['id'])
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=color, width=max(2, size // 6))
        _label(pen, (x1, max(0, y1 - 1.3 * size)), f'{found["class"]} {found["id"]}', font, color)
    text = [f'{frame.rate:.1f} frames/s']
    for name in sorted(frame.counts | (seen or {})):
        text.append(f'{name} {frame.counts[name]}' + (f' of {seen[name]}' if seen and seen[name] else ''))
    for row, line in enumerate(text):
        _label(pen, (0, 1.3 * size * row), line, font, (40, 40, 40))
    return picture


def _font(names: Sequence[str], size: int) -> ImageFont.FreeTypeFont:
    families = find_fonts(frozenset(''.join(names))) or ['sans-serif']
    return ImageFont.truetype(findfont(FontProperties(family=families)), size)


def _label(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, font: ImageFont.FreeTypeFont, color: tuple,
) -> None:
    pen.rectangle(pen.textbbox(place, text, font), fill=color)
    pen.text(place, text, 'white' if sum(color) < 400 else 'black', font)
