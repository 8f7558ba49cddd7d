"""Convert a labelled folder to checked COCO files and a config."""

import hashlib
import io
import json
import math
import os
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags

from deit_detr.datasets.coco_file import find_problems, why_unused
from deit_detr.datasets.formats.json_files import read_coco, read_hugging_face, read_label_studio, read_labelme
from deit_detr.datasets.formats.labels import SPLITS, Box, Folder, Labels, Picture
from deit_detr.datasets.formats.xml_files import read_cvat, read_voc
from deit_detr.datasets.formats.yolo import read_yolo
from deit_detr.errors import UserError, printable
from deit_detr.files import replacing
from deit_detr.images import ImageFileError, decoding, open_image, upright_size
from deit_detr.workers import in_processes

READERS = dict(
    coco=read_coco, yolo=read_yolo, voc=read_voc, cvat=read_cvat, labelme=read_labelme,
    labelstudio=read_label_studio, huggingface=read_hugging_face)
KNOWN = ('YOLO with data.yaml, Pascal VOC, CVAT for images, Label Studio (JSON), labelme, COCO, or Hugging Face with '
         'metadata.jsonl')
#: The first line of a config, by which a folder of results is known.
MARK = '# Written by tools/prepare_data.py'
#: Where a point of a photograph lies after rotation by its EXIF orientation: of x, y, width and height as stored.
UPRIGHT = {
    5: lambda x, y, w, h: (y, x), 6: lambda x, y, w, h: (h - y, x),
    7: lambda x, y, w, h: (h - y, w - x), 8: lambda x, y, w, h: (y, w - x)}


@dataclass
class Prepared:
    """Results of :func:`prepare`.

    Attributes:
        config: The config.
        ann_files: The COCO files of train, val and, if there is one, test.
        img_dirs: The folder of the images of each.
        summary: What was found, converted and left out, for the terminal.
    """

    config: Path
    ann_files: list[Path]
    img_dirs: list[Path]
    summary: str


def read_labels(folder: Folder, kind: str | None = None) -> Labels:
    """Read a folder in the format that it has.

    Args:
        folder: The folder.
        kind: A key of :data:`READERS`, if the folder holds several formats.

    Raises:
        UserError: If the folder has none of the formats, or several, or labels an image twice.
    """
    found = {name: labels for name, read in READERS.items()
             if kind in (None, name) and (labels := read(folder)) is not None and (labels.pictures or labels.left_out)}
    found = {name: labels for name, labels in found.items() if labels.pictures} or found
    if len(found) > 1:
        kinds = ' and '.join(labels.kind for labels in found.values())
        raise UserError(f'{folder.root}: holds {kinds}; choose one with --format {" or ".join(found)}')
    if not found:
        raise UserError(_why_unknown(folder, kind))
    labels = next(iter(found.values()))
    twice = [path for path, count in Counter(picture.path for picture in labels.pictures).items() if count > 1]
    if twice:
        raise UserError(f'{folder.root}: {folder.name(twice[0])} is labelled twice in {labels.kind}, as are '
                        f'{len(twice) - 1} other images: keep one of the label files, or make names of images unique')
    return labels


def _why_unknown(folder: Folder, kind: str | None) -> str:
    """Return a sentence about a folder that cannot be read."""
    kinds = Counter(path.suffix.lower() or 'no ending' for path in folder.files)
    held = ', '.join(f'{count} {suffix}' for suffix, count in kinds.most_common(4))
    hint = ''
    if folder.unreadable:
        hint = f'; {folder.unreadable[0]} cannot be read'
    elif kinds.keys() & {'.zip', '.tar', '.gz', '.tgz', '.7z', '.rar'}:
        hint = '; unpack the archives first'
    elif kinds.keys() & {'.yaml', '.yml'} or any(path.name in ('classes.txt', 'obj.names') for path in folder.files):
        hint = ('; YOLO needs a label file for an image: a text file of its name, beside it or in labels/ in place of '
                'images/, and classes in data.yaml')
    elif any(path.parts[-2:-1] in (('label',), ('instance',)) for path in folder.images):
        hint = '; for ScanNet use tools/dataset_converters/scannet2coco.py'
    elif kinds.keys() & {'.parquet', '.tfrecord', '.arrow', '.mat', '.h5', '.hdf5'}:
        hint = '; images and labels have to be single files: export it to COCO or to an imagefolder'
    elif kinds and len(folder.images) == len(folder.files):
        hint = '; there are images only, and no labels'
    wanted = f'--format {kind}' if kind else KNOWN
    return f'{folder.root}: not {wanted}: it holds {held or "no files"}{hint}'


