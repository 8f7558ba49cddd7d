"""Convert scannet_frames_25k, or scenes of the raw ScanNetV2 download, to COCO detection files, one per split.

The semantics are those of ScanNet's ``convert2panoptic.py``: every distinct value of an instance map is one object with
a tight box; its class is the value if that is below 1000, otherwise ``value // 1000``. Unlike there, file names point
to the colour images, ids are integers, boxes are in pixels of the image, and all cores work.

Ids do not depend on the number of workers. An image id is the rank of the frame among all frames of its split (by scene
name, then frame number): a frame that cannot be used leaves a gap, and its repair changes no other image id. Annotation
ids count from 1 (to pycocotools, 0 means "no match") in the order of image id and value in the instance map.
"""

import contextlib
import json
import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from deit_detr.errors import UserError, printable
from deit_detr.files import replacing, write_text
from deit_detr.scannet.classes import STUFF_IDS, scannet_metainfo
from deit_detr.scannet.frames import Frame, Problem, ReadOptions, list_images, read_scene
from deit_detr.scannet.raw import (
    BENCHMARK_EVERY,
    RawScene,
    find_label_table,
    find_raw_scene,
    read_label_table,
    read_raw_scene,
)
from deit_detr.workers import in_processes

#: Folders of the official downloads; the given root may hold them, of which the first counts.
ARCHIVE_FOLDERS = dict(train=('scannet_frames_25k', 'scans'), val=('scannet_frames_25k', 'scans'),
                       test=('scannet_frames_test', 'scans_test'))


@dataclass
class Scene:
    """A folder of frames. ``frame_names`` are sorted by number and have neither folder nor suffix."""

    folder: Path
    frame_names: list[str]


@dataclass
class Summary:
    """Results of the conversion of one split; as a string, what the command line prints.

    Attributes:
        split: 'train', 'val' or 'test'.
        json_path: The COCO file.
        report_path: List of the problems, one per line; written only if there are any.
        num_split_scenes: Number of scenes in the official split.
        scenes: Scenes of the split that were found.
        num_frames: Number of images in the COCO file.
        num_empty: Number of images without a box.
        num_small: Number of segments dropped for their area.
        boxes: Number of boxes per class name, in label order.
        notes: Harmless peculiarities, and the number of frames that have them.
        problems: Everything that was left out.
    """

    split: str
    json_path: Path
    report_path: Path
    num_split_scenes: int
    scenes: list[Scene | RawScene]
    num_frames: int = 0
    num_empty: int = 0
    num_small: int = 0
    boxes: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    def __str__(self) -> str:
        boxes = ', '.join(f'{name} {count}' for name, count in self.boxes.items())
        lines = [
            f'{self.split}: {self.num_frames} frames from {len(self.scenes)} of the {self.num_split_scenes} '
            f'scenes of the split -> {self.json_path}',
            f'  {self.boxes.total()} boxes; {self.num_empty} frames without boxes; '
            f'{self.num_small} segments below the minimum area left out',
            textwrap.indent(textwrap.fill(boxes, 100), '  ')]
        lines += [f'  note: {text} ({count} frames)' for text, count in self.notes.items()]
        if self.problems:
            kinds = Counter(problem.kind for problem in self.problems)
            counts = ', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))
            lines.append(f'  {len(self.problems)} problems ({counts}), listed in {self.report_path}')
        else:
            lines.append('  no problems')
        return '\n'.join(lines)


