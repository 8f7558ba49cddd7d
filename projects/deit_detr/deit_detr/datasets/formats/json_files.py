"""JSON formats: COCO with its variants, labelme, Label Studio, and Hugging Face's metadata.jsonl."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from deit_detr.datasets.formats.labels import (
    MISSING,
    Box,
    Folder,
    Labels,
    Picture,
    class_names,
    ellipse,
    from_sides,
    read_text,
    read_yaml,
    rectangle,
    turned,
)


def _pick(folder: Folder, labels: Labels, wanted: type, *fields: str) -> dict[Path, dict | list]:
    """Return the JSON files of a type whose object, or whose first item, has some fields."""
    found = {}
    for path, content in folder.json_files().items():
        first = content[:1] if isinstance(content, list) else [content]
        if isinstance(content, wanted) and first and isinstance(first[0], dict) and {*fields} <= {*first[0]}:
            found[path] = content
    if found:
        labels.left_out['damaged label files'] += [
            folder.name(path) for path, content in folder.json_files().items() if content is None]
    return found


def read_coco(folder: Folder) -> Labels | None:
    """Read COCO detection files: plain, Roboflow's, or exported by another tool; None if there is none.

    Classes keep the order of the training file. Roboflow's first category, which is only the group of the others and
    has no box, is left out.
    """
    labels = Labels('COCO')
    files = _pick(folder, labels, dict, 'images', 'annotations', 'categories')
    if not files:
        return None
    if any(path.name.startswith('instances') for path in files):  # beside captions and keypoints of the same images
        files = {path: content for path, content in files.items() if path.name.startswith('instances')}
    if any(path.name == '_annotations.coco.json' for path in files):
        labels.kind = 'COCO (Roboflow)'
    order = ('train', '', 'val', 'test')
    zero = 0
    used = {row.get('category_id') for content in files.values() for row in _rows(content, 'annotations')
            if isinstance(row.get('category_id'), int)}
    for path in sorted(files, key=lambda path: order.index(folder.split_of(path))):
        split, content = folder.split_of(path), files[path]
        categories = [row for row in _rows(content, 'categories') if isinstance(row.get('id'), int) and row.get('name')]
        for row in categories:
            others = [other for other in categories if other is not row]
            if others and row['id'] not in used and all(other.get('supercategory') == row['name'] for other in others):
                labels.notes.append(f'{folder.name(path)}: the class "{row["name"]}" is the group of the others and '
                                    'has no box: left out')
                categories = others
                break
        names = {row['id']: str(row['name']) for row in categories}
        labels.list_classes(names.values())
        pictures = {}
        for row in _rows(content, 'images'):
            with labels.leaving_out('malformed images', f'{folder.name(path)}: {row.get("file_name")}'):
                image = folder.find(row['file_name'], path, split)
                if image is None:
                    labels.left_out[MISSING].append(row['file_name'])
                size = row.get('width'), row.get('height')
                pictures[row['id']] = image and Picture(
                    image, split or folder.split_of(image, folders_only=True), size=size if all(size) else None)
        for row in _rows(content, 'annotations'):
            what = f'{folder.name(path)}: annotation {row.get("id")}'
            with labels.leaving_out('malformed boxes', what):
                zero += row.get('id') == 0
                if row.get('category_id') not in names:
                    labels.left_out['boxes of a class number that is not listed'].append(what)
                elif row.get('image_id') not in pictures:
                    labels.left_out['boxes of an image that is not listed'].append(what)
                elif picture := pictures[row['image_id']]:
                    picture.boxes.append(_coco_box(row, names[row['category_id']]))
        labels.pictures += filter(None, pictures.values())
    if zero:
        labels.notes.append('an annotation has the id 0, which pycocotools takes for "no match": annotations are '
                            'numbered again, from 1')
    return labels


def _rows(content: dict, table: str) -> list[dict]:
    rows = content[table] if isinstance(content[table], list) else []
    return [row for row in rows if isinstance(row, dict)]


def _coco_box(row: dict, name: str) -> Box:
    crowd = bool(row.get('iscrowd'))
    if not row.get('bbox') and isinstance(row.get('segmentation'), list):
        points = [point for ring in row['segmentation'] for point in zip(ring[::2], ring[1::2], strict=True)]
    else:
        points = from_sides(*row['bbox'])
    area = row.get('area')
    return Box(name, points, float(area) if area and float(area) > 0 else None, crowd)


def read_labelme(folder: Folder) -> Labels | None:
    """Read labelme's files, one for each image; None if there is none."""
    labels = Labels('labelme')
    files = _pick(folder, labels, dict, 'shapes', 'imagePath')
    if not files:
        return None
    labels.list_classes(folder.class_list())
    for path, content in files.items():
        with labels.leaving_out('malformed label files', folder.name(path)):
            split = folder.split_of(path, folders_only=True)
            image = folder.find(content['imagePath'], path, split, loose=True)
            if image is None:
                labels.left_out[MISSING].append(f'{folder.name(path)}: {content["imagePath"]}')
                continue
            size = content.get('imageWidth'), content.get('imageHeight')
            picture = Picture(image, split, size=size if all(size) else None)
            labels.pictures.append(picture)
            for shape in content['shapes']:
                with labels.leaving_out('malformed boxes', folder.name(path)):
                    kind = shape.get('shape_type') or 'polygon'
                    points = [(float(x), float(y)) for x, y in shape['points']]
                    if kind == 'circle':
                        (x, y), (a, b) = points
                        radius = ((x - a) ** 2 + (y - b) ** 2) ** 0.5
                        points = ellipse(x, y, radius, radius)
                    if kind in ('rectangle', 'polygon', 'circle', 'mask', 'rotation', 'oriented_rectangle'):
                        picture.boxes.append(Box(str(shape['label']), points))
                    else:
                        labels.left_out[f'shapes without a box ({kind})'].append(folder.name(path))
    return labels


