"""Small labelled folders in the layouts of several tools, all with the same images and boxes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.helpers.paths import REPO

CLASSES = ['spoon', 'cup', 'fork']  # not in the order of the alphabet, nor of their use
SIZE = 96, 64
#: Split -> name -> (class, [left, top, width, height]) of each box. The last image of each split has no box.
TRUTH = {
    'train': {'a': [('cup', [3, 4, 30.5, 21]), ('fork', [40.25, 8, 20, 30.125])], 'b': [('cup', [1, 1, 95, 63])],
              'kitchen/c': [('spoon', [10, 20, 12, 40]), ('cup', [30, 20, 8, 9])], 'd': []},
    'val': {'e': [('fork', [7, 9, 33, 21.5])], 'kitchen/f': [('spoon', [50, 2, 40, 60])], 'g': []}}


def draw(path: Path, seed: str, size: tuple[int, int] = SIZE, **options) -> Path:
    """Draw an image of noise, another for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(seed.encode())).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def write(path: Path, text: str) -> None:
    """Write a text file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def yolo(root: Path) -> None:
    """Write the layout of Ultralytics, with Roboflow's paths; an image without boxes has no label file."""
    width, height = SIZE
    for split, folder in (('train', 'train'), ('val', 'valid')):
        for name, boxes in TRUTH[split].items():
            draw(root / folder / f'images/{name}.jpg', name)
            lines = [f'{CLASSES.index(label)} {(x + w / 2) / width:.9f} {(y + h / 2) / height:.9f} {w / width:.9f} '
                     f'{h / height:.9f}' for label, (x, y, w, h) in boxes]
            if lines:
                write(root / folder / f'labels/{name}.txt', '\n'.join(lines) + '\n')
    write(root / 'data.yaml', yaml.safe_dump(dict(
        train='../train/images', val='../valid/images', test='../test/images', nc=3, names=CLASSES)))


def darknet(root: Path) -> None:
    """Write CVAT's "YOLO 1.1": no YAML file, labels beside the images."""
    yolo(root)
    (root / 'data.yaml').unlink()
    write(root / 'obj.names', '\n'.join(CLASSES))
    for path in root.glob('*/labels'):
        for file in path.rglob('*.txt'):
            file.rename(path.parent / 'images' / file.relative_to(path))


def voc(root: Path) -> None:
    """Write Pascal VOC, with corners from 1 and splits in ImageSets; VOC lists no classes."""
    for split, images in TRUTH.items():
        for name, boxes in images.items():
            stem = name.replace('/', '-')
            draw(root / f'JPEGImages/{stem}.jpg', name)
            objects = ''.join(
                f'<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>'
                f'<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>' for label, (x, y, w, h) in boxes)
            write(root / f'Annotations/{stem}.xml', (
                f'<annotation><filename>{stem}.jpg</filename><size><width>{SIZE[0]}</width><height>{SIZE[1]}</height>'
                f'<depth>3</depth></size>{objects}</annotation>'))
        write(root / f'ImageSets/Main/{split}.txt', '\n'.join(name.replace('/', '-') for name in images))
    write(root / 'labels.txt', '\n'.join(CLASSES))


def cvat(root: Path) -> None:
    """Write "CVAT for images 1.1", with a polygon."""
    rows, number = [], 0
    for split, images in TRUTH.items():
        for name, boxes in images.items():
            draw(root / f'images/{name}.jpg', name)
            shapes = ''.join(
                f'<polygon label="{label}" points="{x},{y + 1};{x + w},{y};{x + 2},{y + h}"/>' if label == 'spoon' else
                f'<box label="{label}" occluded="0" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}" z_order="0"/>'
                for label, (x, y, w, h) in boxes)
            rows.append(f'<image id="{number}" name="{name}.jpg" subset="{split}" width="{SIZE[0]}" height="{SIZE[1]}">'
                        f'{shapes}</image>')
            number += 1
    names = ''.join(f'<label><name>{name}</name></label>' for name in CLASSES)
    write(root / 'annotations.xml', f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta>'
          f'<job><labels>{names}</labels></job></meta>{"".join(rows)}</annotations>')


def label_studio(root: Path) -> None:
    """Write Label Studio's JSON, percent of the sides, and images with and without the digits of an upload."""
    tasks = []
    width, height = SIZE
    for split, images in TRUTH.items():
        for name, boxes in images.items():
            stem = name.replace('/', '-')
            draw(root / split / f'{stem}.jpg', name)
            results = [dict(
                type='rectanglelabels', original_width=width, original_height=height, image_rotation=0, value=dict(
                    x=100 * x / width, y=100 * y / height, width=100 * w / width, height=100 * h / height, rotation=0,
                    rectanglelabels=[label])) for label, (x, y, w, h) in boxes]
            tasks.append(dict(id=len(tasks), data=dict(image=f'/data/upload/1/0123abcd-{stem}.jpg'), predictions=[],
                              annotations=[dict(was_cancelled=True, result=[]), dict(result=results)]))
    write(root / 'project-1.json', json.dumps(tasks))
    write(root / 'classes.txt', '\n'.join(CLASSES))


