"""Read the frames of one scene of scannet_frames_25k: sizes, segments and problems.

Pillow decodes PNGs as fast as OpenCV, verifies their checksums on request and raises an exception for damage; OpenCV
prints libpng's message and returns nothing.
"""

import glob
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from deit_detr.images import ImageFileError, decoding, open_image, pixel_problem
from deit_detr.scannet.classes import STUFF_IDS
from deit_detr.scannet.zips import Member

#: Largest id of the NYU40 label set.
MAX_NYU40_ID = 40
#: The largest frame, in pixels, each of which takes up to 50 bytes. Frames of ScanNet have 1.25 million.
MAX_FRAME_PIXELS = 20_000_000

#: Folders of a scene and the suffixes of their images, in any case; of several images of one frame, the first is read.
FOLDERS = dict(color=('.jpg', '.jpeg', '.png'), instance=('.png',), label=('.png',))

#: What to do instead of exporting maps oneself; the end of several messages.
RAW_HINT = (
    'convert the raw download itself: put SCENE_2d-label-filt.zip and SCENE_2d-instance-filt.zip into the scene folder '
    '(see docs/data.md#raw-scannetv2-scans)')

#: EXIF's field for the orientation of an image.
_ORIENTATION = 0x0112

SCALED_NOTE = 'instance map scaled to the size of its colour frame'
UNCHECKED_NOTE = 'ids below 1000 not cross-checked, the label map is missing'


class Problem(NamedTuple):
    """A fault of the data, as the report file lists it."""

    kind: str
    file: str
    text: str

    def __str__(self) -> str:
        return f'{self.file}: {self.text}'


class BadFrame(Exception):
    """The frame cannot be used; ``problem`` says why."""

    def __init__(self, kind: str, path: Path | Member | str, text: str):
        super().__init__(text)
        self.problem = Problem(kind, str(path), text)


class Segment(NamedTuple):
    """One object of a frame, in pixels of the colour image."""

    category_id: int
    bbox: list[int]  # x, y, width, height
    area: int
    rle: dict | None  # COCO run-length encoding, on request


@dataclass
class Frame:
    """Contents of one frame. ``size`` (width, height) is ``None`` for a frame that cannot be used."""

    file_name: str
    size: tuple[int, int] | None = None
    segments: list[Segment] = field(default_factory=list)
    num_small: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReadOptions:
    """What to keep of a frame.

    Attributes:
        category_ids: NYU40 ids to keep.
        min_area: Segments with fewer pixels are dropped.
        with_mask: Encode the segmentation of each segment.
        labelled: Whether there are instance maps; the test split has none, and only the sizes of its colour images
            are read.
    """

    category_ids: frozenset[int]
    min_area: int = 0
    with_mask: bool = False
    labelled: bool = True


