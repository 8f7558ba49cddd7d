"""Write rendered rooms as a data set in the layout of scannet_frames_25k."""

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from deit_detr.errors import UserError
from deit_detr.files import replacing, write_json
from deit_detr.scannet.classes import SCANNET_CLASSES
from deit_detr.scannet.mini_scannet.rooms import THEMES, Room
from deit_detr.workers import in_processes

#: Holds the arguments, so that a second run knows that there is nothing to do.
SUMMARY_FILE = 'mini_scannet.json'
#: Changes whenever the same arguments give other pictures.
RENDERER_VERSION = 1
FRAMES_PER_SCENE = 4
FRAME_STEP = 100
#: Objects of which fewer pixels are visible are not labelled, as an annotator would miss them.
MIN_VISIBLE_PIXELS = 12
MIN_SIDE, MAX_SIDE = 32, 4096
_NAMES = {nyu40_id: name for name, nyu40_id, _ in SCANNET_CLASSES}


@dataclass(frozen=True)
class _SceneTask:
    """One scene to render: its folder, and what fixes its content."""

    folder: Path
    theme: str
    seed: int
    frames: int
    size: tuple[int, int]


def make_mini_scannet(
    out_dir: str | Path, splits_dir: str | Path, num_train: int = 400, num_val: int = 80,
    size: tuple[int, int] = (320, 240), seed: int = 0, workers: int | None = None,
) -> dict:
    """Render MiniScanNet, synthetic rooms in the layout of scannet_frames_25k.

    Scenes take their names from the official splits, in order, with four frames each. A frame depends only on the seed,
    the scene, its place in the split, the frame's number and the image size.

    Args:
        out_dir: Folder to create; the scenes of both splits lie side by side in it.
        splits_dir: Folder with ``scannetv2_train.txt`` and ``scannetv2_val.txt``.
        num_train: Number of training frames, >= 0.
        num_val: Number of validation frames, >= 0.
        size: Image width and height in pixels, 32..4096.
        seed: Seed of everything random, >= 0.
        workers: Number of processes. Default: one per core.

    Returns:
        dict: ``arguments`` (as stored in ``mini_scannet.json``), ``boxes`` (labelled objects per split and class name)
        and ``reused`` (True if ``out_dir`` already held this data set and nothing was written).

    Raises:
        UserError: If an argument is out of range, a split file is missing, or ``out_dir`` holds anything but this data
            set.
    """
    out_dir = Path(out_dir).absolute()
    for name, value, least in (('train', num_train, 0), ('val', num_val, 0), ('seed', seed, 0)):
        if value < least:
            raise UserError(f'{name} must be at least {least}, not {value}')
    if num_train + num_val == 0:
        raise UserError('train and val are both 0: nothing to render')
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise UserError(f'size must be between {MIN_SIDE} and {MAX_SIDE} pixels a side, not {size[0]}x{size[1]}')
    arguments = dict(renderer=RENDERER_VERSION, train=num_train, val=num_val, size=list(size), seed=seed)
    if (summary := _existing(out_dir, arguments)) is not None:
        return dict(summary, reused=True)

    with replacing(out_dir) as part:
        part.mkdir()
        tasks = {split: _plan(part, Path(splits_dir) / f'scannetv2_{split}.txt', frames, size, seed)
                 for split, frames in (('train', num_train), ('val', num_val))}
        summary = dict(arguments=arguments, boxes=_render(tasks, workers))
        write_json(part / SUMMARY_FILE, summary)
    return dict(summary, reused=False)


def _existing(out_dir: Path, arguments: dict) -> dict | None:
    """Return the summary of a finished data set with the same arguments; None if the folder is missing or empty."""
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f'{out_dir} is a file; name a folder')
    if not out_dir.exists() or not any(out_dir.iterdir()):
        return None
    try:
        summary = json.loads((out_dir / SUMMARY_FILE).read_text())
        found = summary['arguments']
    except FileNotFoundError:
        raise UserError(f'{out_dir} is not empty and has no {SUMMARY_FILE}; name a new folder') from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{out_dir / SUMMARY_FILE} is damaged; remove the folder or name a new one') from None
    if found != arguments:
        raise UserError(f'{out_dir} was made with {found}, not {arguments}; remove it or name a new folder')
    return summary


