#!/usr/bin/env bash
# mmdet 3.3.0's CocoMetric reports a bbox_mAP that counts the best 100 detections of each class in an image, beside a
# bbox_mAP_50, bbox_mAP_75 and an AP of each class that count 1000: it sets pycocotools' limits to 100, 300 and 1000, of
# which pycocotools takes 100 for the first number of its summary and the last for the others.
#
# Seen with mmdet 3.3.0, pycocotools 2.0.11, torch 2.11.0, Python 3.11: 150 objects of one class in an image, all found
# exactly, so AP is the same at every IoU: bbox_mAP is 0.663, bbox_mAP_50 and the AP of the class are 1.0. Expected: the
# same limit for all of them. It concerns crowded images and detectors that return more than 100 boxes of a class.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check setuptools==81.0.0 numpy==2.4.4 torch==2.11.0 \
    torchvision==0.26.0 mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0 pycocotools==2.0.11
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import torch

sys.modules['mmcv._ext'] = MagicMock()  # mmdet imports mmcv's compiled operators; a metric uses none

from mmdet.evaluation import CocoMetric

corners = torch.tensor([[20.0 * (number % 15), 20.0 * (number // 15)] for number in range(150)])
Path('truth.json').write_text(json.dumps(dict(
    info={}, images=[dict(id=1, file_name='a.jpg', width=300, height=200)], categories=[dict(id=1, name='chair')],
    annotations=[dict(id=number, image_id=1, category_id=1, bbox=[*corner, 10, 10], area=100, iscrowd=0)
                 for number, corner in enumerate(corners.tolist(), 1)])))
metric = CocoMetric(ann_file='truth.json', classwise=True)
metric.dataset_meta = dict(classes=('chair',))
metric.process({}, [dict(img_id=1, ori_shape=(200, 300), pred_instances=dict(
    bboxes=torch.cat([corners, corners + 10], 1), scores=torch.linspace(0.9, 0.1, 150),
    labels=torch.zeros(150, dtype=torch.long)))])
result = metric.evaluate(1)
seen = {name: round(float(result[f'coco/{name}']), 3) for name in ('bbox_mAP', 'bbox_mAP_50', 'chair_precision')}
assert seen == dict(bbox_mAP=0.663, bbox_mAP_50=1.0, chair_precision=1.0), f'changed: {seen}'
print(f'as described, for boxes that are exact: {seen}')
PY