@dataclass
class Measured:
    """An image file: width and height as stored, after rotation, and its EXIF orientation; or why it is unusable."""

    stored: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    problem: str = ''


def measure(path: Path) -> Measured:
    """Read the header of an image, and check that the end of a JPEG is there."""
    try:
        str(path).encode()  # COCO files are UTF-8
        with path.open('rb') as file, open_image(path) as image, decoding():
            if image.format == 'JPEG':
                file.seek(-min(file.seek(0, io.SEEK_END), 4096), io.SEEK_END)
                if b'\xff\xd9' not in file.read():
                    return Measured(problem='images that are truncated')
            elif image.format == 'PNG':
                with open_image(path) as again:
                    again.verify()
            return Measured(image.size, upright_size(image), image.getexif().get(ExifTags.Base.Orientation, 1))
    except UnicodeEncodeError:
        return Measured(problem='images whose name is not UTF-8')
    except (OSError, ImageFileError) as error:
        reason = str(error) if isinstance(error, ImageFileError) else error.strerror
        return Measured(problem=f'images that cannot be read ({reason})')


def prepare(
    root: Path, out_dir: Path, recipe: Path, kind: str | None = None, val_share: float = 0.2,
    workers: int | None = None,
) -> Prepared:
    """Convert a labelled folder, and write a config that trains on it. Writes all files or none.

    Args:
        root: The folder. Images stay where they are.
        out_dir: Folder of the results: ``train.json``, ``val.json``, perhaps ``test.json``, and ``NAME.py``.
        recipe: The config that the new one inherits.
        kind: A key of :data:`READERS`. Default: what the folder is.
        val_share: The share of images for validation, if the folder does not say which those are.
        workers: Number of processes. Default: one per core.

    Raises:
        UserError: If the folder cannot be read, nothing usable is in it, or ``out_dir`` holds something else.
    """
    root, config = Path(os.path.abspath(root)), out_dir / f'{out_dir.absolute().name}.py'
    if os.path.realpath(root) == os.path.realpath(out_dir):
        raise UserError(f'{out_dir}: --out-dir has to be another folder than that of the images')
    if out_dir.is_dir() and any(out_dir.iterdir()) and not (
            config.is_file() and config.read_text(errors='replace').startswith(MARK)):
        raise UserError(f'{out_dir}: holds other files; choose a new folder for --out-dir')
    if not recipe.is_file():
        raise UserError(f'{recipe}: no such recipe')
    try:
        folder = Folder(root, skip=out_dir)
        labels = read_labels(folder, kind)
    except OSError as error:  # no permission, for instance
        raise UserError(f'{error.filename or root}: cannot be read ({error.strerror})') from None
    labels.left_out['folders that cannot be read'] += folder.unreadable
    labels.left_out['images that no label file names'] += map(
        folder.name, sorted(set(folder.images) - {picture.path for picture in labels.pictures}))
    pictures = _measure_all(folder, labels, workers)
    names = {box.label for picture, _ in pictures for box in picture.boxes}
    unlisted = sorted(names - set(labels.classes), key=lambda name: (not name.isdigit(), name.zfill(9), name))
    if labels.classes and unlisted:
        labels.notes.append(f'classes of boxes that are not listed come last: {", ".join(unlisted)}')
    labels.list_classes(unlisted)
    splits = split_pictures(pictures, val_share, labels)
    contents = {split: _to_coco(folder, rows, labels) for split, rows in splits.items()}
    for split, content in contents.items():
        if split != 'test' and not content['annotations']:
            raise UserError(f'{root}: no box for {split} can be used in {labels.kind}. {_left_out(labels)}')
        if problems := find_problems(content):  # a mistake of this module: say it rather than write it
            raise UserError(f'{root}: {split}: {"; ".join(problems)}')
    img_dirs = {split: Path(os.path.commonpath([picture.path.parent for picture, _ in rows]))
                for split, rows in splits.items()}
    ann_files = {split: out_dir / f'{split}.json' for split in contents}
    with ExitStack() as stack:  # written in parts, and moved to their places at its end
        part = stack.enter_context(replacing(config))
        part.write_text(config_text(out_dir, recipe, labels.classes, img_dirs), encoding='utf-8')
        for split, content in contents.items():
            for row in content['images']:
                row['file_name'] = (root / row['file_name']).relative_to(img_dirs[split]).as_posix()
            part = stack.enter_context(replacing(ann_files[split]))
            part.write_text(json.dumps(content) + '\n', encoding='utf-8')
    summary = _summary(root, labels, contents, ann_files)
    return Prepared(config, list(ann_files.values()), list(img_dirs.values()), summary)