def _plan(root: Path, split_file: Path, frames: int, size: tuple[int, int], seed: int) -> list[_SceneTask]:
    """Return the scenes of one split, which hold ``frames`` frames together."""
    if frames == 0:
        return []
    try:
        names = split_file.read_text().split()
    except OSError as error:
        raise UserError(f'cannot read the split {split_file}: {error.strerror}') from error
    if not names:
        raise UserError(f'{split_file} lists no scene')
    each = max(FRAMES_PER_SCENE, -(-frames // len(names)))
    return [_SceneTask(root / name, THEMES[i % len(THEMES)], seed, min(each, frames - i * each), tuple(size))
            for i, name in enumerate(names[: -(-frames // each)])]


def _render(tasks: dict[str, list[_SceneTask]], workers: int | None) -> dict[str, dict[str, int]]:
    """Render every scene; return the number of labelled objects per split and class, classes in label order."""
    jobs = [(split, task) for split, scenes in tasks.items() for task in scenes]
    counts = {split: Counter() for split in tasks}
    scenes = [task for _, task in jobs]
    results = in_processes(_write_scene, scenes, workers, 'rendering', 'frame', [task.frames for task in scenes])
    with closing(results):
        for (split, _), count in zip(jobs, results, strict=True):
            counts[split].update(count)
    return {split: {name: count[name] for name in _NAMES.values()} for split, count in counts.items()}


def _write_scene(task: _SceneTask) -> Counter:
    """Render and write one scene; return the number of labelled objects per class over its frames."""
    seed = (task.seed, zlib.crc32(task.folder.name.encode()))
    room = Room(seed, task.theme)
    fov = np.radians(np.random.default_rng((*seed, 2)).uniform(55, 75))
    for kind in ('color', 'depth', 'instance', 'label', 'pose'):
        (task.folder / kind).mkdir(parents=True)
    count = Counter()
    for index in range(task.frames):
        camera = room.camera(index, task.size, fov)
        light, instance, depth = room.scene.render(camera)
        instance = drop_specks(instance)
        label = np.where(instance < 1000, instance, instance // 1000).astype(np.uint8)
        color, quality = develop(light, np.random.default_rng((*seed, 3, index)))
        name = f'{index * FRAME_STEP:06d}'
        _write_image(task.folder / 'color' / f'{name}.jpg', color, [cv2.IMWRITE_JPEG_QUALITY, quality])
        _write_image(task.folder / 'instance' / f'{name}.png', instance)
        _write_image(task.folder / 'label' / f'{name}.png', label)
        millimetres = np.clip(np.round(depth * 1000), 0, 65535).astype(np.uint16)
        _write_image(task.folder / 'depth' / f'{name}.png', millimetres)
        np.savetxt(task.folder / 'pose' / f'{name}.txt', camera.pose(), fmt='%.6f')
        values = np.unique(instance)
        count.update(_NAMES[int(v) if v < 1000 else int(v) // 1000] for v in values[values > 0])
    for kind in ('color', 'depth'):
        np.savetxt(task.folder / f'intrinsics_{kind}.txt', camera.intrinsics(), fmt='%.6f')
    return count


def drop_specks(instance: np.ndarray) -> np.ndarray:
    """Return the instance map (height, width) uint16 with every value that covers too few pixels set to 0."""
    pixels = np.bincount(instance.ravel(), minlength=65536)
    return np.where(pixels[instance] < MIN_VISIBLE_PIXELS, 0, instance).astype(np.uint16)


def develop(light: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Turn light into the picture of a hand-held camera.

    Args:
        light: Linear RGB (height, width, 3) float32.
        rng: Chooses exposure, white balance, vignetting, blur, noise and compression.

    Returns:
        tuple: BGR image (height, width, 3) uint8, and JPEG quality 80..95.
    """
    height, width = light.shape[:2]
    exposure = rng.uniform(0.26, 0.42) / max(float(np.minimum(light, 1.5).mean()), 1e-3)
    balance = np.array([rng.uniform(0.9, 1.1), 1, rng.uniform(0.88, 1.12)])
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    vignette = 1 - rng.uniform(0, 0.22) * (x**2 + y**2) / 2
    image = np.sqrt(light * (exposure * balance).astype(np.float32)) * vignette[..., None].astype(np.float32)
    # Bright parts saturate smoothly instead of being clipped.
    image = np.where(image > 0.8, 0.8 + 0.25 * np.tanh((image - 0.8) / 0.25), image)
    sigma = rng.uniform(0, 0.8) * width / 640
    if sigma > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.004, 0.018))
    image = np.clip((image + noise) * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1]), int(rng.integers(80, 96))


def _write_image(path: Path, image: np.ndarray, options: Sequence[int] = ()) -> None:
    if not cv2.imwrite(str(path), image, list(options)):
        raise OSError(f'cannot write {path}')
