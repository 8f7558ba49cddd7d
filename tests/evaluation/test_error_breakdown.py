"""Error types and their cost: by hand on single boxes, and against the results of TIDE's reference code."""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deit_detr.evaluation.error_breakdown import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    CORRECT,
    DUPLICATE,
    LOCALISATION,
    MISSED,
    average_precision,
    best_f1_threshold,
    confusion_matrix,
    count_errors,
    match_boxes,
    oracle_gains,
)

CHAIR, TABLE = 5, 7  # category ids; labels 0 and 1
BOX = [10, 10, 40, 40]


def evaluate(boxes, detections, categories=(CHAIR, TABLE)) -> COCOeval:
    """Return the COCOeval of boxes (image, category, x, y, width, height) and detections (the same and a score)."""
    with contextlib.redirect_stdout(None):
        coco, results = COCO(), COCO()
        images = [dict(id=index) for index in sorted({row[0] for row in [*boxes, *detections]})]
        for target, rows in (coco, boxes), (results, detections):
            target.dataset = dict(
                images=images, categories=[dict(id=category, name=str(category)) for category in categories],
                annotations=[
                    dict(id=number, image_id=row[0], category_id=row[1], bbox=list(row[2:6]), area=row[4] * row[5],
                         iscrowd=0, **(dict(score=row[6]) if len(row) > 6 else {}))
                    for number, row in enumerate(rows, start=1)])
            target.createIndex()
        coco_eval = COCOeval(coco, results, 'bbox')
        coco_eval.evaluate()
        coco_eval.accumulate()
    return coco_eval


def gains(boxes, detections) -> dict[str, float]:
    coco_eval = evaluate(boxes, detections)
    return oracle_gains(match_boxes(coco_eval), coco_eval.params.recThrs)


@pytest.mark.parametrize(
    'detections, kinds, missed',
    [
        ([(CHAIR, *BOX, 0.9)], [CORRECT], 0),
        ([(CHAIR, 10, 10, 40, 20, 0.9)], [CORRECT], 0),  # IoU 0.5
        ([(CHAIR, 10, 10, 40, 19, 0.9)], [LOCALISATION], 0),  # 0.475
        ([(CHAIR, 10, 10, 40, 4, 0.9)], [LOCALISATION], 0),  # 0.1
        ([(CHAIR, 10, 10, 40, 3, 0.9)], [BACKGROUND], 1),  # 0.075
        ([(TABLE, *BOX, 0.9)], [CLASSIFICATION], 0),
        ([(TABLE, 10, 10, 40, 19, 0.9)], [BOTH], 1),
        ([(TABLE, 10, 10, 40, 4, 0.9)], [BACKGROUND], 1),
        ([(CHAIR, 60, 60, 20, 20, 0.9)], [BACKGROUND], 1),
        ([(CHAIR, *BOX, 0.9), (CHAIR, *BOX, 0.8)], [CORRECT, DUPLICATE], 0),
        ([(CHAIR, *BOX, 0.8), (CHAIR, 12, 10, 40, 40, 0.9)], [CORRECT, DUPLICATE], 0),  # the higher score comes first
        ([(CHAIR, *BOX, 0.9), (CHAIR, 10, 10, 40, 19, 0.8)], [CORRECT, LOCALISATION], 0),
        ([(CHAIR, *BOX, 0.9), (TABLE, *BOX, 0.8)], [CORRECT, CLASSIFICATION], 0),
        ([], [], 1),
    ])
def test_kind_of_single_detections(detections, kinds, missed):
    matches = match_boxes(evaluate([(0, CHAIR, *BOX)], [(0, *row) for row in detections]))
    assert matches.det_kind.tolist() == kinds
    assert matches.det_score.tolist() == sorted((row[-1] for row in detections), reverse=True)
    counts = count_errors(matches, 0.5)
    assert counts[:, MISSED].tolist() == [missed, 0]
    assert counts.sum() == len(detections) + missed


def test_boxes_remember_what_lies_at_them():
    boxes = [(0, CHAIR, *BOX), (0, TABLE, 60, 10, 20, 20), (1, CHAIR, 0, 0, 10, 10)]
    detections = [(0, CHAIR, *BOX, 0.9), (0, CHAIR, 60, 10, 20, 20, 0.6), (0, TABLE, 60, 10, 20, 8, 0.7)]
    matches = match_boxes(evaluate(boxes, detections))
    assert matches.gt_label.tolist() == [0, 1, 0] and matches.gt_image.tolist() == [0, 0, 1]
    assert matches.gt_found.tolist() == [0.9, 0, 0]
    assert matches.gt_near.tolist() == [0, 0.7, 0]
    assert matches.det_gt.tolist() == [0, 1, 1]
    assert matches.det_confused.tolist() == [-1, -1, 1]