def read_label_studio(folder: Folder) -> Labels | None:
    """Read Label Studio's JSON and JSON-MIN exports; None if there is none.

    An export holds no images: they may lie anywhere in the folder, with or without the 8 digits that an upload puts
    before their names. Of several annotations of a task the first that was not cancelled counts.
    """
    labels = Labels('Label Studio')
    files = {**_pick(folder, labels, list, 'data', 'annotations'), **{
        path: content for path, content in _pick(folder, Labels(''), list).items()
        if any(_results(task) for task in content if isinstance(task, dict) and 'data' not in task)}}
    labels.list_classes(folder.class_list() if files else [])
    several = 0
    for path, tasks in files.items():
        split = folder.split_of(path)
        for task in tasks:
            with labels.leaving_out('malformed tasks', folder.name(path)):
                done = [row for row in task.get('annotations', []) if not row.get('was_cancelled')]
                if 'data' in task and not done:
                    labels.left_out['images without an annotation'].append(f'task {task.get("id")}')
                    continue
                several += len(done) > 1
                results = done[0]['result'] if done else _results(task)
                name, image = _label_studio_image(folder, task.get('data', task), path, split)
                if image is None:
                    labels.left_out[MISSING].append(name)
                    continue
                picture = Picture(image, split or folder.split_of(image, folders_only=True), relative=True)
                labels.pictures.append(picture)
                for result in results:
                    with labels.leaving_out('malformed boxes', name):
                        _add_result(labels, picture, result, name)
    if several:
        labels.notes.append(f'{several} tasks have several annotations: the first counts')
    return labels if files else None


def _results(task: dict) -> list[dict]:
    """Return the regions of a task in JSON-MIN."""
    return [row for value in task.values() if isinstance(value, list) for row in value
            if isinstance(row, dict) and {'original_width', 'original_height'} <= {*row}]


def _label_studio_image(folder: Folder, data: dict, path: Path, split: str) -> tuple[str, Path | None]:
    """Return the name of a task's image, and its file."""
    names = [value for value in data.values() if isinstance(value, str)]
    for name in names:
        name = unquote(name.rpartition('?d=')[2].split('?')[0])
        for candidate in (name, re.sub(r'^(.*/)?[0-9a-f]{8}-', '', name)):
            if image := folder.find(candidate, path, split, loose=True):
                return name, image
    return (names or ['an image'])[0], None


