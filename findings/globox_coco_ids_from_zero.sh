#!/usr/bin/env bash
# pycocotools never counts the first object of a COCO file that globox 2.9.0 writes as found: globox numbers annotations
# from 0, and pycocotools notes the id of the matched annotation for each detection, with 0 for "none".
#
# Seen with globox 2.9.0, pycocotools 2.0.11, Python 3.11: one image, one box, found exactly. AP is 1 for the file that
# was read, and 0 for what globox wrote: its annotation has the id 0. With both kinds of ids that globox can write, its
# own evaluator says 1.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check numpy==2.4.4 globox==2.9.0 pycocotools==2.0.11
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import contextlib
import io
import json
from pathlib import Path

from globox import AnnotationSet, COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Path('in.json').write_text(json.dumps(dict(
    info={}, images=[dict(id=1, file_name='a.jpg', width=64, height=48)], categories=[dict(id=1, name='sofa')],
    annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1.0, 2.0, 10.0, 20.0], area=200.0, iscrowd=0)])))
Path('found.json').write_text(json.dumps([dict(image_id=1, category_id=1, bbox=[1.0, 2.0, 10.0, 20.0], score=0.9)]))


def ap(path):
    content = json.loads(Path(path).read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dict(content, info={})
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes('found.json'), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [row['id'] for row in content['annotations']], round(evaluation.stats[0].item(), 3)


boxes = AnnotationSet.from_coco('in.json')
boxes.save_coco('auto.json', auto_ids=True)
boxes.save_coco('given.json', label_to_id={'sofa': 1}, imageid_to_id={'a.jpg': 1})
found = boxes.from_coco_results('found.json', id_to_label={1: 'sofa'}, id_to_imageid={1: 'a.jpg'})
assert round(COCOEvaluator(ground_truths=boxes, predictions=found).ap(), 3) == 1
outcome = {path: ap(path) for path in ('in.json', 'auto.json', 'given.json')}
expected = {'in.json': ([1], 1.0), 'auto.json': ([0], 0.0), 'given.json': ([0], 0.0)}
assert outcome == expected, f'changed: {outcome}'
for path, (ids, value) in outcome.items():
    print(f'as described: {path}: ids {ids}, AP {value}')
PY