def convert(
    root: str | Path, out_dir: str | Path, splits_dir: str | Path, splits: Sequence[str] = ('train', 'val'),
    num_classes: int = 20, min_area: int | None = None, workers: int | None = None, link: bool = True,
    with_mask: bool = False, strict: bool = False, every: int | None = None, label_map: str | Path | None = None,
) -> list[Summary]:
    """Write ``scannet_objdet_{split}.json`` into a folder and link the scenes below ``{split}/`` there.

    Colour images in .sens files are copied to ``{split}/SCENE/color/NNNNNN.jpg`` instead, as they are. A COCO file
    appears, or replaces an older one, only when it is complete. The test split has no labels: its file has images and
    no annotations. A summary of each split is printed.

    Args:
        root: The folder with ``sceneXXXX_YY`` folders, or the one above it. Each scene has the layout of
            scannet_frames_25k or of the raw download.
        out_dir: Folder of the results; created if missing.
        splits_dir: Folder with ``scannetv2_{train,val,test}.txt``, one scene per line.
        splits: Any of 'train', 'val', 'test'.
        num_classes: 20, or 18 for the protocol without wall and floor.
        min_area: Segments with fewer pixels are dropped. Default: 0 with 20 classes, 1000 with 18.
        workers: Number of processes. Default: one per core.
        link: Link the scenes. A link is relative if the scenes lie below the folder that holds ``out_dir`` (both will
            be moved together), otherwise absolute (``out_dir`` may be moved, the data set stays).
        with_mask: Add segmentations as COCO's run-length encoding.
        strict: Stop at the first problem instead of listing it.
        every: Take only frames whose number is a multiple. Default: 100 of raw scans, all of scannet_frames_25k.
        label_map: scannetv2-labels.combined.tsv, for raw scans. Default: in ``root``, the folder above it, or
            ``tasks/`` there.

    Returns:
        list[Summary]: One per split, in the given order.

    Raises:
        UserError: If nothing can be converted, the output cannot be written or, with ``strict``, there is a problem.
    """
    root, out_dir = Path(root), Path(out_dir)
    metainfo = scannet_metainfo(num_classes)
    if min_area is None:
        min_area = 0 if num_classes == 20 else 1000
    try:
        # Check all arguments and folders before the first of the long conversions.
        summaries = _find_scenes(root, out_dir, read_splits(Path(splits_dir)), splits, every)
        labelled_raw = any(isinstance(scene, RawScene) and scene.maps for s in summaries for scene in s.scenes)
        table = read_label_table(Path(label_map or find_label_table(root))) if labelled_raw else None
        for summary in summaries:
            _check_copies(summary, out_dir)
        links = {summary.split: _plan_links(summary, out_dir) for summary in summaries} if link else {}
        out_dir.mkdir(parents=True, exist_ok=True)
        for summary in summaries:
            labelled = summary.split != 'test'
            options = ReadOptions(frozenset(metainfo['category_ids']), min_area, with_mask, labelled)
            read = partial(_read_scene, options=options, table=table, folder=out_dir / summary.split)
            _convert_split(summary, metainfo, options, read, workers, strict)
            for path, target in links.get(summary.split, {}).items():
                _make_link(path, target)
            print(summary)
    except OSError as error:
        raise UserError(f'{error.filename or out_dir}: {error.strerror or error}') from error
    return summaries


def read_splits(splits_dir: Path) -> dict[str, list[str]]:
    """Return the scene names of the official train, val and test splits.

    Raises:
        UserError: If a list is missing or not text.
    """
    splits = {}
    for split in ('train', 'val', 'test'):
        path = splits_dir / f'scannetv2_{split}.txt'
        if not path.is_file():
            raise UserError(f'{path}: no such scene list; --splits-dir must hold those of data/splits')
        try:
            splits[split] = path.read_text(encoding='utf-8').split()
        except UnicodeDecodeError:
            raise UserError(f'{path}: not text in UTF-8; --splits-dir must hold the lists of data/splits') from None
    return splits


