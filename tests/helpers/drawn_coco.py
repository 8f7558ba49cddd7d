"""Drawn data sets in COCO format."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def draw_coco(ann_file: Path, images: Path, categories: list[dict], number: int = 4) -> None:
    """Draw a COCO-format data set: 96x64 images of noise with three rectangles each, a colour for each category.

    The categories take turns, so that they all occur if there are enough images. Another file has other images.
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