def _add_result(labels: Labels, picture: Picture, result: dict, name: str) -> None:
    """Add the box of a region: its numbers are percent of the sides, and it is turned around its first corner."""
    value = result.get('value', result)
    classes = next((value[key] for key in value if key.endswith('labels') and value[key]), None)
    if classes is None:  # a choice, a text, or the shape of a region whose class stands in another result
        return
    if result.get('image_rotation'):
        labels.left_out['boxes of images that were turned in Label Studio'].append(name)
        return
    width, height = (float(result[f'original_{side}']) for side in ('width', 'height'))
    angle = float(value.get('rotation') or 0)
    if 'points' in value:
        shares = [(float(x) / 100, float(y) / 100) for x, y in value['points']]
    elif 'radiusX' in value or 'width' in value:
        x, y = float(value['x']) * width / 100, float(value['y']) * height / 100
        if 'radiusX' in value:
            points = ellipse(x, y, float(value['radiusX']) * width / 100, float(value['radiusY']) * height / 100, angle)
        else:
            corners = from_sides(x, y, float(value['width']) * width / 100, float(value['height']) * height / 100)
            points = turned(rectangle(corners), (x, y), angle)
        shares = [(x / width, y / height) for x, y in points]
    else:
        labels.left_out[f'shapes without a box ({result.get("type", "brush or keypoint")})'].append(name)
        return
    picture.boxes.append(Box(str(classes[0]), shares))


def read_hugging_face(folder: Folder) -> Labels | None:
    """Read Hugging Face's imagefolder with boxes in metadata.jsonl, in COCO's order; None if there is none.

    Numbers of classes are named by the dataset card, README.md, if it does so.
    """
    labels = Labels('Hugging Face imagefolder (metadata.jsonl)')
    files = [path for path in folder.files if path.name == 'metadata.jsonl']
    if not files or not any('"objects"' in read_text(path) for path in files):
        return None
    names = _card_names(folder)
    labels.list_classes(names.values())
    for path in sorted(files, key=lambda path: (folder.split_of(path) not in ('train', ''), path)):
        split = folder.split_of(path)
        for number, line in enumerate(read_text(path).splitlines(), 1):
            with labels.leaving_out('malformed lines', f'{folder.name(path)}:{number}'):
                row = json.loads(line)
                image = folder.find(row['file_name'], path, split)
                if image is None:
                    labels.left_out[MISSING].append(row['file_name'])
                    continue
                picture = Picture(image, split or folder.split_of(image, folders_only=True))
                labels.pictures.append(picture)
                for label, box in _objects(row['objects']):
                    with labels.leaving_out('malformed boxes', f'{folder.name(path)}:{number}'):
                        if isinstance(label, int) and names and label not in names:
                            labels.left_out['boxes of a class number that is not listed'].append(row['file_name'])
                        else:
                            picture.boxes.append(Box(names.get(label, str(label)), from_sides(*box)))
    return labels


def _objects(objects: dict | list) -> Iterator[tuple[int | str, list[float]]]:
    """Yield class and box of the objects of an image: a list of objects, or an object of lists."""
    if isinstance(objects, list):
        merged = defaultdict(list)
        for row in objects:
            for key, value in row.items():
                merged[key].append(value)
        objects = merged
    boxes = next((objects[key] for key in ('bbox', 'bboxes', 'boxes') if key in objects), [])
    keys = 'category', 'categories', 'category_id', 'label', 'labels', 'class', 'class_id', 'name'
    yield from zip(next((objects[key] for key in keys if key in objects), ['object'] * len(boxes)), boxes, strict=True)


def _card_names(folder: Folder) -> dict[int, str]:
    """Return the names of the first ``class_label`` in the dataset card."""
    card = folder.root / 'README.md'
    text = read_text(card) if card in folder else ''
    stack = [read_yaml(text.split('---')[1])] if text.startswith('---') else []
    seen = set()  # aliases of YAML can repeat a node without end
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict) and isinstance(node.get('class_label'), dict):
            return class_names(node['class_label'].get('names', {}))
        stack += list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return {}
