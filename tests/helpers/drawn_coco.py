"""Drawn data sets in COCO format."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def draw_coco(ann_file: Path, images: Path, categories: list[dict], number: int = 4) -> None:
    """Draw a COCO-format data set: 96x64 images of noise with three rectangles each, a colour for each category.

    The categories take turns, so all of them occur if there are enough images. The file name seeds the images.
    """
    generator = np.random.default_rng(list(ann_file.name.encode()))
    colours = np.random.default_rng(1).integers(0, 256, (len(categories), 3))
    content = dict(images=[], annotations=[], categories=categories)
    images.mkdir(parents=True)
    for index in range(number):
        pixels = generator.integers(96, 160, (64, 96, 3), dtype=np.uint8)
        name = f'{index:012d}.jpg'
        content['images'].append(dict(id=10 * index, file_name=name, width=96, height=64))
        for place in range(3):
            left, top = 32 * place + generator.integers(8), generator.integers(24)
            width, height = generator.integers(12, 24), generator.integers(16, 40)
            label = (3 * index + place) % len(categories)
            pixels[top : top + height, left : left + width] = colours[label]
            content['annotations'].append(dict(
                id=len(content['annotations']) + 1, image_id=10 * index, category_id=categories[label]['id'],
                bbox=[int(left), int(top), int(width), int(height)], area=int(width * height), iscrowd=0))
        Image.fromarray(pixels).save(images / name)
    ann_file.parent.mkdir(parents=True, exist_ok=True)
    ann_file.write_text(json.dumps(content))


def draw_scannet(root: Path) -> Path:
    """Draw 8 training and 8 validation images with ScanNet's 20 classes, in the layout of the converted data."""
    from deit_detr import ScanNetDataset  # from here, so that it also works with version 0.1

    info = ScanNetDataset.METAINFO
    categories = [dict(id=i, name=name) for i, name in zip(info['category_ids'], info['classes'], strict=True)]
    for split in ('train', 'val'):
        draw_coco(root / f'scannet_objdet_{split}.json', root / split, categories, number=8)
    return root
