"""Check annotation files and images, and that training and validation data do not overlap."""

import hashlib
import random
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from os.path import join
from pathlib import Path

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmengine.fileio import get

from deit_detr.datasets import coco_file
from deit_detr.datasets.wrappers import unwrap
from deit_detr.engine.start.depth import find_deep_images
from deit_detr.engine.start.findings import FAIL, OK, UNKNOWN, WARN, Finding, run_check
from deit_detr.errors import UserError

SAMPLE = 64  # images of each split that are decoded
MOST_HASHED = 4000  # files; a few seconds
#: A larger share of odd boxes is a mistake of units or order, not noise.
MOST_ODD = 0.05
BEYOND = 'more than a pixel beyond the image'
#: ScanNet's names: scene0000_01 is the second scan of room scene0000.
ROOM = re.compile(r'(?:^|/)(scene\d{4})_\d{2}/')


class AnnotationFile:
    """The file behind a COCO-format data set, as it is on disk.

    Args:
        dataset (CocoDataset): The data set.
    """

    def __init__(self, dataset: CocoDataset) -> None:
        self.path = dataset.ann_file
        self.dataset = dataset

    @cached_property
    def content(self) -> dict:
        """The parsed file."""
        return coco_file.parse_annotations(get(self.path, backend_args=self.dataset.backend_args), self.path)

    @property
    def names(self) -> list[str]:
        """``file_name`` of each image."""
        return [image['file_name'] for image in self.content['images']]

    @property
    def image_paths(self) -> list[str]:
        """Path of each image."""
        return [join(self.dataset.data_prefix['img'], name) for name in self.names]

    @cached_property
    def sizes(self) -> dict[str, int | None]:
        """Size of each image file in bytes; None if it is missing."""
        paths = self.image_paths
        with ThreadPoolExecutor(16) as pool:  # file servers are slow, but answer many requests at a time
            return dict(zip(paths, pool.map(_size, paths), strict=True))


def check_data(datasets: dict[str, object]) -> list[Finding]:
    """Check annotations, boxes, images and the overlap of the splits.

    Args:
        datasets: Split, ``'train'`` and optionally ``'val'`` -> data set.

    Returns:
        list[Finding]: Three for each split, and one for both together.
    """
    findings = []
    files = {}
    for split, dataset in datasets.items():
        found = [AnnotationFile(leaf) for _, leaf in unwrap(dataset) if isinstance(leaf, CocoDataset)]
        if not found:
            findings.append(Finding(f'{split} data', UNKNOWN, f'{type(dataset).__name__} is not a COCO data set'))
            continue
        files[split] = found
        findings += [
            run_check(f'{split} {part}', check, found) for part, check in dict(
                annotations=_check_annotations, boxes=_check_boxes, images=_check_images).items()]
    if {'train', 'val'} <= set(files):
        findings.append(run_check('train/val overlap', _check_overlap, files['train'], files['val']))
    return findings


def _check_annotations(files: list[AnnotationFile]) -> tuple[str, str]:
    problems = [f'{file.path}: {problem}' for file in files for problem in coco_file.find_problems(file.content)]
    if problems:
        return FAIL, '; '.join(problems)
    for file in files:
        if not len(file.dataset):
            return FAIL, f'{file.path}: no image is left; check filter_cfg and the fields "images" and "annotations"'
    images = sum(len(file.content['images']) for file in files)
    boxes = sum(len(file.content.get('annotations', [])) for file in files)
    return OK, f'{images:,} images, {boxes:,} boxes, {len(files[0].content["categories"])} categories'


def _check_boxes(files: list[AnnotationFile]) -> tuple[str, str]:
    total, odd, before = 0, {}, 0
    for file in files:
        content = file.content
        annotations = content.get('annotations', [])
        total += len(annotations)
        if not annotations:
            continue
        try:
            boxes = np.array([row['bbox'] for row in annotations], dtype=float).reshape(len(annotations), 4)
        except (TypeError, ValueError):
            return FAIL, f'{file.path}: field "bbox" has to be [left, top, width, height], four numbers in pixels'
        sides = {image['id']: (image['width'], image['height']) for image in content['images']}
        sides = np.array([sides[row['image_id']] for row in annotations], dtype=float)
        ends = boxes[:, :2] + boxes[:, 2:]
        kinds = {
            coco_file.NO_AREA: np.array([row['area'] <= 0 for row in annotations]),
            coco_file.MARKED: np.array([bool(row.get('ignore')) for row in annotations]),
            'not finite': ~np.isfinite(boxes).all(1),
            coco_file.THIN: (boxes[:, 2:] < 1).any(1),
            coco_file.OUTSIDE: ((ends <= 0) | (boxes[:, :2] >= sides)).any(1),
            BEYOND: ((boxes[:, :2] < -1) | (ends > sides + 1)).any(1),
        }
        before += np.count_nonzero((boxes[:, :2] < -1).any(1))
        keys = [(row['image_id'], row['category_id'], *row['bbox']) for row in annotations]
        kinds['duplicated'] = _repeated(keys)
        for kind, mask in kinds.items():
            odd.setdefault(kind, []).extend(annotations[index]['id'] for index in np.flatnonzero(mask))
    odd = {kind: ids for kind, ids in odd.items() if ids}
    if not odd:
        return OK, f'all {total:,} lie in their images, none is empty or duplicated'
    shown = '; '.join(f'{len(ids)} {kind} (annotation {ids[0]})' for kind, ids in odd.items())
    # Marks are deliberate. So are boxes of whole objects: with a mistake of units or order, none begins below 0.
    meant = {coco_file.MARKED, BEYOND} if before > 0.1 * len(odd.get(BEYOND, ())) else {coco_file.MARKED}
    many = {kind for kind, ids in odd.items() if len(ids) > MOST_ODD * total} - meant
    fixes = dict.fromkeys(coco_file.FIXES.get(kind, coco_file.BOX_FORMAT) for kind in odd)
    if BEYOND in odd and BEYOND not in many:
        fixes['training clips boxes to their images, the evaluation does not'] = None
    return (FAIL if 'not finite' in odd or many else WARN,
            f'of {total:,} boxes of {files[0].path} {shown}; {"; ".join(fixes)}')


