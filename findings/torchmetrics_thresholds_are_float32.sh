#!/usr/bin/env bash
# torchmetrics' MeanAveragePrecision gives another AP than pycocotools, which it calls to compute it: its own default
# thresholds of recall and IoU are made in float32, so a recall of exactly 0.8 does not reach the threshold 0.8, which is
# 0.800000011920929, and an IoU of exactly 0.55 does not reach 0.550000011920929.
#
# Seen with torchmetrics 1.9.0, pycocotools 2.0.11, torch 2.11.0, Python 3.11: of five objects four are found, all boxes
# are exact. pycocotools says AP 0.8020 (81 of 101 recalls), torchmetrics 0.7921 (80 of 101), and 0.8020 when it is given
# the thresholds of pycocotools. Expected: the same AP; its documentation describes the defaults as the same thresholds.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check setuptools==81.0.0 numpy==2.4.4 torch==2.11.0 \
    torchvision==0.26.0 pycocotools==2.0.11 torchmetrics==1.9.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import contextlib
import io

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params
from torchmetrics.detection import MeanAveragePrecision

boxes = [[50.0 * number, 0.0, 40.0, 40.0] for number in range(5)]
scores = [0.9, 0.8, 0.7, 0.6]


def pycocotools():
    truth = COCO()
    truth.dataset = dict(
        info={}, images=[dict(id=1, width=640, height=480)], categories=[dict(id=1, name='chair')], annotations=[
            dict(id=number, image_id=1, category_id=1, bbox=box, area=1600.0, iscrowd=0)
            for number, box in enumerate(boxes, 1)])
    truth.createIndex()
    found = truth.loadRes([
        dict(image_id=1, category_id=1, bbox=box, score=score) for box, score in zip(boxes, scores)])
    evaluation = COCOeval(truth, found, 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0].item()


def torchmetrics(**thresholds):
    metric = MeanAveragePrecision(box_format='xywh', **thresholds)
    metric.update(
        [dict(boxes=torch.tensor(boxes[:4]), scores=torch.tensor(scores), labels=torch.zeros(4, dtype=torch.long))],
        [dict(boxes=torch.tensor(boxes), labels=torch.zeros(5, dtype=torch.long))])
    return metric.compute()['map'].item()


with contextlib.redirect_stdout(io.StringIO()):
    expected, seen = pycocotools(), torchmetrics()
    given = torchmetrics(iou_thresholds=Params().iouThrs.tolist(), rec_thresholds=Params().recThrs.tolist())
assert [round(value * 101) for value in (expected, seen, given)] == [81, 80, 81], f'changed: {expected}, {seen}, {given}'
print(f'as described: AP {expected:.4f} from pycocotools, {seen:.4f} from torchmetrics, {given:.4f} with thresholds given')
PY