def find_segments(instance_map: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the tight box and the area of every distinct value.

    They come from horizontal runs of equal pixels, of which a frame has thousands. This is six times as fast as
    ``np.unique``, which sorts the million pixels.

    Args:
        instance_map: (H, W), uint16, not empty.

    Returns:
        tuple: Distinct values in ascending order (N,), boxes (N, 4) as x, y, width, height, and areas (N,), in pixels.
        A value with disconnected parts has one box around all of them.
    """
    height, width = instance_map.shape
    is_start = np.ones((height, width), dtype=bool)
    np.not_equal(instance_map[:, 1:], instance_map[:, :-1], out=is_start[:, 1:])
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=height * width)
    values = instance_map.ravel()[starts]

    # A stable sort keeps the runs of one value in row order, so its first and last run give the rows.
    order = np.argsort(values, kind='stable')
    values, lengths = values[order], lengths[order]
    y, x_min = np.divmod(starts[order], width)
    first = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    last = np.append(first[1:], len(values)) - 1

    left, right = np.minimum.reduceat(x_min, first), np.maximum.reduceat(x_min + lengths, first)
    boxes = np.stack((left, y[first], right - left, y[last] - y[first] + 1), axis=1)
    return values[first], boxes, np.add.reduceat(lengths, first)


def list_images(scene_dir: Path, folder: str) -> dict[str, Path]:
    """Return the images in a folder of a scene by the names of their frames, without suffix.

    Args:
        scene_dir: Folder of the scene.
        folder: 'color', 'instance' or 'label'. If it is missing, the result is empty.
    """
    suffixes = FOLDERS[folder]
    try:
        entries = map(os.path.splitext, os.listdir(scene_dir / folder))
    except FileNotFoundError:
        return {}
    images = [(name, suffix) for name, suffix in entries if suffix.lower() in suffixes and name[0] != '.']
    # The last image of a frame stays: the one with the first suffix, in lower case, which sorts after upper case.
    images.sort(key=lambda image: (-suffixes.index(image[1].lower()), image[1]))
    return {name: scene_dir / folder / f'{name}{suffix}' for name, suffix in images}


def read_scene(scene_dir: Path, frame_names: Sequence[str], options: ReadOptions) -> list[Frame]:
    """Read the frames of a scene, in the given order.

    Ids below 1000 are cross-checked with the label map, because an export that writes void as ``0 * 1000 + 1`` would
    give a false wall. Such a fault comes from the exporting program and shows in every frame, and decoding all label
    maps would take half as long again. So the label map is read

    * in the first frame of the scene that has a kept id below 1000,
    * in all later frames of the scene after one has failed,
    * wherever an object that is neither wall nor floor has an id below 1000.

    A segment that fails is dropped and listed; the rest of its frame is kept.

    Args:
        scene_dir: Folder with ``color/`` and, when labelled, ``instance/`` and usually ``label/``.
        frame_names: File names without folder and suffix, such as ``'000100'``.
        options: What to keep.

    Returns:
        list[Frame]: One per name, including those that cannot be used.
    """
    frames = []
    trusted = None
    images = {folder: list_images(scene_dir, folder) for folder in FOLDERS}
    for name in frame_names:
        color, instance, label = (found.get(name, scene_dir / folder / f'{name}{FOLDERS[folder][0]}')
                                  for folder, found in images.items())
        frame = Frame(f'{scene_dir.name}/color/{color.name}')
        try:
            size = read_color_size(color)
            if options.labelled:
                trusted = _read_segments(frame, instance, label, size, options, trusted)
            frame.size = size
        except BadFrame as error:
            frame.problems.append(error.problem)
        frames.append(frame)
    return frames


def read_color_size(path: Path, data: bytes | None = None) -> tuple[int, int]:
    """Return width and height of a colour frame, a JPEG or PNG, and check that the file is complete.

    An interrupted copy or extraction lacks the end-of-image marker at the end of a JPEG (zeros of padding may follow
    it). Damage in its middle is not found: decoding every JPEG would more than double the time of a conversion. A PNG
    is decoded and its checksums are verified.

    Args:
        path: The file, or its name in problems.
        data: Its content. Default: read from ``path``.

    Raises:
        BadFrame: If the file is missing, of another format than its suffix says, truncated, has more than 8 bits a
            channel, or has an EXIF orientation.
    """
    kind = 'png' if path.suffix.lower() == '.png' else 'jpeg'
    try:
        if data is None:
            _refuse_endless(path)
        with path.open('rb') if data is None else io.BytesIO(data) as file, decoding():
            image = open_image(file, ('JPEG', 'PNG'), MAX_FRAME_PIXELS, any_depth=True)
            size, is_png, fault = image.size, image.format == 'PNG', pixel_problem(image)
            if is_png != (kind == 'png'):
                fault = f'contains a {image.format}: change its suffix to {".png" if is_png else ".jpg"}'
            turned = image.getexif().get(_ORIENTATION, 1) != 1  # decodes a PNG
            file.seek(0)
            if is_png:
                open_image(file, ('PNG',), MAX_FRAME_PIXELS, any_depth=True).verify()
            else:
                file.seek(-min(file.seek(0, io.SEEK_END), 4096), io.SEEK_END)
                if not file.read().rstrip(b'\0').endswith(b'\xff\xd9'):
                    fault = fault or 'truncated, the JPEG has no end marker; extract it again'
    except FileNotFoundError:
        raise BadFrame(f'no-{kind}', path, _missing(path, 'JPEG or PNG')) from None
    except (OSError, ImageFileError) as error:
        raise BadFrame(f'bad-{kind}', path, f'unreadable ({error}); extract it again') from None
    if fault:
        raise BadFrame(f'bad-{kind}', path, fault)
    if turned:
        text = 'has an EXIF orientation: training would turn the image but not its boxes; save it upright, without EXIF'
        raise BadFrame(f'turned-{kind}', path, text)
    return size


def _missing(path: Path, kinds: str) -> str:
    """Say what to do about a missing image; one of another format may lie beside it."""
    others = sorted(other.name for other in path.parent.glob(f'{glob.escape(path.stem)}.*') if other.name != path.name)
    return f'missing, and {others[0]} cannot be used: save it as {kinds}' if others else 'missing; extract it again'


def _refuse_endless(path: Path) -> None:
    """Raise OSError for a file that would be read without end, such as a pipe or a device."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > 4 * MAX_FRAME_PIXELS:
        raise OSError('not a regular file, or too large for a frame')


def read_png(path: Path | Member, size: tuple[int, int], need_16_bit: bool = False) -> tuple[np.ndarray, bool]:
    """Verify the checksums of a single-channel id map and decode it at a given size.

    Args:
        path: An 8-bit or 16-bit PNG, a file or in a zip archive.
        size: Width and height to return; a map of another size is scaled by nearest neighbour.
        need_16_bit: Refuse other maps: the instance map of a raw ScanNetV2 export has 8 bits.

    Returns:
        tuple: The map (H, W), uint8 or uint16, and whether it was scaled.

    Raises:
        BadFrame: If the file is missing, truncated, damaged, or of another kind.
    """
    try:
        if isinstance(path, Path):
            _refuse_endless(path)
        data = path.read_bytes()
        with decoding():
            open_image(io.BytesIO(data), ('PNG',), MAX_FRAME_PIXELS, any_depth=True).verify()
            image = open_image(io.BytesIO(data), ('PNG',), MAX_FRAME_PIXELS, any_depth=True)
        if need_16_bit and not image.mode.startswith('I'):
            raise BadFrame('not-16-bit', path, (
                f'not a 16-bit instance map as in scannet_frames_25k (Pillow mode {image.mode}). '
                f'If it is from a raw ScanNetV2 scan, {RAW_HINT}'))
        scaled = image.size != size
        with decoding():
            if scaled:
                image = image.resize(size, Image.Resampling.NEAREST)
            return np.asarray(image), scaled
    except FileNotFoundError:
        raise BadFrame('no-png', path, _missing(path, '16-bit PNG' if need_16_bit else 'PNG')) from None
    except (OSError, ImageFileError) as error:
        raise BadFrame('bad-png', path, f'truncated or damaged ({error}); extract it again') from None


def _read_segments(
    frame: Frame, instance: Path, label: Path, size: tuple[int, int], options: ReadOptions, trusted: bool | None
) -> bool | None:
    """Fill in the segments of a frame; return whether the ids below 1000 of its scene can be trusted so far."""
    instance_map, scaled = read_png(instance, size, need_16_bit=True)
    if scaled:
        frame.notes.append(SCALED_NOTE)

    segments = find_segments(instance_map)
    values, wrong = segments[0], []
    semantic = _nyu40(values)
    unknown = values[semantic > MAX_NYU40_ID]
    if unknown.size:
        text = f'ids {unknown[:5].tolist()} are not NYU40 ids and are left out. If they are raw ids, {RAW_HINT}'
        frame.problems.append(Problem('unknown-id', str(instance), text))

    plain = values[np.isin(semantic, list(options.category_ids)) & (values < 1000)]
    if plain.size and (not trusted or not np.isin(plain, STUFF_IDS).all()):
        wrong = _disagreeing(instance_map, plain, label, size)
        if wrong is None:
            frame.notes.append(UNCHECKED_NOTE)
        else:
            trusted = trusted is not False and not wrong
        if wrong:
            frame.problems.append(Problem('label-disagrees', str(instance), (
                f'ids {wrong} are left out: most of their pixels have another id in the label map. Void must '
                f'be 0, not 0 * 1000 + instance; if this is your own export, {RAW_HINT}')))
    add_segments(frame, instance_map, segments, options, wrong or ())
    return trusted


def add_segments(
    frame: Frame, instance_map: np.ndarray, segments: tuple[np.ndarray, np.ndarray, np.ndarray], options: ReadOptions,
    wrong: Sequence[int] = (),
) -> None:
    """Add to a frame the segments that the options keep.

    Args:
        frame: The frame.
        instance_map: (H, W), uint16.
        segments: What :func:`find_segments` returns for it.
        options: What to keep.
        wrong: Values to leave out.
    """
    values, boxes, areas = segments
    semantic = _nyu40(values)
    keep = np.isin(semantic, list(options.category_ids)) & ~np.isin(values, wrong)
    large = areas >= options.min_area
    frame.num_small = int((keep & ~large).sum())
    keep &= large
    rows = zip(values[keep], semantic[keep].tolist(), boxes[keep].tolist(), areas[keep].tolist(), strict=True)
    frame.segments = [Segment(category, box, area, _encode(instance_map == value) if options.with_mask else None)
                      for value, category, box, area in rows]


def _nyu40(values: np.ndarray) -> np.ndarray:
    """Return the class of each value of an instance map."""
    return np.where(values < 1000, values, values // 1000)


def _disagreeing(instance_map: np.ndarray, plain: np.ndarray, path: Path, size: tuple[int, int]) -> list[int] | None:
    """Return the plain ids that have another id on most pixels of the label map; ``None`` without a label map."""
    if not path.exists():
        return None
    label_map, _ = read_png(path, size)
    return [int(value) for value in plain if np.mean(label_map[instance_map == value] == value) <= 0.5]


def _encode(mask: np.ndarray) -> dict:
    """Return COCO's compressed run-length encoding of an (H, W) bool mask, ready for JSON."""
    from pycocotools import mask as mask_utils  # only --with-mask needs it

    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(size=[int(n) for n in rle['size']], counts=rle['counts'].decode('ascii'))