def label_studio_min(root: Path) -> None:
    """Write Label Studio's JSON-MIN."""
    label_studio(root)
    tasks = json.loads((root / 'project-1.json').read_text())
    write(root / 'project-1.json', json.dumps([
        dict(image=task['data']['image'], label=[
            dict(row['value'], original_width=SIZE[0], original_height=SIZE[1])
            for row in task['annotations'][1]['result']]) for task in tasks]))


def labelme(root: Path) -> None:
    """Write labelme's files, made on Windows; a rectangle may begin at any corner."""
    for split, images in TRUTH.items():
        for name, boxes in images.items():
            draw(root / split / f'{name}.jpg', name)
            shapes = [dict(label=label, shape_type='rectangle', points=[[x + w, y], [x, y + h]])
                      for label, (x, y, w, h) in boxes]
            write(root / split / f'{name}.json', json.dumps(dict(
                version='5.5.0', shapes=shapes, imagePath=f'..\\{split}\\{name}.jpg'.replace('/', '\\'),
                imageData='AAAA', imageWidth=SIZE[0], imageHeight=SIZE[1])))
    write(root / 'labels.txt', '\n'.join(['__ignore__', '_background_', *CLASSES]))


def coco_content(split: str, name: Callable[[str], str] = '{}.jpg'.format, first: int = 0, base: int = 0) -> dict:
    """Return a COCO file; annotation ids begin at ``first``, category ids at ``base``."""
    content = dict(images=[], annotations=[], categories=[
        dict(id=base + i, name=label, supercategory='cutlery') for i, label in enumerate(CLASSES)])
    for number, (stem, boxes) in enumerate(TRUTH[split].items()):
        content['images'].append(dict(id=number, file_name=name(stem), width=SIZE[0], height=SIZE[1]))
        for label, box in boxes:
            content['annotations'].append(dict(
                id=first + len(content['annotations']), image_id=number, category_id=base + CLASSES.index(label),
                bbox=box, area=box[2] * box[3], iscrowd=0))
    return content


def coco(root: Path) -> None:
    """Write COCO's own layout, beside captions of the same images."""
    for split in TRUTH:
        for name in TRUTH[split]:
            draw(root / f'{split}2017/{name}.jpg', name)
        write(root / f'annotations/instances_{split}2017.json', json.dumps(coco_content(split, first=1, base=5)))
        write(root / f'annotations/captions_{split}2017.json', json.dumps(dict(
            coco_content(split), annotations=[dict(id=1, image_id=1, caption='a cup')])))


def roboflow(root: Path) -> None:
    """Write Roboflow's COCO: ids from 0, images beside the file, the group of the classes as the first class."""
    for split, folder in (('train', 'train'), ('val', 'valid')):
        for name in TRUTH[split]:
            draw(root / folder / f'{name}.jpg', name)
        content = coco_content(split, base=1)
        content['categories'].insert(0, dict(id=0, name='cutlery', supercategory='none'))
        write(root / folder / '_annotations.coco.json', json.dumps(content))


def hugging_face(root: Path) -> None:
    """Write an imagefolder with metadata.jsonl and a dataset card that names the classes."""
    for split, images in TRUTH.items():
        lines = []
        for name, boxes in images.items():
            draw(root / split / f'{name}.jpg', name)
            lines.append(json.dumps(dict(file_name=f'{name}.jpg', objects=dict(
                bbox=[box for _, box in boxes], category=[CLASSES.index(label) for label, _ in boxes]))))
        write(root / split / 'metadata.jsonl', '\n'.join(lines))
    feature = dict(name='category', sequence=dict(class_label=dict(names=dict(enumerate(CLASSES)))))
    card = dict(dataset_info=dict(features=[dict(name='objects', struct=[feature])]))
    write(root / 'README.md', f'---\n{yaml.safe_dump(card)}---\n# Cutlery\n')


LAYOUTS = dict(
    yolo=yolo, darknet=darknet, voc=voc, cvat=cvat, label_studio=label_studio, label_studio_min=label_studio_min,
    labelme=labelme, coco=coco, roboflow=roboflow, hugging_face=hugging_face)


def one_split(root: Path, number: int = 40) -> None:
    """Write a YOLO folder without splits."""
    for index in range(number):
        draw(root / f'images/{index:03d}.png', str(index), (32, 24))
        write(root / f'labels/{index:03d}.txt', f'{index % 2} 0.5 0.5 0.25 0.5')
    write(root / 'data.yaml', 'names: {0: cup, 1: fork}\n')


def run_prepare(root: Path, out: Path | None = None, **options):
    """Prepare a folder for DINO, with results beside it."""
    from deit_detr.datasets.formats.prepare import prepare

    recipe = REPO / 'projects/deit_detr/configs/dino_deit-tiny_8xb2-12e_coco.py'
    return prepare(root, out or root.parent / 'out', recipe, workers=1, **options)
