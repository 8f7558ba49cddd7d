"""Hand-made frames in the layout of scannet_frames_25k, and the conversion of one split."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from deit_detr.scannet.converter import convert
from tests.helpers.paths import REPO

SPLITS_DIR = REPO / 'data' / 'splits'
SCENE = 'scene0000_00'  # of the train split
SIZE = (24, 18)


def instance_map(**regions) -> np.ndarray:
    """A map of void with rectangles: ``v3001=(x, y, width, height)``."""
    result = np.zeros(SIZE[::-1], np.uint16)
    for name, (x, y, width, height) in regions.items():
        result[y : y + height, x : x + width] = int(name[1:])
    return result


def write_frame(root: Path, ids: np.ndarray, scene=SCENE, name='000000', jpeg_size=None, label='right') -> None:
    for folder in ('color', 'instance', 'label'):
        (root / scene / folder).mkdir(parents=True, exist_ok=True)
    Image.new('RGB', jpeg_size or ids.shape[::-1]).save(root / scene / 'color' / f'{name}.jpg')
    Image.fromarray(ids).save(root / scene / 'instance' / f'{name}.png')
    if isinstance(label, str):
        label = np.where(ids < 1000, ids, ids // 1000)
    if label is not None:
        Image.fromarray(label.astype(np.uint8)).save(root / scene / 'label' / f'{name}.png')


def run(root: Path, **options):
    """Convert the train split in this process; returns the file's content and the summary."""
    options = dict(splits=('train',), workers=1) | options
    (summary,) = convert(root, root.parent / 'out', SPLITS_DIR, **options)
    return json.loads(summary.json_path.read_text()), summary
