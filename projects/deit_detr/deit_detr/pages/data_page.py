"""A page about annotation files, to inspect before training: pictures, distributions, odd boxes."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils
from tqdm import tqdm

from deit_detr.datasets.coco_file import read_annotations
from deit_detr.errors import UserError
from deit_detr.files import replacing
from deit_detr.images import DEEP, ImageFileError, decoding, open_image, pixel_problem, upright, upright_size
from deit_detr.pages.html import class_colour, gallery_image, percent, write_page

TINY, THIN, WHOLE, TWICE_IOU = 4, 20, 0.95, 0.95
#: What can be odd about an image and about a box, with explanations; the index into both is a kind of the gallery.
IMAGE_ODDITIES = {
    'no box': 'the image has no annotation',
    'no picture': 'the file is missing or not an image',
    'other size': 'width and height of the file differ from those in the annotations',
    'depth': f'floating-point numbers, or {DEEP}',
}
BOX_ODDITIES = {
    'empty': 'width or height is 0 or negative',
    'tiny': f'width or height below {TINY} pixels',
    'thin': f'one side {THIN} times the other, or more',
    'outside': 'reaches out of the image',
    'whole image': f'covers {WHOLE:.0%} of the image, and its category is not marked as stuff (walls, floors)',
    'area 0': 'the field "area" is 0 or less: left out of training',
    'ignore': 'marked "ignore": left out of training',
    'twice': f'overlaps another box of its class (IoU {TWICE_IOU} or more)',
}
ODDITIES = {**IMAGE_ODDITIES, **BOX_ODDITIES}
_KIND = {name: kind for kind, name in enumerate(ODDITIES)}

#: Bins of the histograms: the lower edge and the name of each; the last has no upper edge.
SIDES = (*((low, f'{low} to {2 * low or 4} px') for low in (0, 4, 8, 16, 32, 64, 128, 256)), (512, '512 px or more'))
ASPECTS = (
    (0, '8 times taller, or more'), (1 / 8, '4 to 8 times taller'), (1 / 4, '2 to 4 times taller'),
    (1 / 2, '1.25 to 2 times taller'), (1 / 1.25, 'about square'), (1.25, '1.25 to 2 times wider'),
    (2, '2 to 4 times wider'), (4, '4 to 8 times wider'), (8, '8 times wider, or more'))
NUMBERS = (
    (0, '0'), (1, '1'), (2, '2'), (3, '3 to 4'), (5, '5 to 8'), (9, '9 to 16'), (17, '17 to 32'), (33, '33 or more'))

#: Pictures of a contact sheet: rows, columns, and the width and height of each in pixels.
SHEET = (8, 6, 240, 180)


@dataclass
class Split:
    """One annotation file with its images.

    Attributes:
        name: Name in the page.
        img_dir: Folder of the images.
        classes: Class names by category id, in the order of the file.
        images: COCO entries of the images.
        boxes: COCO entries of the boxes, by image id.
        image_kinds: Indices into :data:`ODDITIES` by image id.
        box_kinds: Indices into :data:`ODDITIES` by annotation id.
    """

    name: str
    img_dir: Path
    classes: dict[int, str]
    images: list[dict]
    boxes: dict[int, list[dict]]
    image_kinds: dict[int, list[int]]
    box_kinds: dict[int, list[int]]

    def kinds_of(self, image: dict) -> set[int]:
        """Return all oddities of an image and its boxes."""
        return set(self.image_kinds[image['id']]).union(*(self.box_kinds[box['id']] for box in self.boxes[image['id']]))

    def count(self, kind: int) -> int:
        """Return the number of images or boxes with an oddity."""
        return sum(kind in kinds for kinds in [*self.image_kinds.values(), *self.box_kinds.values()])

    def scenes(self) -> set[str]:
        """Return the first folders of the file names, which are the scenes of ScanNet."""
        return {image['file_name'].split('/')[0] for image in self.images if '/' in image['file_name']}


def make_data_page(
    ann_files: Sequence[Path], out: Path, img_dirs: Sequence[Path] = (), max_images: int = 100,
    sheet: Path | None = None,
) -> str:
    """Write the page that shows the splits of a data set and their oddities.

    Args:
        ann_files: COCO detection files, for instance of training and validation data.
        out: The HTML file.
        img_dirs: Folder of the images of each file. Default: the folder beside the file that is named after the split,
            such as ``val/`` for ``scannet_objdet_val.json`` or ``val.json``.
        max_images: Pictures in the page. If there are more images, up to half of the pictures show oddities.
        sheet: File for a contact sheet (JPEG or PNG) of up to 48 of these pictures.

    Returns:
        str: The oddities, for the terminal.

    Raises:
        UserError: If a file cannot be read or is not a COCO detection file.
    """
    if img_dirs and len(img_dirs) != len(ann_files):
        raise UserError(f'--img-dir: {len(img_dirs)} folders for {len(ann_files)} annotation files')
    splits = [read_split(ann_file, img_dirs[index] if img_dirs else find_images(ann_file))
              for index, ann_file in enumerate(ann_files)]
    if len({split.name for split in splits}) < len(splits):
        for index, split in enumerate(splits, start=1):
            split.name = f'{index}: {split.name}'
    classes = list(dict.fromkeys(name for split in splits for name in split.classes.values()))
    counts = {name: [split.count(kind) for split in splits] for kind, name in enumerate(ODDITIES)}
    chosen = choose_images(splits, max_images)
    boxes = [[box for boxes in split.boxes.values() for box in boxes] for split in splits]
    sides = [np.array([box['bbox'][2:] for box in rows if min(box['bbox'][2:]) > 0], float).reshape(-1, 2)
             for rows in boxes]
    write_page(
        out, 'data.html', title=' and '.join(split.name for split in splits), names=[split.name for split in splits],
        facts=_facts(splits), oddities=ODDITIES, counts=counts, gallery=_gallery(splits, chosen, classes),
        classes=[(*_bar(name, [sum(split.classes[box['category_id']] == name for box in rows)
                               for split, rows in zip(splits, boxes, strict=True)], list(map(len, boxes))),
                  {'class': index}) for index, name in enumerate(classes)],
        sides=_histogram(SIDES, [np.sqrt(rows[:, 0] * rows[:, 1]) for rows in sides]),
        aspects=_histogram(ASPECTS, [rows[:, 0] / rows[:, 1] for rows in sides]),
        numbers=_histogram(NUMBERS, [np.array([len(split.boxes[image['id']]) for image in split.images])
                                     for split in splits]))
    if sheet:
        _write_sheet(sheet, chosen, classes)
    odd = [f'{name}: {" + ".join(map(str, number))}' for name, number in counts.items() if any(number)]
    return '; '.join(odd) or 'nothing odd'


def find_images(ann_file: Path) -> Path:
    """Return the folder of the images, if it is beside the annotation file and both are named after the split."""
    for name in (ann_file.stem, ann_file.stem.rsplit('_', 1)[-1]):
        if (ann_file.parent / name).is_dir():
            return ann_file.parent / name
    raise UserError(f'{ann_file}: no folder {ann_file.stem.rsplit("_", 1)[-1]} beside it; name the folder of '
                    'the images with --img-dir')


def read_split(ann_file: Path, img_dir: Path) -> Split:
    """Read an annotation file and check each of its boxes and the header of each image.

    Raises:
        UserError: If the file does not exist, or training would refuse it.
    """
    content = read_annotations(ann_file, ann_file)
    boxes = {image['id']: [] for image in content['images']}
    for box in content.get('annotations', []):
        boxes[box['image_id']].append(box)
    stuff = {row['id'] for row in content['categories'] if row.get('supercategory') == 'stuff'}
    split = Split(ann_file.stem.rsplit('_', 1)[-1], img_dir, {row['id']: row['name'] for row in content['categories']},
                  content['images'], boxes, {}, {})
    for image in tqdm(split.images, split.name, unit='image'):
        split.image_kinds[image['id']] = [_KIND[name] for name in _image_oddities(image, boxes[image['id']], img_dir)]
        for box, names in zip(boxes[image['id']], _box_oddities(image, boxes[image['id']], stuff), strict=True):
            split.box_kinds[box['id']] = [_KIND[name] for name in names]
    return split


def _image_oddities(image: dict, boxes: list[dict], img_dir: Path) -> list[str]:
    names = [] if boxes else ['no box']
    try:
        with open_image(img_dir / image['file_name'], any_depth=True) as file:
            if pixel_problem(file):
                names.append('depth')
            if upright_size(file) != (image['width'], image['height']):
                names.append('other size')
    except (OSError, ImageFileError):
        names.append('no picture')
    return names


def _box_oddities(image: dict, boxes: list[dict], stuff: set[int]) -> list[list[str]]:
    """Return the names of :data:`BOX_ODDITIES` for each box of an image."""
    corners = np.array([box['bbox'] for box in boxes], float).reshape(-1, 4)
    twice = mask_utils.iou(corners, corners, [0] * len(boxes)) >= TWICE_IOU if len(boxes) else np.zeros((0, 0), bool)
    found = []
    for index, box in enumerate(boxes):
        left, top, width, height = box['bbox']
        others = [other for other in np.flatnonzero(twice[index])
                  if other != index and boxes[other]['category_id'] == box['category_id']]
        inside = (max(0, min(left + width, image['width']) - max(left, 0))
                  * max(0, min(top + height, image['height']) - max(top, 0)))
        tests = {
            'empty': min(width, height) <= 0,
            'tiny': 0 < min(width, height) < TINY,
            'thin': min(width, height) > 0 and max(width, height) >= THIN * min(width, height),
            # half a pixel can come from rounding
            'outside': min(left, top) < -0.5 or left + width > image['width'] + 0.5
                       or top + height > image['height'] + 0.5,
            'whole image': inside >= WHOLE * image['width'] * image['height'] and box['category_id'] not in stuff,
            'area 0': box['area'] <= 0,
            'ignore': bool(box.get('ignore')),
            'twice': bool(others),
        }
        found.append([name for name, odd in tests.items() if odd])
    return found


def choose_images(splits: Sequence[Split], max_images: int) -> list[tuple[Split, dict]]:
    """Choose all images, or, if there are more than ``max_images``, some for each oddity and others at equal distances.

    Returns:
        list: Pairs of a split and a COCO entry, in the order of the data.
    """
    everything = [(split, image) for split in splits for image in split.images]
    if len(everything) <= max_images:
        return everything
    kinds = [split.kinds_of(image) for split, image in everything]
    chosen = set()
    for kind in range(len(ODDITIES)):
        chosen.update([index for index, own in enumerate(kinds) if kind in own][:max_images // (2 * len(ODDITIES))])
    rest = [index for index in range(len(everything)) if index not in chosen]
    chosen.update(rest[step] for step in np.linspace(0, len(rest) - 1, max_images - len(chosen)).astype(int))
    return [everything[index] for index in sorted(chosen)]


def _facts(splits: Sequence[Split]) -> list[tuple[str, list[str]]]:
    """Return the rows of the first table: a name, and a value for each split."""
    names = 'Images', 'Boxes', 'Boxes per image', 'Image sizes', 'Classes without a box', 'Scenes'
    rows = {name: [] for name in names}
    for split in splits:
        numbers = [len(split.boxes[image['id']]) for image in split.images]
        sizes = Counter(f'{image["width"]}x{image["height"]}' for image in split.images).most_common(4)
        seen = {box['category_id'] for boxes in split.boxes.values() for box in boxes}
        rows['Images'].append(str(len(numbers)))
        rows['Boxes'].append(str(sum(numbers)))
        rows['Boxes per image'].append(f'{sum(numbers) / max(1, len(numbers)):.1f}, at most {max(numbers, default=0)}')
        rows['Image sizes'].append(', '.join(f'{size} ({count})' for size, count in sizes))
        rows['Classes without a box'].append(
            ', '.join(name for id_, name in split.classes.items() if id_ not in seen) or 'none')
        rows['Scenes'].append(str(len(split.scenes())))
    if len(splits) > 1:
        scenes = [split.scenes() for split in splits]
        shared = sorted(set.union(*(a & b for index, a in enumerate(scenes) for b in scenes[:index])))
        text = ', '.join(shared[:10]) + (f' and {len(shared) - 10} more' if len(shared) > 10 else '')
        rows['Scenes in more than one'] = [text or 'none', *[''] * (len(splits) - 1)]
    return list(rows.items())


def _bar(label: str, counts: list[int], totals: list[int]) -> tuple[str, list[float], list[str]]:
    """Return a row of ``parts.bars``, whose lengths are shares of each split, so that splits of any size compare."""
    shares = [count / max(1, total) for count, total in zip(counts, totals, strict=True)]
    return label, shares, [f'{count} ({percent(share)} %)' for count, share in zip(counts, shares, strict=True)]


def _histogram(bins: Sequence[tuple[float, str]], values: list[np.ndarray]) -> list[tuple]:
    """Return rows of ``parts.bars``: a bin, and the number of values of each split in it."""
    edges = [low for low, _ in bins] + [math.inf]
    counts = [np.histogram(rows, edges)[0].tolist() for rows in values]
    return [(*_bar(name, [rows[index] for rows in counts], list(map(len, values))), None)
            for index, (_, name) in enumerate(bins)]


def _gallery(splits: Sequence[Split], chosen: list[tuple[Split, dict]], classes: list[str]) -> dict:
    """Return the pictures with their boxes, as ``page.js`` reads them."""
    images = []
    for split, image in tqdm(chosen, 'pictures', unit='image'):
        boxes = [dict(label=classes.index(split.classes[box['category_id']]), box=box['bbox'],
                      kinds=split.box_kinds[box['id']], seen=[]) for box in split.boxes[image['id']]]
        images.append(gallery_image(image, split.img_dir / image['file_name'], boxes,
                                    kinds=[len(ODDITIES) + splits.index(split), *split.image_kinds[image['id']]]))
    return dict(
        classes=[dict(name=name, colour=class_colour(name, index)) for index, name in enumerate(classes)],
        kinds=[*ODDITIES, *(split.name for split in splits)], missed=-1, runs=[], panes=['annotation'], scores=[],
        images=images, total=sum(len(split.images) for split in splits))


def _write_sheet(path: Path, chosen: list[tuple[Split, dict]], classes: list[str]) -> None:
    """Write a grid of pictures with boxes in the colours of their classes."""
    rows, columns, width, height = SHEET
    picked = [chosen[step] for step in np.linspace(0, len(chosen) - 1, min(rows * columns, len(chosen))).astype(int)]
    sheet = Image.new('RGB', (columns * width, math.ceil(len(picked) / columns) * height), 'grey')
    for place, (split, image) in enumerate(picked):
        try:
            with decoding(), open_image(split.img_dir / image['file_name']) as file:
                tile = upright(file).convert('RGB').resize((width, height))
        except (OSError, ImageFileError):
            tile = Image.new('RGB', (width, height))
        draw = ImageDraw.Draw(tile)
        scale = np.array([width / image['width'], height / image['height']])
        for box in split.boxes[image['id']]:
            left, top, *sides = box['bbox']
            first, second = np.array([left, top]) * scale, (np.array([left, top]) + sides) * scale - 1
            if (second > first).all():
                name = split.classes[box['category_id']]
                draw.rectangle([*first, *second], outline=class_colour(name, classes.index(name)), width=2)
        sheet.paste(tile, (place % columns * width, place // columns * height))
    try:
        with replacing(path) as part:
            sheet.save(part)
    except ValueError as error:
        raise UserError(f'{path}: cannot be written ({error})') from None
