#!/usr/bin/env bash
# A box that fits its mask loses a pixel of width and of height when supervision 0.31.2 writes the data set as YOLO and
# reads it again: the polygon in the file goes through the indices of the mask's outermost pixels, not around the pixels,
# and the new box is the polygon's.
#
# Seen with supervision 0.31.2, opencv-python-headless 4.13.0.90, Python 3.11: an object of 4x4 pixels with the box
# (8, 8, 12, 12) comes back as (8, 8, 11, 11), an IoU of 0.56; without its mask, as it was. Expected: the same box.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check numpy==2.4.4 opencv-python-headless==4.13.0.90 \
    supervision==0.31.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import cv2
import numpy as np
import supervision as sv

cv2.imwrite('a.png', np.zeros((32, 32, 3), np.uint8))
mask = np.zeros((1, 32, 32), bool)
mask[:, 8:12, 8:12] = True
outcome = {}
for name, masks in dict(with_mask=mask, without_mask=None).items():
    box = sv.Detections(xyxy=np.array([[8.0, 8.0, 12.0, 12.0]]), class_id=np.array([0]), mask=masks)
    data = sv.DetectionDataset(classes=['sofa'], images=['a.png'], annotations={'a.png': box})
    data.as_yolo(f'{name}/images', f'{name}/labels', f'{name}/data.yaml')
    again = sv.DetectionDataset.from_yolo(f'{name}/images', f'{name}/labels', f'{name}/data.yaml')
    ((_, _, found),) = again
    outcome[name] = found.xyxy.round(1).tolist()
expected = dict(with_mask=[[8, 8, 11, 11]], without_mask=[[8, 8, 12, 12]])
assert outcome == expected, f'changed: {outcome}'
print(f'as described: (8, 8, 12, 12) comes back as {outcome}')
PY
