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
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f'{name}: not a JSON file ({error})') from None
    problems = find_problems(content)
    if problems:
        raise UserError(f'{name}: {"; ".join(problems)}')
    return content


def find_problems(content: object) -> list[str]:
    """Find what makes a COCO detection file unreadable or ambiguous.

    Args:
        content: The parsed file. ``annotations`` may be missing, as in files for inference.

    Returns:
        list[str]: A sentence for each kind of problem, with the name of the field.
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
        problems.append('ids of annotations must not be 0: pycocotools interprets 0 as "no match"')
    for field, name in (('category_id', 'categories'), ('image_id', 'images')):
        unknown = {row[field] for row in tables['annotations']} - set(ids[name])
        if unknown:
            problems.append(f'field "{field}" of the annotations has {_some(unknown)}, which is not in {name}: '
                            f'ids there are {_some(ids[name])}')
    return problems


def _some(values: list | set) -> str:
    """Return the first few values as text for a message."""
    values = sorted(values, key=str) if isinstance(values, set) else values
    shown = [text if len(text) <= 60 else f'{text[:57]}...' for text in map(ascii, values[:5])]
    return ', '.join(shown) + (', ...' if len(values) > 5 else '')
