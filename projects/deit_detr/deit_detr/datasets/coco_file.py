"""Reading and checking of COCO detection files, without torch and mmdet."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

from deit_detr.errors import UserError


def is_number(value: object) -> bool:
    """Return whether a value from a JSON file is a finite number below 1e15; ``true`` is not a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2 ** 53


def _is_side(value: object) -> bool:
    return _is_id(value) and 0 < value < 2 ** 31


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_relative(value: object) -> bool:
    """Return whether a value is the path of a file below the image folder, on any operating system."""
    return isinstance(value, str) and '\0' not in value and PurePosixPath(value).name != '' and all(
        not path.anchor and '..' not in path.parts for path in (PurePosixPath(value), PureWindowsPath(value)))


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


#: Fields of each list that mmdet and pycocotools read, with a test and a description of valid values.
FIELDS: dict[str, dict[str, tuple[Callable[[object], bool], str]]] = dict(
    categories=dict(id=(_is_id, 'a whole number'), name=(_is_text, 'a string')),
    images=dict(
        id=(_is_id, 'a whole number'), file_name=(_is_relative, 'a path relative to the folder of the images'),
        width=(_is_side, 'a whole number above 0'), height=(_is_side, 'a whole number above 0')),
    annotations=dict(
        id=(_is_id, 'a whole number'), image_id=(_is_id, 'a whole number'), category_id=(_is_id, 'a whole number'),
        bbox=(_is_box, 'four numbers, [left, top, width, height]'), area=(is_number, 'a number'),
        iscrowd=(lambda value: value in (0, 1), '0 or 1')))


#: Reasons of :func:`why_unused`, with the fix.
MARKED, NO_AREA, THIN, OUTSIDE = 'marked "ignore"', 'with "area" 0 or less', 'thinner than a pixel', 'outside the image'
BOX_FORMAT = 'field "bbox" is [left, top, width, height] in pixels'
FIXES = {
    MARKED: 'mmdet leaves out boxes with the field "ignore"',
    NO_AREA: 'mmdet leaves out boxes without area: set field "area" to width * height',
    THIN: BOX_FORMAT, OUTSIDE: BOX_FORMAT,
}


def read_annotations(path: Path, name: str | Path) -> dict:
    """Read a COCO detection file and check it.

    Args:
        path: The file.
        name: Its name in messages.

    Returns:
        dict: The content.

    Raises:
        UserError: If the file does not exist, is not a JSON file, or :func:`find_problems` finds problems.
    """
    if not path.is_file():
        raise UserError(f'{name}: no such annotation file')
    content = parse_annotations(path.read_bytes(), name)
    problems = find_problems(content)
    if problems:
        raise UserError(f'{name}: {"; ".join(problems)}')
    return content


def parse_annotations(data: bytes, name: str | Path) -> dict:
    """Return the content of an annotation file, UTF-8 (with a byte-order mark or without), UTF-16 or UTF-32.

    Args:
        data: The file.
        name: Its name in messages.

    Raises:
        UserError: If it is not a JSON file with an object.
    """
    try:
        content = json.loads(data)  # finds the encoding of bytes
    except (ValueError, RecursionError) as error:
        raise UserError(f'{name}: not a JSON file ({error})') from None
    if not isinstance(content, dict):
        raise UserError(f'{name}: not a COCO file: it holds a {type(content).__name__}, not an object')
    return content


def find_problems(content: dict) -> list[str]:
    """Find what makes a COCO detection file unreadable or ambiguous.

    Args:
        content: The parsed file. ``annotations`` may be missing, as in files for inference.

    Returns:
        list[str]: A sentence for each kind of problem, with the name of the field.
    """
    if not {'images', 'categories'} <= set(content):
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
    names = Counter(row['name'] for row in tables['categories'])
    if twice := [name for name, count in names.items() if count > 1]:
        of_twice = {row['id'] for row in tables['categories'] if row['name'] in twice}
        problems.append(f'names of categories have to differ; {_some(twice)} occurs twice (ids {_some(of_twice)}): '
                        'rename or merge these categories')
    if 0 in ids['annotations']:
        problems.append('ids of annotations must not be 0: pycocotools interprets 0 as "no match"')
    for field, name in (('category_id', 'categories'), ('image_id', 'images')):
        unknown = {row[field] for row in tables['annotations']} - set(ids[name])
        if unknown:
            problems.append(f'field "{field}" of the annotations has {_some(unknown)}, which is not in {name}: '
                            f'ids there are {_some(ids[name])}')
    return problems


def why_unused(annotation: dict, image: dict) -> str:
    """Return why mmdet leaves a box out of training and out of the ground truth of a data set; '' if it does not."""
    left, top, width, height = annotation['bbox']
    right, bottom = min(left + width, image['width']), min(top + height, image['height'])
    tests = {
        MARKED: annotation.get('ignore'),
        THIN: width < 1 or height < 1,
        OUTSIDE: right <= max(left, 0) or bottom <= max(top, 0),
        NO_AREA: annotation['area'] <= 0,
    }
    return next((reason for reason, applies in tests.items() if applies), '')


def reaches_beyond(annotation: dict, image: dict) -> bool:
    """Return whether a box reaches more than a pixel beyond its image."""
    left, top, width, height = annotation['bbox']
    return min(left, top) < -1 or left + width > image['width'] + 1 or top + height > image['height'] + 1


def _some(values: list | set) -> str:
    """Return the first few values as text for a message."""
    values = sorted(values, key=str) if isinstance(values, set) else values
    shown = [text if len(text) <= 60 else f'{text[:57]}...' for text in map(ascii, values[:5])]
    return ', '.join(shown) + (', ...' if len(values) > 5 else '')
