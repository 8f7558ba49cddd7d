"""Read scenes of a raw ScanNetV2 download: label maps with raw ids, instance maps of 8 bits, colour in a .sens file.

The maps are combined to those of scannet_frames_25k, with ScanNet's semantics: raw ids become NYU40 ids through
scannetv2-labels.combined.tsv, the pixels of one instance are one object, walls and floors have no instances. Labels and
instances were filtered separately and disagree along borders, so an object has the class of most of its pixels.
"""

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deit_detr.errors import UserError
from deit_detr.files import write_bytes
from deit_detr.scannet.classes import STUFF_IDS
from deit_detr.scannet.frames import (
    MAX_NYU40_ID,
    SCALED_NOTE,
    BadFrame,
    Frame,
    Problem,
    ReadOptions,
    add_segments,
    find_segments,
    list_images,
    read_color_size,
    read_png,
)
from deit_detr.scannet.sens import SensError, SensFile
from deit_detr.scannet.zips import Member, list_members

#: Frames of scannet_frames_25k are the multiples of this number.
BENCHMARK_EVERY = 100
LABEL_TABLE = 'scannetv2-labels.combined.tsv'
#: What a label table says of a raw id that it does not have.
UNKNOWN_ID = MAX_NYU40_ID + 1
#: Number of instance ids in a map of 8 bits.
_INSTANCES = 256


@dataclass
class RawScene:
    """A scene of the raw download.

    Attributes:
        folder: Its folder.
        frame_names: Colour images without suffix, sorted by number; of a .sens file, the numbers with 6 digits.
        every: Only multiples of this number are among them.
        sens: Where the colour images are; ``None`` if they are in ``color/``.
        maps: Instance and label maps, each a folder or a zip archive; ``None`` without labels.
    """

    folder: Path
    frame_names: list[str]
    every: int
    sens: SensFile | None
    maps: tuple[Path, Path] | None

    @property
    def copied_bytes(self) -> int:
        """Roughly how many bytes are copied out of the .sens file, by its first frame."""
        return len(self.frame_names) * self.sens.first_size if self.sens else 0


def find_raw_scene(scene_dir: Path, every: int, labelled: bool) -> RawScene | Problem | None:
    """Look at a scene folder; nothing but names and the header of a .sens file is read.

    Args:
        scene_dir: Folder of the scene.
        every: Frames to take: those whose number is a multiple.
        labelled: Whether the scene needs maps.

    Returns:
        RawScene | Problem | None: The scene, or why it cannot be used; ``None`` if it is not of the raw download.
    """
    name = scene_dir.name
    found = sorted(path for path in scene_dir.glob('*.sens') if path.is_file())
    path = next((path for path in found if path.stem == name), found[0] if found else None)
    instance, label = maps = _find_maps(scene_dir)
    if not instance and not label and (not path or (scene_dir / 'instance').is_dir()):
        return None
    if labelled and not (instance and label):
        pairs = (('label', label), ('instance', instance))
        lacking = [f'{name}_2d-{kind}-filt.zip' for kind, path in pairs if not path]
        return Problem('no-labels', str(scene_dir), (
            f'has no {" and no ".join(lacking)}, packed or unpacked; download both archives, --type '
            f'_2d-label-filt.zip and --type _2d-instance-filt.zip'))
    maps = maps if labelled else None

    numbers = {image: _number(image) for image in list_images(scene_dir, 'color')}
    if numbers:
        names = [image for image, number in numbers.items() if number is not None and number % every == 0]
        if not names:
            return Problem('no-frames', str(scene_dir / 'color'), (
                f'has no image whose number is a multiple of {every}, such as {every}.jpg or {every:06d}.jpg; names '
                f'must be frame numbers of {name}.sens, for others set --every'))
        return RawScene(scene_dir, sorted(names, key=lambda name: (numbers[name], name)), every, None, maps)
    if not path:
        return Problem('no-color', str(scene_dir), (
            f'has neither images in color/ nor {name}.sens; download the recording (--type .sens)'))
    try:
        sens = SensFile(path)
    except SensError as error:
        return Problem('bad-sens', str(path), f'{error}; download it again, or export its frames to color/')
    return RawScene(scene_dir, [f'{n:06d}' for n in range(0, sens.num_frames, every)], every, sens, maps)


def _find_maps(scene_dir: Path) -> tuple[Path | None, Path | None]:
    """Return where the instance and the label maps are; the filtered ones, if both are there.

    An unpacked folder counts before its archive. ``label/`` and ``instance/`` themselves are not raw, they are the
    folders of scannet_frames_25k.
    """
    found = (None, None)
    for suffix in ('', '-filt'):
        places = []
        for kind in ('instance', 'label'):
            stem = f'{scene_dir.name}_2d-{kind}{suffix}'
            paths = [scene_dir / f'{stem}/{kind}{suffix}', scene_dir / f'{stem}.zip']
            paths = [scene_dir / f'{kind}{suffix}', *paths] if suffix else paths
            places.append(next((path for path in paths if path.exists()), None))
        if all(places) or (any(places) and not all(found)):
            found = tuple(places)
    return found