def _find_scenes(
    root: Path, out_dir: Path, scene_lists: dict[str, list[str]], splits: Sequence[str], every: int | None
) -> list[Summary]:
    """Return a summary per split that has its scenes and frames; refuse a root that cannot be converted."""
    if not root.is_dir():
        raise UserError(
            f'{root}: no such folder; give the unpacked scannet_frames_25k or the raw scans (see data/README.md)')
    known = {name for names in scene_lists.values() for name in names}
    summaries = []
    for split in dict.fromkeys(splits):
        folder = next((root / name for name in ARCHIVE_FOLDERS[split] if (root / name).is_dir()), root)
        names = set(scene_lists[split])
        scenes, problems = [], []
        for scene_dir in sorted(folder.iterdir()):
            if scene_dir.name in names and scene_dir.is_dir():
                scene = find_raw_scene(scene_dir, every or BENCHMARK_EVERY, labelled=split != 'test')
                if isinstance(scene, Problem):
                    problems.append(scene)
                    continue
                scene = scene or Scene(scene_dir, _list_frames(scene_dir, every))
                scenes.append(scene)
                if not scene.frame_names:
                    problems.append(Problem('no-frames', str(scene_dir), 'has no frames; extract it again'))
            elif scene_dir.name not in known and (scene_dir / 'color').is_dir():
                text = 'the scene is in no split and left out; rename it, or add it to a list in --splits-dir'
                problems.append(Problem('in-no-split', str(scene_dir), text))
        if not scenes and any(problem.kind != 'in-no-split' for problem in problems):
            raise UserError(f'no usable scene of the {split} split, {len(problems)} problems. The first: {problems[0]}')
        if not scenes:
            raise UserError(
                f'{folder}: no scene of the {split} split in it; give the folder that holds '
                f'sceneXXXX_YY/color, or leave {split} out with --split')
        if not any(scene.frame_names for scene in scenes):
            raise UserError(
                f'{scenes[0].folder}: no frames in any scene of the {split} split; expected color/*.jpg (.jpeg, .png) '
                f'and instance/*.png, or the files of a raw scan (see docs/data.md#raw-scannetv2-scans); extract or '
                f'download it again')
        stem = f'scannet_objdet_{split}'
        paths = out_dir / f'{stem}.json', out_dir / f'{stem}_problems.txt'
        summaries.append(Summary(split, *paths, len(names), scenes, problems=problems))
    return summaries


def _list_frames(scene_dir: Path, every: int | None) -> list[str]:
    """Return the names of all frames, or some, that have a colour image or an instance map, sorted by number."""
    names = {*list_images(scene_dir, 'color'), *list_images(scene_dir, 'instance')}
    if every:
        names = {name for name in names if name.isdecimal() and int(name) % every == 0}
    return sorted(names, key=lambda name: (int(name) if name.isdecimal() else sys.maxsize, name))


def _convert_split(
    summary: Summary, metainfo: dict, options: ReadOptions, read: Callable[[Scene | RawScene], list[Frame]],
    workers: int | None, strict: bool,
) -> None:
    """Write the COCO file and the report of one split, and fill in its summary."""
    names = dict(zip(metainfo['category_ids'], metainfo['classes'], strict=True))
    summary.boxes = Counter(dict.fromkeys(metainfo['classes'], 0))
    raw = [scene for scene in summary.scenes if isinstance(scene, RawScene)]
    name = f'ScanNetV2, frames 0, {raw[0].every}, ...' if raw else 'ScanNet-frames-25k'
    info = dict(description=f'{name}, object detection, {summary.split} split', version='1.0',
                protocol=f'{len(names)} classes, minimum area {options.min_area} px')
    categories = [dict(id=id_, name=name, supercategory='stuff' if id_ in STUFF_IDS else 'thing')
                  for id_, name in names.items()]
    if strict and summary.problems:
        raise UserError(f'{summary.problems[0]} (--strict)')

    frames = _read_frames(summary, read, workers)
    with contextlib.closing(frames), replacing(summary.json_path) as part, part.open('w', encoding='utf-8') as file:
        # Annotations are written at once: as Python objects, those of 25k frames fill hundreds of MB.
        file.write(json.dumps(dict(info=info, categories=categories))[:-1] + ',\n"annotations": [')
        images, annotation_id = [], 0
        for image_id, frame in enumerate(frames, start=1):
            if strict and frame.problems:
                raise UserError(f'{frame.problems[0]} (--strict)')
            summary.problems += frame.problems
            summary.notes.update(frame.notes)
            if frame.size is None:
                continue
            width, height = frame.size
            images.append(json.dumps(dict(id=image_id, file_name=frame.file_name, width=width, height=height)))
            summary.num_empty += not frame.segments
            summary.num_small += frame.num_small
            for segment in frame.segments:
                annotation = dict(id=annotation_id + 1, image_id=image_id, category_id=segment.category_id,
                                  bbox=segment.bbox, area=segment.area, iscrowd=0)
                if segment.rle:
                    annotation['segmentation'] = segment.rle
                file.write((',\n' if annotation_id else '\n') + json.dumps(annotation))
                annotation_id += 1
                summary.boxes[names[segment.category_id]] += 1
        summary.num_frames = len(images)
        _write_report(summary)
        if not images:
            raise UserError(
                f'no usable frame in the {summary.split} split, {len(summary.problems)} problems are listed '
                f'in {summary.report_path}. The last one: {summary.problems[-1]}')
        if _copied(summary) and hasattr(os, 'sync'):
            os.sync()  # the copied images are on the disk before the file that names them
        file.write('\n],\n"images": [\n' + ',\n'.join(images) + '\n]}\n')