def test_crowds_are_left_out():
    boxes = [(0, CHAIR, *BOX), (0, CHAIR, 60, 60, 30, 30)]
    coco_eval = evaluate(boxes, [(0, CHAIR, 62, 62, 20, 20, 0.9), (0, CHAIR, *BOX, 0.8)])
    coco_eval.cocoGt.anns[2]['iscrowd'] = 1
    with contextlib.redirect_stdout(None):
        coco_eval.evaluate()
    matches = match_boxes(coco_eval)
    assert matches.det_kind.tolist() == [CORRECT] and len(matches.gt_label) == 1


TWO = [(0, CHAIR, *BOX), (0, CHAIR, 60, 60, 20, 20)]
FOUND = (0, CHAIR, *BOX, 0.9)
LATER = (0, CHAIR, 60, 60, 20, 20, 0.5)


@pytest.mark.parametrize(
    'boxes, detections, name, gain',
    [
        # Half of the boxes found: precision 1 up to recall 0.5, 51 of 101 levels.
        (TWO, [FOUND], 'missed', 50 / 101),
        # The second box is found after one false detection: precision 2/3 at 50 levels.
        (TWO, [FOUND, (0, CHAIR, *BOX, 0.8), LATER], 'duplicate', 50 / 101 / 3),
        (TWO, [FOUND, (0, CHAIR, 0, 80, 9, 9, 0.8), LATER], 'background', 50 / 101 / 3),
        ([*TWO, (0, TABLE, 0, 0, 9, 9)], [FOUND, (0, TABLE, 10, 10, 40, 15, 0.8), LATER, (0, TABLE, 0, 0, 9, 9, 0.7)],
         'both', 0.5 / 2),
        # Repaired, the detection of the second box is correct.
        (TWO, [FOUND, (0, CHAIR, 60, 60, 20, 9, 0.8)], 'localisation', 50 / 101),
        ([TWO[0], (0, TABLE, 60, 60, 20, 20)], [FOUND, (0, CHAIR, 60, 60, 20, 20, 0.8)], 'classification', 0.5),
        # Of several errors at a box, the one with the highest score is repaired and the others are removed.
        (TWO, [FOUND, (0, CHAIR, 60, 60, 20, 9, 0.8), (0, CHAIR, 60, 60, 20, 8, 0.7)], 'localisation', 50 / 101),
        # An error at a box that is already found is only removed.
        (TWO, [FOUND, (0, CHAIR, 10, 10, 40, 19, 0.8), LATER], 'localisation', 50 / 101 / 3),
        (TWO, [FOUND, (0, CHAIR, 0, 80, 9, 9, 0.8), LATER], 'false positives', 50 / 101 / 3),
        (TWO, [FOUND, (0, CHAIR, 60, 60, 20, 9, 0.8)], 'false negatives', 50 / 101),
    ])
def test_gain_by_hand(boxes, detections, name, gain):
    found = gains(boxes, detections)
    assert found[name] == pytest.approx(gain)
    whole = ('false positives', 'false negatives')
    if name not in whole:
        assert not any(value for other, value in found.items() if other not in (name, *whole))


def random_case(seed: int, images: int = 30, unique: bool = True) -> tuple[list, list]:
    """Return boxes of two classes and detections: shifted, of the wrong class, duplicate, and of nothing."""
    generator = np.random.default_rng(seed)
    boxes, detections = [], []
    for image in range(images):
        for _ in range(generator.integers(1, 5)):
            category = int(generator.choice([CHAIR, TABLE]))
            box = [*generator.integers(0, 60, 2).tolist(), *generator.integers(8, 40, 2).tolist()]
            boxes.append((image, category, *box))
            for _ in range(generator.integers(0, 4)):
                moved = np.array(box) * (1 + generator.choice([0.02, 0.15, 0.4]) * generator.normal(size=4))
                right = generator.random() < 0.7
                detections.append((image, category if right else CHAIR + TABLE - category, *np.abs(moved).tolist(),
                                   float(generator.random()) if unique else float(generator.integers(1, 9) / 10)))
        for _ in range(generator.integers(0, 2)):
            detections.append((image, CHAIR, *(80 + 20 * generator.random(4)).tolist(), float(generator.random())))
    return boxes, detections


#: AP points of tidecv 1.0.1 on random_case(seed), and its number of errors of each type.
TIDE = {
    0: dict(counts=[15, 31, 10, 17, 34, 23],
            gains=[7.3517, 15.6672, 0.8801, 1.1231, 5.1592, 9.1356, 26.6275, 22.9157]),
    1: dict(counts=[22, 37, 9, 10, 40, 23],
            gains=[6.9732, 19.7331, 1.0733, 0.6946, 5.104, 6.7452, 29.4434, 19.6036]),
}


