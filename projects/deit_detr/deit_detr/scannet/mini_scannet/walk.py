"""A walk through a room: frames of a video in which the identity of each object is known."""

from collections.abc import Iterator

import numpy as np

from deit_detr.scannet.classes import STUFF_IDS
from deit_detr.scannet.frames import find_segments
from deit_detr.scannet.mini_scannet.geometry import Camera
from deit_detr.scannet.mini_scannet.rooms import Room
from deit_detr.scannet.mini_scannet.writer import develop, drop_specks

#: Horizontal field of view of the camera, in radians.
_FIELD_OF_VIEW = np.radians(65)


def render_walk(
    seed: int, theme: str, frames: int, size: tuple[int, int] = (320, 240), degrees: float = 2.0,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Render a walk round the middle of a room, with the view across it, in a hand that is not quite still.

    Args:
        seed: Seed of the room and of the walk.
        theme: One of :data:`~deit_detr.scannet.mini_scannet.rooms.THEMES`.
        frames: Number of frames.
        size: Image width and height in pixels.
        degrees: Degrees that the camera turns from frame to frame. At 15 frames a second, 2 are a brisk walk.

    Yields:
        tuple: The picture, BGR uint8 (height, width, 3); the identities (N,) of the objects in view, as in an instance
        map (``nyu40_id * 1000 + k``), without wall and floor; and their boxes (N, 4), x1, y1, x2, y2 in pixels.
    """
    room = Room((seed, 0), theme)
    rng = np.random.default_rng((seed, 1))
    start, middle = rng.uniform(0, 2 * np.pi), room.size[:2] / 2
    shake = np.cumsum(rng.normal(0, 0.01, (frames, 3)), 0)
    for index in range(frames):
        angle = start + np.radians(degrees) * index
        away = 0.25 * room.size[:2] * (np.cos(angle), np.sin(angle))
        position = np.array([*(middle + away), 1.5 + 0.03 * np.sin(index / 2)])
        target = np.array([*(middle - 1.5 * away), 0.9]) + shake[index]
        camera = Camera.look_at(position, target, _FIELD_OF_VIEW, size, 0.02 * np.sin(index / 5))
        light, instance, _ = room.scene.render(camera)
        ids, boxes, _ = find_segments(drop_specks(instance))
        things = ids > max(STUFF_IDS)
        boxes = boxes.astype(np.float64)
        boxes[:, 2:] += boxes[:, :2]
        picture, _ = develop(light, np.random.default_rng((seed, 2)))  # one exposure for all
        yield picture, ids[things].astype(int), boxes[things]