def _read_frames(
    summary: Summary, read: Callable[[Scene | RawScene], list[Frame]], workers: int | None
) -> Iterator[Frame]:
    """Yield the frames of all scenes in order, read by worker processes."""
    sizes = [len(scene.frame_names) for scene in summary.scenes]
    with contextlib.closing(in_processes(read, summary.scenes, workers, summary.split, 'frame', sizes)) as scenes:
        for frames in scenes:
            yield from frames


def _read_scene(
    scene: Scene | RawScene, options: ReadOptions, table: np.ndarray | None, folder: Path
) -> list[Frame]:
    if isinstance(scene, RawScene):
        return read_raw_scene(scene, options, table, folder / scene.folder.name / 'color')
    return read_scene(scene.folder, scene.frame_names, options)


def _write_report(summary: Summary) -> None:
    """Write the problems, one per line: kind, file, what to do. Remove the file if there are none."""
    if not summary.problems:
        summary.report_path.unlink(missing_ok=True)
        return
    write_text(summary.report_path, ''.join('\t'.join(map(printable, problem)) + '\n' for problem in summary.problems))


def _copied(summary: Summary) -> list[RawScene]:
    """Return the scenes whose colour images are copied out of a .sens file."""
    return [scene for scene in summary.scenes if isinstance(scene, RawScene) and scene.sens]


def _check_copies(summary: Summary, out_dir: Path) -> None:
    """Refuse to copy colour images among other files, and say how much room they take."""
    copied = _copied(summary)
    for scene in copied:
        folder = out_dir / summary.split / scene.folder.name
        strange = [path for path in (folder, folder / 'color') if path.is_symlink()]
        strange += [path for path in folder.glob('*') if path.name[0] != '.' and path.name != 'color']
        if strange or (folder.exists() and not folder.is_dir()):
            raise UserError(
                f'{[*strange, folder][0]}: in the way of the colour images of {scene.sens.path.name}, which go to '
                f'{folder}/color; move {folder.parent} away or give another --out-dir')
    if copied:
        place = next(path for path in (out_dir, *out_dir.absolute().parents) if path.is_dir())
        need, free = sum(scene.copied_bytes for scene in copied) / 1e6, shutil.disk_usage(place).free / 1e6
        print(f'{summary.split}: copies about {need:,.0f} MB of colour images out of {len(copied)} .sens files to '
              f'{out_dir / summary.split}, except those that are there already; {free:,.0f} MB are free')


def _plan_links(summary: Summary, out_dir: Path) -> dict[Path, Path]:
    """Return the links to make and their targets; refuse a folder that holds anything but links."""
    folder = out_dir / summary.split
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f'{folder}: must be a folder for the links; move it away or use --no-link')
    copied = {scene.folder.name for scene in _copied(summary)}
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.is_symlink() and path.name[0] != '.' and path.name not in copied:
            raise UserError(f'{path}: not a link to a scene; move {folder} away or use --no-link')
    links = {}
    for scene in summary.scenes:
        if scene.folder.name in copied:
            continue
        target = scene.folder.resolve()
        if target.is_relative_to(out_dir.resolve().parent):
            target = Path(os.path.relpath(target, folder.resolve()))
        links[folder / scene.folder.name] = target
    return links


def _make_link(path: Path, target: Path) -> None:
    """Make or replace a symbolic link; an existing one is never missing in between."""
    if path.is_symlink() and path.readlink() == target:
        return
    try:
        with replacing(path) as part:
            part.symlink_to(target, target_is_directory=True)
    except OSError as error:
        raise UserError(f'{path}: cannot make the link ({error.strerror}); use --no-link') from error