@pytest.mark.parametrize('seed', TIDE)
def test_same_numbers_as_tide(seed):
    coco_eval = evaluate(*random_case(seed))
    matches = match_boxes(coco_eval)
    counts = count_errors(matches, 0).sum(0)
    assert counts[1:].tolist() == TIDE[seed]['counts']
    # the recall levels are i / 100 in TIDE and multiples of 0.01 in COCOeval, which differ in the last bit
    found = oracle_gains(matches, np.arange(101) / 100)
    assert [round(100 * gain, 4) for gain in found.values()] == pytest.approx(TIDE[seed]['gains'], abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_ap_is_that_of_cocoeval(seed):
    coco_eval = evaluate(*random_case(seed, images=8, unique=seed % 2 == 0))
    matches = match_boxes(coco_eval)
    for label in range(2):
        own = matches.det_label == label
        precision = coco_eval.eval['precision'][0, :, label, 0, -1]
        number = int((matches.gt_label == label).sum())
        if number:
            # pycocotools adds 2e-16 to each denominator
            assert average_precision(
                matches.det_score[own], matches.det_kind[own] == CORRECT, number, coco_eval.params.recThrs,
            ) == pytest.approx(precision.mean(), abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), score_thr=st.sampled_from([0.2, 0.5, 0.8]))
def test_threshold_leaves_the_other_matches_alone(seed, score_thr):
    """Counting at a threshold equals matching only detections above it: the page's slider relies on that."""
    boxes, detections = random_case(seed, images=8)
    few = [row for row in detections if row[-1] >= score_thr]
    counts = count_errors(match_boxes(evaluate(boxes, detections)), score_thr)
    assert (counts == count_errors(match_boxes(evaluate(boxes, few)), 0)).all()


def test_confusion_matrix_by_hand():
    boxes = [(0, CHAIR, *BOX), (0, TABLE, 60, 10, 20, 20), (1, TABLE, 0, 0, 10, 10)]
    detections = [
        (0, CHAIR, *BOX, 0.9), (0, CHAIR, *BOX, 0.8), (0, CHAIR, 60, 10, 20, 20, 0.7), (1, TABLE, 50, 50, 9, 9, 0.6),
        (1, TABLE, 0, 0, 10, 10, 0.1)]
    matrix = confusion_matrix(match_boxes(evaluate(boxes, detections)), 0.5)
    assert matrix.tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]
    assert confusion_matrix(match_boxes(evaluate(boxes, detections)), 0.0)[1].tolist() == [1, 1, 0]


def test_confusion_matrix_is_that_of_mmdet_where_boxes_are_apart():
    """Without duplicates and multiple overlaps, which mmdet counts differently, the matrix is that of mmdet."""
    import mmdet
    import torch

    script = Path(mmdet.__file__).parent / '.mim/tools/analysis_tools/confusion_matrix.py'
    if not script.is_file():
        pytest.skip('this mmdet has no .mim folder with its tools')
    spec = importlib.util.spec_from_file_location('mmdet_confusion_matrix', script)
    mmdet_tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mmdet_tool)

    generator = np.random.default_rng(0)
    boxes, detections = [], []
    for image in range(20):
        for place in range(4):
            category = int(generator.choice([CHAIR, TABLE]))
            boxes.append((image, category, 100 * place, 10, 40, 40))
            if generator.random() < 0.7:
                shift = int(generator.choice([0, 5, 35]))
                detections.append((image, int(generator.choice([CHAIR, TABLE])), 100 * place + shift, 10, 40, 40,
                                   float(generator.random())))
    labels = {CHAIR: 0, TABLE: 1}
    expected = np.zeros((3, 3))
    for image in range(20):
        gts = [dict(bbox=[x, y, x + w, y + h], bbox_label=labels[category])
               for number, category, x, y, w, h in boxes if number == image]
        found = [row for row in detections if row[0] == image]
        corners = torch.tensor([[x, y, x + w, y + h] for _, _, x, y, w, h, _ in found]).reshape(-1, 4).float()
        mmdet_tool.analyze_per_img_dets(
            expected, gts, dict(labels=torch.tensor([labels[row[1]] for row in found]), bboxes=corners,
                                scores=torch.tensor([row[-1] for row in found])), 0.3, 0.5)
    matrix = confusion_matrix(match_boxes(evaluate(boxes, detections)), 0.3)
    assert matrix[0, 1] and matrix[1, 0] and matrix[2, :2].all()
    matrix[0, 2] += matrix[0, 1]  # mmdet also counts a box of the other class as not found
    matrix[1, 2] += matrix[1, 0]
    assert (matrix == expected).all()


def test_best_threshold_maximises_f1():
    boxes, detections = random_case(3)
    matches = match_boxes(evaluate(boxes, detections))

    def f1(threshold):
        drawn = matches.det_score >= threshold
        return 2 * (matches.det_kind[drawn] == CORRECT).sum() / (drawn.sum() + len(boxes))

    assert f1(best_f1_threshold(matches)) == max(map(f1, matches.det_score))
    assert best_f1_threshold(match_boxes(evaluate(boxes, []))) == 0.5
