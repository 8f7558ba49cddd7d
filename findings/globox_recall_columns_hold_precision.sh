#!/usr/bin/env bash
# The columns "AR 1", "AR 10" and "AR 100" of the CSV file and of the table that globox 2.9.0 writes for each class hold
# its average precision instead of its average recall.
#
# Seen with globox 2.9.0, Python 3.11: one class with two objects; both are found exactly, below two false detections with
# higher scores. Its recall is 1, as ar_100() says; the file says AP 0.5 and "AR 100" 0.5. "AR S", the recall of small
# boxes, is 1 in the same row. Expected: 1 in "AR 100".
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check numpy==2.4.4 globox==2.9.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import csv

from globox import Annotation, AnnotationSet, BoundingBox, COCOEvaluator


def annotations(*rows):
    boxes = [BoundingBox(label='sofa', xmin=x, ymin=0, xmax=x + 10, ymax=10, confidence=score) for x, score in rows]
    return AnnotationSet([Annotation(image_id='a.jpg', image_size=(640, 480), boxes=boxes)])


evaluator = COCOEvaluator(
    ground_truths=annotations((0, None), (50, None)),
    predictions=annotations((100, 0.9), (150, 0.8), (0, 0.7), (50, 0.6)))
evaluator.save_csv('classes.csv')
with open('classes.csv') as file:
    (row,) = csv.DictReader(file)
recall, seen = round(evaluator.ar_100(), 4), {name: round(float(row[name]), 4) for name in ('AP 50:95', 'AR 100', 'AR S')}
assert (recall, seen) == (1.0, {'AP 50:95': 0.5, 'AR 100': 0.5, 'AR S': 1.0}), f'changed: {recall}, {seen}'
print(f'as described: the recall of the only class is {recall}, its row says {seen}')
PY
