"""COCO-format data sets whose annotation files are checked before anything is numbered by them."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmdet.visualization.palette import get_palette
from mmengine.fileio import exists
from mmengine.logging import print_log

from deit_detr.errors import UserError


def is_number(value: object) -> bool:
    """Whether a value from a JSON file is a number that one can calculate with; ``true``, NaN and 1e300 are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2 ** 53


def _is_side(value: object) -> bool:
    return _is_id(value) and 0 < value < 2 ** 31


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_relative(value: object) -> bool:
    """Whether it is the path of a file below the images' folder, on any system."""
    return isinstance(value, str) and '\0' not in value and PurePosixPath(value).name != '' and all(
        not path.anchor and '..' not in path.parts for path in (PurePosixPath(value), PureWindowsPath(value)))


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


#: What mmdet and pycocotools read of the entries of each list: a test, and what passes it.
FIELDS: dict[str, dict[str, tuple[Callable[[object], bool], str]]] = dict(
    categories=dict(id=(_is_id, 'a whole number'), name=(_is_text, 'a text')),
    images=dict(
        id=(_is_id, 'a whole number'), file_name=(_is_relative, 'a path relative to the folder of the images'),
        width=(_is_side, 'a whole number above 0'), height=(_is_side, 'a whole number above 0')),
    annotations=dict(
        id=(_is_id, 'a whole number'), image_id=(_is_id, 'a whole number'), category_id=(_is_id, 'a whole number'),
        bbox=(_is_box, 'four numbers, [left, top, width, height]'), area=(is_number, 'a number'),
        iscrowd=(lambda value: value in (0, 1), '0 or 1')))


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset`` that refuses a file which it would read wrongly without a word.

    ``CocoDataset`` leaves out classes that it does not find in the annotation file and numbers the others in the
    file's order: a misspelt name or another order shifts the labels. It leaves out boxes of unknown categories and
    images, and pycocotools takes the annotation id 0 for "no match".

    Args:
        metainfo (dict, optional): ``classes`` has the names of all categories of the file, in the file's order.
            Default: COCO's 80.

    Raises:
        UserError: If the annotation file or its first image is missing, if the file is not as above, or if none of
            its boxes can be used.
    """

    #: How to repair a missing file, or one with other categories.
    HINT = 'set data_root, ann_file and metainfo.classes of the train, val and test data to what you have'

    @classmethod
    def _load_metainfo(cls, metainfo: dict | None = None) -> dict:
        metainfo = super()._load_metainfo(metainfo)
        classes = metainfo['classes']
        if isinstance(classes, str):
            raise UserError(f"metainfo.classes is the text '{classes}'; one class needs a comma: ('{classes}',)")
        if len(metainfo['palette']) < len(classes):
            metainfo['palette'] = [tuple(map(int, colour)) for colour in get_palette('random', len(classes))]
        return metainfo

    def COCOAPI(self, ann_file: str) -> COCO:  # noqa: N802 - CocoDataset opens its annotation file by this name
        """Open an annotation file and check it before anything is numbered by it."""
        content = read_annotations(Path(ann_file), self.ann_file)
        self.check_categories(content['categories'])
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs  # as COCO(ann_file) sets them
        return coco

    def check_categories(self, categories: list[dict]) -> None:
        """Compare the file's categories, whose order is that of the labels, with the classes of the config."""
        self._check_same([category['name'] for category in categories], list(self.metainfo['classes']))

    def _check_same(self, found: list, expected: list) -> None:
        if found != expected:
            missing = [item for item in expected if item not in found]
            extra = [item for item in found if item not in expected]
            what = f'missing {missing}, unexpected {extra}' if missing or extra else f'other order: {found}'
            raise UserError(
                f'{self.ann_file}: field "categories" differs from the {len(expected)} classes of the config '
                f'({what}); {self.HINT}')

    def load_data_list(self) -> list[dict]:
        """Load the annotation file.

        Returns:
            list[dict]: One entry an image, as ``CocoDataset`` gives it.
        """
        if not exists(self.ann_file, backend_args=self.backend_args):
            raise UserError(f'{self.ann_file}: no such annotation file; {self.HINT}')
        data_list = super().load_data_list()
        if data_list and not exists(data_list[0]['img_path'], backend_args=self.backend_args):
            raise UserError(
                f'{data_list[0]["img_path"]}: no such image. Its path is data_root and data_prefix.img of the config '
                f'and the field "file_name" of {self.ann_file}')
        self._check_boxes(data_list)
        return data_list

    def _check_boxes(self, data_list: list[dict]) -> None:
        total = sum(map(len, self.cat_img_map.values()))
        usable = beyond = 0
        for info in data_list:
            usable += len(info['instances'])
            for instance in info['instances']:
                _, _, right, bottom = instance['bbox']
                beyond += right > info['width'] + 1 or bottom > info['height'] + 1
        unit = 'field "bbox" is [left, top, width, height] in pixels'
        if total and not usable:
            raise UserError(f'{self.ann_file}: none of {total} boxes lies in its image and is a pixel wide; {unit}')
        if usable < total:
            print_log(f'{self.ann_file}: {total - usable} of {total} boxes left out (outside of the image, thinner '
                      'than a pixel, or marked "ignore")', logger='current')
        if beyond:
            print_log(f'{self.ann_file}: {beyond} of {total} boxes reach beyond their image; {unit}',
                      logger='current', level=logging.WARNING)

    def filter_data(self) -> list[dict]:
        """Leave out what ``filter_cfg`` asks for in training, and say how many images that is."""
        kept = super().filter_data()
        if not kept:
            raise UserError(
                f'{self.ann_file}: none of its {len(self.data_list)} images can be used: there are none, or they have '
                'no box or are smaller than filter_cfg.min_size')
        dropped = len(self.data_list) - len(kept)
        if dropped:
            print_log(
                f'{self.ann_file}: {dropped} of {len(self.data_list)} images left out of training '
                f'(no box, or smaller than {self.filter_cfg.get("min_size", 0)} px)',
                logger='current')
        return kept


