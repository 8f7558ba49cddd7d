#!/usr/bin/env bash
# sahi 0.12.8 cuts the images of a COCO file into slices with their boxes (slice_coco), and each `iscrowd` becomes 0: an
# area that evaluation has to ignore is an object that a detector has to find afterwards, and trains on.
#
# Seen with sahi 0.12.8, Python 3.11: a file with a box and a crowd, which lie within one slice; the sliced file has both
# at the same place, with `iscrowd` 0. It is 0 as soon as Coco.from_coco_dict_or_path has read the file.
# Expected: `iscrowd` 1 stays 1.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check numpy==2.4.4 pillow==12.0.0 sahi==0.12.8
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import json
from pathlib import Path

from PIL import Image
from sahi.slicing import slice_coco
from sahi.utils.coco import Coco

Image.new('RGB', (128, 64)).save('a.png')
boxes = [dict(id=1, image_id=1, category_id=1, bbox=[4, 4, 20, 20], area=400, iscrowd=0),
         dict(id=2, image_id=1, category_id=1, bbox=[30, 10, 30, 40], area=1200, iscrowd=1)]
Path('in.json').write_text(json.dumps(dict(
    images=[dict(id=1, file_name='a.png', width=128, height=64)], categories=[dict(id=1, name='chair')],
    annotations=boxes)))
(image,) = Coco.from_coco_dict_or_path('in.json').images
read = [box.iscrowd for box in image.annotations]
sliced, _ = slice_coco(
    'in.json', '.', 'sliced', output_dir='slices', slice_height=64, slice_width=64, overlap_height_ratio=0,
    overlap_width_ratio=0)
written = [(list(map(int, box['bbox'])), box['iscrowd']) for box in sliced['annotations']]
assert read == [0, 0] and written == [(box['bbox'], 0) for box in boxes], f'changed: {read}, {written}'
print(f'as described: boxes with iscrowd {[box["iscrowd"] for box in boxes]} are {written} in the slices')
PY
