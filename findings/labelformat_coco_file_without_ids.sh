#!/usr/bin/env bash
# pycocotools cannot read the COCO detection files that labelformat 0.1.17 writes: their annotations have no `id`, which
# the format wants, nor `area` and `iscrowd`, whatever the input had. labelformat writes its RT-DETR format like that also.
#
# Seen with labelformat 0.1.17, pycocotools 2.0.11, Python 3.11: a COCO file with one box is read and written again; the
# box is there, pycocotools raises KeyError: 'id'. Expected: a file that COCO's own tools read.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check numpy==2.4.4 labelformat==0.1.17 pycocotools==2.0.11
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import json
from pathlib import Path

from labelformat.formats import (
    COCOObjectDetectionInput, COCOObjectDetectionOutput, RTDETRObjectDetectionInput, RTDETRObjectDetectionOutput)
from pycocotools.coco import COCO

Path('in.json').write_text(json.dumps(dict(
    images=[dict(id=1, file_name='a.jpg', width=64, height=48)], categories=[dict(id=1, name='sofa')],
    annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1.0, 2.0, 10.0, 20.0], area=200.0, iscrowd=0)])))
assert COCO('in.json').loadAnns(1)[0]['bbox'] == [1.0, 2.0, 10.0, 20.0]
for read, write in ((COCOObjectDetectionInput, COCOObjectDetectionOutput),
                    (RTDETRObjectDetectionInput, RTDETRObjectDetectionOutput)):
    write(Path('out.json')).save(read(Path('in.json')))
    (box,) = json.loads(Path('out.json').read_text())['annotations']
    assert box == dict(image_id=1, category_id=1, bbox=[1.0, 2.0, 10.0, 20.0]), f'changed: {box}'
    try:
        COCO('out.json')
    except KeyError as error:
        print(f'as described: {write.__name__} wrote {box}, pycocotools raises KeyError: {error}')
    else:
        raise SystemExit('changed: pycocotools reads the file')
PY