def read_annotations(path: Path, name: str | Path) -> dict:
    """Read a COCO detection file that nothing has to be read into.

    Args:
        path: The file.
        name: What messages call it.

    Returns:
        dict: Its content, in which :func:`find_problems` finds nothing.

    Raises:
        UserError: If there is no such file, it is no JSON file, or has problems.
    """
    if not path.is_file():
        raise UserError(f'{name}: no such annotation file')
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f'{name}: not a JSON file ({error})') from None
    problems = find_problems(content)
    if problems:
        raise UserError(f'{name}: {"; ".join(problems)}')
    return content


def find_problems(content: object) -> list[str]:
    """Look for what makes a COCO detection file unreadable, or readable in more than one way.

    Args:
        content: The parsed file. ``annotations`` may be missing, as in files for inference.

    Returns:
        list[str]: A sentence for each kind of problem, which names the field.
    """
    if not isinstance(content, dict) or not {'images', 'categories'} <= set(content):
        return ['not a COCO detection file: fields "images" and "categories" are needed']
    tables = {name: content.get(name, []) for name in FIELDS}
    for name, table in tables.items():
        if not isinstance(table, list) or not all(isinstance(row, dict) for row in table):
            return [f'field "{name}" has to be a list of objects']
    problems = [
        f'field "{field}" is missing in {sum(field not in row for row in table)} of {len(table)} {name}'
        for name, table in tables.items() for field in FIELDS[name] if any(field not in row for row in table)]
    problems = problems or [
        f'field "{field}" of {name} has to be {words}; these are not: {_some([row[field] for row in wrong])} '
        f'(the first has the id {_some([wrong[0]["id"]])})'
        for name, table in tables.items() for field, (fits, words) in FIELDS[name].items()
        if (wrong := [row for row in table if not fits(row[field])])]
    if problems:
        return problems

    ids = {name: [row['id'] for row in table] for name, table in tables.items()}
    for name, values in ids.items():
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            problems.append(f'ids of {name} have to differ; these do not: {_some(twice)}')
    if 0 in ids['annotations']:
        problems.append('ids of annotations have to count from 1: pycocotools takes 0 for "no match"')
    for field, name in (('category_id', 'categories'), ('image_id', 'images')):
        unknown = {row[field] for row in tables['annotations']} - set(ids[name])
        if unknown:
            problems.append(f'field "{field}" of the annotations has {_some(unknown)}, which {name} has not: '
                            f'ids there are {_some(ids[name])}')
    return problems


def _some(values: list | set) -> str:
    """The first few of the values, for a message."""
    values = sorted(values, key=str) if isinstance(values, set) else values
    shown = [text if len(text) <= 60 else f'{text[:57]}...' for text in map(ascii, values[:5])]
    return ', '.join(shown) + (', ...' if len(values) > 5 else '')