def _repeated(keys: list[tuple]) -> np.ndarray:
    seen = set()
    return np.array([key in seen or seen.add(key) is not None for key in keys])


def _check_images(files: list[AnnotationFile]) -> tuple[str, str]:
    """Check that all local images exist, and that a sample decodes and has the annotated size."""
    for file in files:
        if _is_local(file):
            missing = [path for path, size in file.sizes.items() if not size]
            if missing:
                return FAIL, f'{len(missing)} of {len(file.sizes)} images missing or empty, e.g. {missing[0]}; the ' \
                             f'path is data_root, data_prefix.img and the field "file_name" of {file.path}'
    problems, checked = [], 0
    for file in files:
        transforms = getattr(file.dataset.pipeline, 'transforms', [])
        reader = next((step for step in transforms if isinstance(step, LoadImageFromFile)), LoadImageFromFile())
        if deep := find_deep_images(file.dataset, SAMPLE):
            return FAIL, deep
        for index in sample(len(file.dataset), SAMPLE):
            info = file.dataset.get_data_info(index)
            checked += 1
            try:
                image = reader(dict(img_path=info['img_path']))['img']
            except Exception as error:  # any decoder may be configured
                image = None
                problems.append(f'{info["img_path"]} cannot be decoded ({type(error).__name__})')
            if image is not None and image.shape[:2] != (info['height'], info['width']):
                problems.append(
                    f'{info["img_path"]} has {image.shape[1]}x{image.shape[0]} pixels, its annotation says '
                    f'{info["width"]}x{info["height"]}')
    if problems:
        return FAIL, f'{len(problems)} of a sample of {checked}: ' + '; '.join(problems[:3]) + \
            '; convert again, or repair the images'
    return OK, f'a sample of {checked} decodes and has the annotated size'


def _check_overlap(train: list[AnnotationFile], val: list[AnnotationFile]) -> tuple[str, str]:
    same = {file.path for file in train} & {file.path for file in val}
    if same:
        return WARN, f'{same.pop()} is used for training and validation: AP will be measured on training images'
    rooms = [{found[1] for file in files for name in file.names if (found := ROOM.search(name))}
             for files in (train, val)]
    shared = sorted(rooms[0] & rooms[1])
    if shared:
        return FAIL, f'{len(shared)} rooms are in both, e.g. {shared[0]}: split by room, as data/splits does'
    if not all(map(_is_local, (*train, *val))):
        return UNKNOWN, 'no room is in both; images are not on a local file system and were not compared'
    pairs, partly = _equal_files(train, val)
    if pairs:
        return FAIL, f'{len(pairs)} images are in both, e.g. {pairs[0][0]} and {pairs[0][1]}: remove them from one'
    return OK, 'no room and no image file is in both' + (f' (compared: {MOST_HASHED} files)' if partly else '')


def _equal_files(train: list[AnnotationFile], val: list[AnnotationFile]) -> tuple[list[tuple[str, str]], bool]:
    """Return pairs of equal files, and whether only a sample was compared. Only files of equal size are read."""
    sizes = [{path: size for file in files for path, size in file.sizes.items() if size} for files in (train, val)]
    common = set(sizes[0].values()) & set(sizes[1].values())
    candidates = [[path for path, size in of_split.items() if size in common] for of_split in sizes]
    partly = sum(map(len, candidates)) > MOST_HASHED
    digests = []
    for paths in candidates:
        chosen = [paths[index] for index in sample(len(paths), MOST_HASHED // 2)] if partly else paths
        with ThreadPoolExecutor(4) as pool:
            digests.append(dict(zip(pool.map(_digest, chosen), chosen, strict=True)))
    return [(digests[0][key], digests[1][key]) for key in digests[0].keys() & digests[1].keys()], partly


def sample(number: int, most: int) -> list[int]:
    """Return at most ``most`` indices below ``number``, always the same."""
    return sorted(random.Random(0).sample(range(number), min(number, most)))


def _is_local(file: AnnotationFile) -> bool:
    return not file.dataset.backend_args and '://' not in str(file.dataset.data_prefix.get('img', ''))


def _size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except OSError:
        return None


def _digest(path: str) -> bytes:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()


def largest_image(dataset, number: int = 16) -> tuple[int, int]:
    """Return the largest height and the largest width, in pixels, of a few images after the training pipeline.

    Args:
        dataset: The training data.
        number: Images to load.

    Raises:
        UserError: If the pipeline fails.
    """
    shapes = []
    for index in sample(len(dataset), number):
        try:
            item = dataset[index]
        except Exception as error:  # any transform may be configured
            raise UserError(
                f'the training pipeline fails on image {index}: {type(error).__name__}: {error}') from error
        shapes.append(item['inputs'].shape[-2:])
    height, width = np.max(shapes, axis=0)
    return int(height), int(width)