def _measure_all(folder: Folder, labels: Labels, workers: int | None) -> list[tuple[Picture, Measured]]:
    """Return the usable pictures in the order of their names, their boxes in pixels of the upright image."""
    pictures = sorted(labels.pictures, key=lambda picture: folder.name(picture.path))
    paths = [picture.path for picture in pictures]
    usable, turned = [], 0
    for picture, found in zip(pictures, in_processes(measure, paths, workers, 'images', 'image'), strict=True):
        how = UPRIGHT.get(found.orientation)
        if found.problem:
            labels.left_out[found.problem].append(folder.name(picture.path))
        elif picture.size in (None, found.size):
            scale = found.size if picture.relative else (1, 1)
            for box in picture.boxes:
                box.points = [(x * scale[0], y * scale[1]) for x, y in box.points]
            usable.append((picture, found))
        elif picture.size == found.stored and how:
            turned += 1
            for box in picture.boxes:
                box.points = [how(x, y, *found.stored) for x, y in box.points]
            usable.append((picture, found))
        else:
            labels.left_out['images of another size than labelled'].append(folder.name(picture.path))
    if turned:
        labels.notes.append(f'{turned} photographs were labelled before rotation by their EXIF orientation: their '
                            'boxes are rotated with them')
    return usable


def split_pictures(
    pictures: list[tuple[Picture, Measured]], val_share: float, labels: Labels,
) -> dict[str, list[tuple[Picture, Measured]]]:
    """Return the pictures of train, val and test; without one of the first two, divide all but test by content.

    Equal files come to the same side, and a new file changes the side of no other.

    Raises:
        UserError: If there are fewer than two images.
    """
    splits = {split: [row for row in pictures if row[0].split == split] for split in SPLITS}
    rest = [row for row in pictures if row[0].split == '']
    if splits['train'] and splits['val']:
        if rest:
            labels.left_out['images outside of train and val'] += [row[0].path.name for row in rest]
    else:
        rest += splits['train'] + splits['val']
        if len(rest) < 2:
            raise UserError(f'usable images in {labels.kind}: {len(rest)}; at least one for training and one for '
                            f'validation are needed. {_left_out(labels)}'.rstrip())
        by_hash = defaultdict(list)
        for row in rest:
            digest = hashlib.blake2b(row[0].path.read_bytes(), digest_size=8).digest()
            by_hash[int.from_bytes(digest, 'big')].append(row)
        hashes = sorted(by_hash)
        number = sum(value < val_share * 2 ** 64 for value in hashes)
        number = min(max(number, 1), len(hashes) - 1)
        splits['val'] = [row for value in hashes[:number] for row in by_hash[value]]
        splits['train'] = [row for value in hashes[number:] for row in by_hash[value]]
        labels.notes.append(f'the folder has no split into train and val: {len(splits["val"])} of {len(rest)} images, '
                            'chosen by their content, are for validation')
    return {split: sorted(rows, key=lambda row: row[0].path) for split, rows in splits.items() if rows}