def find_label_table(root: Path) -> Path:
    """Return the label table of a download: in its folder, the one above, or ``tasks/`` in either.

    Raises:
        UserError: If there is none.
    """
    for folder in (root, root.resolve().parent):
        for path in (folder / LABEL_TABLE, folder / 'tasks' / LABEL_TABLE):
            if path.is_file():
                return path
    raise UserError(
        f'{root / LABEL_TABLE}: no such file; raw ScanNetV2 labels need it. Download it (download-scannet.py '
        f'--label_map), or name yours with --label-map')


def read_label_table(path: Path) -> np.ndarray:
    """Return the NYU40 id of each raw id: (65536,), uint8.

    0 stands for ids without a class of NYU40, ``UNKNOWN_ID`` for ids that are not in the table. If an id has several
    rows, the last one counts, as in ScanNet's own script.

    Raises:
        UserError: If it is not a table of ScanNet, or a row has no usable numbers.
    """
    table = np.full(1 << 16, UNKNOWN_ID, np.uint8)
    try:
        with path.open(newline='', encoding='utf-8-sig') as file:
            rows = csv.DictReader(file, delimiter='\t')
            missing = {'id', 'nyu40id'} - set(rows.fieldnames or ())
            if missing:
                raise UserError(f'{path}: no column {sorted(missing)[0]!r}; give {LABEL_TABLE} as downloaded')
            for row in rows:
                id_, nyu40 = row['id'] or '', row['nyu40id'] or '0'
                if not (id_.isdecimal() and nyu40.isdecimal() and int(id_) < len(table) and int(nyu40) <= MAX_NYU40_ID):
                    raise UserError(
                        f'{path}: line {rows.line_num} has id {id_!r} and nyu40id {nyu40!r}; expected an id below '
                        f'{len(table)} and a class from 0 to {MAX_NYU40_ID}, give {LABEL_TABLE} as downloaded')
                table[int(id_)] = int(nyu40)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror or error}; give {LABEL_TABLE} with --label-map') from None
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f'{path}: not a table in UTF-8 ({error}); give {LABEL_TABLE} as downloaded') from None
    table[0] = 0
    return table