def _to_coco(folder: Folder, rows: list[tuple[Picture, Measured]], labels: Labels) -> dict:
    """Return a COCO file. Boxes that mmdet would leave out are left out here, and counted."""
    numbers = {name: number for number, name in enumerate(labels.classes, 1)}
    categories = [dict(id=number, name=name) for name, number in numbers.items()]
    content = dict(images=[], annotations=[], categories=categories)
    for number, (picture, found) in enumerate(rows, 1):
        name = folder.name(picture.path)
        image = dict(id=number, file_name=name, width=found.size[0], height=found.size[1])
        content['images'].append(image)
        for box in picture.boxes:
            with labels.leaving_out('malformed boxes', name):
                row = dict(_annotation(box), id=len(content['annotations']) + 1, image_id=number,
                           category_id=numbers[box.label])
                if reason := why_unused(row, image):
                    labels.left_out[f'boxes {reason}'].append(name)
                else:
                    content['annotations'].append(row)
    return content


def _annotation(box: Box) -> dict:
    """Return bbox, area and iscrowd of a box, to a thousandth of a pixel.

    Raises:
        ValueError: If it has no points, or one is not finite.
    """
    (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*box.points, strict=True))
    if not math.isfinite(left + top + right + bottom) or max(map(abs, (left, top, right, bottom))) > 1e9:
        raise ValueError('not finite')
    sides = [round(value, 3) for value in (left, top, right - left, bottom - top)]
    return dict(bbox=sides, area=round(box.area or sides[2] * sides[3], 3), iscrowd=int(box.crowd))


def config_text(out_dir: Path, recipe: Path, classes: list[str], img_dirs: dict[str, Path]) -> str:
    """Return the config of five lines, as in "Your own data" of docs/data.md.

    Args:
        out_dir: Folder of the COCO files.
        recipe: The config that it inherits.
        classes: The classes, in the order of the files.
        img_dirs: Folders of the images of train and val.
    """
    def quoted(value: object) -> str:
        return repr(value).replace('{{', '{\\x7b')  # mmengine would replace {{ }} by variables

    root, val_file = quoted(f'{out_dir.as_posix()}/'), quoted(f'{out_dir.as_posix()}/val.json')
    train, val = (quoted(f'{img_dirs[split].as_posix()}/') for split in ('train', 'val'))
    base = os.path.relpath(recipe, os.path.realpath(out_dir))
    return f'''{MARK}; docs/data.md, "Your own data"
_base_ = {quoted(Path(base).as_posix())}
dataset = dict(type='CheckedCocoDataset', data_root={root}, metainfo=dict(classes={quoted(tuple(classes))}))
model = dict(bbox_head=dict(num_classes={len(classes)}))
train_dataloader = dict(dataset=dict(**dataset, ann_file='train.json', data_prefix=dict(img={train})))
val_dataloader = test_dataloader = dict(dataset=dict(**dataset, ann_file='val.json', data_prefix=dict(img={val})))
val_evaluator = test_evaluator = dict(ann_file={val_file})
'''


def _left_out(labels: Labels) -> str:
    """Return what is left out, by reason, with the first example of each."""
    rows = [f'{reason}: {len(what)}, e.g. {printable(what[0])[:100]}'
            for reason, what in labels.left_out.items() if what]
    return f'Left out: {"; ".join(rows)}' if rows else ''


def _summary(root: Path, labels: Labels, contents: dict[str, dict], ann_files: dict[str, Path]) -> str:
    shown = ', '.join(labels.classes[:12]) + (', ...' if len(labels.classes) > 12 else '')
    lines = [f'{root}: {labels.kind}, {len(labels.classes)} classes: {printable(shown)}']
    for split, content in contents.items():
        empty = len(content['images']) - len({row['image_id'] for row in content['annotations']})
        lines.append(f'{split}: {len(content["images"])} images, {empty} of them without boxes, '
                     f'{len(content["annotations"])} boxes -> {ann_files[split]}')
    if left_out := _left_out(labels):
        lines.append(left_out)
    return '\n'.join([*lines, *(f'note: {printable(note)}' for note in labels.notes)])