def combine_maps(instance_map: np.ndarray, label_map: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return the instance map that scannet_frames_25k has for a frame, and raw ids that the table does not have.

    Args:
        instance_map: (H, W), uint8; 0 is no instance.
        label_map: (H, W), integers below 65536: raw ids.
        table: What :func:`read_label_table` returns.

    Returns:
        tuple: (H, W), uint16. ``id * 1000 + instance`` for things, where ``id`` is the class of NYU40 that most pixels
        of the instance have; the plain id for walls and floors, also where they have no instance; 0 elsewhere. And the
        ids that are not in the table, which count as void.
    """
    # As in find_segments, runs of equal pixels are much fewer than pixels.
    instances, labels = instance_map.ravel(), label_map.ravel()
    is_start = (instances[1:] != instances[:-1]) | (labels[1:] != labels[:-1])
    starts = np.append(0, np.flatnonzero(is_start) + 1)
    lengths = np.diff(starts, append=len(labels))
    instances, labels = instances[starts], labels[starts]
    classes = table[labels]
    unknown = np.unique(labels[classes == UNKNOWN_ID]).tolist()

    # Never 1000 * raw id, which overflows 16 bits.
    pairs = classes.astype(np.int64) * _INSTANCES + instances
    counts = np.bincount(pairs, lengths, (UNKNOWN_ID + 1) * _INSTANCES).reshape(-1, _INSTANCES)
    counts[0] += counts[UNKNOWN_ID]

    class_of = counts[:UNKNOWN_ID].argmax(0)
    things = np.where(class_of == 0, 0, class_of * 1000 + np.arange(_INSTANCES))
    values = np.empty_like(counts, np.uint16)
    values[:] = np.where(np.isin(class_of, STUFF_IDS), class_of, things)
    values[:, 0] = 0
    values[STUFF_IDS, 0] = STUFF_IDS
    return np.repeat(values.ravel()[pairs], lengths).reshape(label_map.shape), unknown


def read_raw_scene(scene: RawScene, options: ReadOptions, table: np.ndarray | None, color_dir: Path) -> list[Frame]:
    """Read the frames of a raw scene in order, and copy the usable colour images out of its .sens file.

    Args:
        scene: The scene.
        options: What to keep.
        table: What :func:`read_label_table` returns; ``None`` without labels.
        color_dir: Where the images of a .sens file go. Those that are already there stay as they are.

    Returns:
        list[Frame]: One per name, including those that cannot be used. What follows the end of a file that was cut off
        is one problem, of its first frame.
    """
    images = list_images(scene.folder, 'color') if scene.sens is None else {}
    stream = scene.sens.color_frames(scene.every) if scene.sens else None
    maps = [_Maps(path) for path in scene.maps or ()]
    frames = []
    for index, name in enumerate(scene.frame_names):
        number = _number(name)
        color, data = images.get(name, scene.folder / 'color' / f'{name}.jpg'), None
        frame = Frame(f'{scene.folder.name}/color/{color.name}')
        frames.append(frame)
        try:
            if stream:
                color = Path(f'{scene.sens.path}, frame {number}')
                data = next(stream)[1]
            if any(map_.is_lost(number) for map_ in maps):
                continue  # listed once, below
            size = read_color_size(color, data)
            if maps:
                instance_map = _combined(frame, *(map_.get(number) for map_ in maps), size, table)
                add_segments(frame, instance_map, find_segments(instance_map), options)
            if data is not None:
                _copy(color_dir / f'{name}.jpg', data)
            frame.size = size
        except BadFrame as error:
            frame.problems.append(error.problem)
        except SensError as error:
            lost = len(scene.frame_names) - index
            frame.problems.append(Problem('cut-sens', str(scene.sens.path), (
                f'{error}: {lost} of {len(scene.frame_names)} frames to convert are left out; download it again')))
        except StopIteration:
            continue  # after the end, which is listed
    for map_ in maps:
        frames[0].problems += map_.problems(scene.frame_names)
    return frames


class _Maps:
    """The label or instance maps of a scene by number of frame, in a folder or a zip archive."""

    def __init__(self, source: Path):
        self.source, self.whole = source, True
        items: list[Path] | list[Member]
        if source.is_dir():
            items = list(source.iterdir())
        else:
            items, self.whole = list_members(source)
        names = ((os.path.splitext(os.path.basename(item.name)), item) for item in items)
        self.items = {_number(stem): item for (stem, suffix), item in names if suffix.lower() == '.png'}

    def get(self, number: int) -> Path | Member:
        """Return the map of a frame."""
        if number not in self.items:
            raise BadFrame('no-png', f'{self.source}, {number}.png', 'missing; download or extract it again')
        return self.items[number]

    def is_lost(self, number: int) -> bool:
        """Return whether the map of a frame is missing because the archive was cut off."""
        return not self.whole and number not in self.items

    def problems(self, frame_names: list[str]) -> Iterator[Problem]:
        """Yield one problem if the archive was cut off."""
        if not self.whole:
            lost = sum(_number(name) not in self.items for name in frame_names)
            yield Problem('cut-zip' if self.items else 'bad-zip', str(self.source), (
                f'{"cut off" if self.items else "not a zip archive"}: {lost} of {len(frame_names)} frames to convert '
                f'have no map in it and are left out; download it again'))


def _combined(
    frame: Frame, instance: Path | Member, label: Path | Member, size: tuple[int, int], table: np.ndarray
) -> np.ndarray:
    """Read both maps of a frame and combine them."""
    instance_map, scaled = read_png(instance, size)
    if instance_map.dtype != np.uint8 or instance_map.ndim != 2:
        raise BadFrame('not-8-bit', instance, 'not an 8-bit instance map as in the raw download; download it again')
    label_map, label_scaled = read_png(label, size)
    if label_map.dtype == np.uint8 or label_map.ndim != 2:
        raise BadFrame('not-16-bit', label, (
            'not a 16-bit label map with raw ScanNet ids as in the raw download; download it again'))
    if scaled or label_scaled:
        frame.notes.append(SCALED_NOTE)
    combined, unknown = combine_maps(instance_map, label_map, table)
    if unknown:
        frame.problems.append(Problem('unknown-id', str(label), (
            f'ids {unknown[:5]} are not in {LABEL_TABLE} and are left out; give the table of this release')))
    return combined


def _copy(path: Path, data: bytes) -> None:
    """Write an image unless it is already there; the converter waits for the disk once, for all images."""
    try:
        if path.read_bytes() == data:
            return
    except FileNotFoundError:
        pass
    write_bytes(path, data, flush=False)


def _number(name: str) -> int | None:
    """Return the number in the name of a frame: 100, 000100 or frame-000100.color."""
    found = re.fullmatch(r'(?:frame-)?([0-9]{1,9})(?:\.color)?', name)
    return int(found[1]) if found else None
