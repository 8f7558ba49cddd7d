"""Tracking: walks through rendered rooms with known objects, and what the demo writes."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from deit_detr.errors import UserError
from deit_detr.inference.tracking import ObjectList, TrackedFrame, Tracker, color_of, draw_tracks, track_frames
from deit_detr.scannet.mini_scannet.walk import render_walk

pytest.importorskip('trackers', reason='optional')
SIZE = (160, 120)


def sample_of(boxes, labels, scores=None) -> DetDataSample:
    labels = torch.tensor(labels, dtype=torch.int64).reshape(-1)
    scores = torch.full((len(labels),), 0.9) if scores is None else torch.tensor(scores)
    found = InstanceData(bboxes=torch.tensor(np.reshape(boxes, (-1, 4)), dtype=torch.float32), labels=labels,
                         scores=scores)
    found.label_names = [f'class{label}' for label in labels.tolist()]
    return DetDataSample(metainfo=dict(ori_shape=SIZE[::-1]), pred_instances=found)


def ids_of(tracked: DetDataSample) -> dict[str, int]:
    return dict(zip(tracked.pred_instances.label_names, tracked.pred_instances.instances_id.tolist(), strict=True))


@pytest.mark.slow
def test_walks_with_true_boxes():
    """MOTA as TrackEval defines it: a miss, a false alarm and a changed number cost the same."""
    from trackers.eval import box_iou, compute_clear_metrics

    total = Counter()
    for seed, theme in enumerate(('bedroom', 'kitchen', 'office')):
        tracker, numbers, true, found, overlaps = Tracker(15), {}, [], [], []
        for _, ids, boxes in render_walk(seed, theme, 40, SIZE):
            result = tracker(sample_of(boxes, ids // 1000)).pred_instances
            true.append(np.array([numbers.setdefault(number, len(numbers)) for number in ids.tolist()], int))
            found.append(result.instances_id.numpy())
            overlaps.append(box_iou(boxes, result.bboxes.numpy().astype(float).reshape(-1, 4)))
        total['objects'] += len(numbers)
        total.update(compute_clear_metrics(true, found, overlaps))
    assert total['objects'] > 10 and total['CLR_FP'] == 0
    mota = (total['CLR_TP'] - total['CLR_FP'] - total['IDSW']) / (total['CLR_TP'] + total['CLR_FN'])
    assert mota >= 0.9, dict(total)


def test_walk_repeats_and_moves():
    first, again = (list(render_walk(3, 'office', 3, SIZE)) for _ in range(2))
    for (picture, ids, boxes), (picture2, ids2, boxes2) in zip(first, again, strict=True):
        assert np.array_equal(picture, picture2) and np.array_equal(ids, ids2) and np.array_equal(boxes, boxes2)
        assert picture.shape == (*SIZE[::-1], 3) and (ids > 1000).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all() and boxes.min() >= 0 and (boxes[:, 2:] <= SIZE).all()
    assert not np.array_equal(first[0][0], first[1][0])


def test_numbers_stay():
    """Across classes in one place, low scores, and a gap of a second; not beyond two seconds."""
    tracker = Tracker(10, 0.5)
    box = np.array([[40, 30, 80, 90], [42, 30, 82, 90]], float)
    assert ids_of(tracker(sample_of(box, [3, 5]))) == {}, 'only the second frame confirms an object'
    assert ids_of(tracker(sample_of(box + 2, [3, 5]))) == dict(class3=1, class5=2)
    assert ids_of(tracker(sample_of(box + 4, [5, 3]))) == dict(class3=1, class5=2), 'in any order'
    assert ids_of(tracker(sample_of(box + 6, [3, 5], [0.2, 0.2]))) == dict(class3=1, class5=2)
    for _ in range(10):
        assert ids_of(tracker(sample_of([], []))) == {}
    assert ids_of(tracker(sample_of(box[:1] + 26, [3]))) == dict(class3=1)
    for _ in range(25):
        tracker(sample_of([], []))
    later = [ids_of(tracker(sample_of(box[:1] + 26, [3]))) for _ in range(2)]
    assert later == [{}, dict(class3=3)]
    tracker(sample_of([[100, 100, 110, 110]], [7], [0.2]))
    assert 'class7' not in ids_of(tracker(sample_of([[100, 100, 110, 110]], [7], [0.2]))), 'low scores start nothing'


def test_doubles_count_once():
    """Several queries of a detector may find an object."""
    tracker = Tracker(10)
    boxes = [[41, 31, 81, 91], [40, 30, 80, 90], [40, 30, 80, 60]]
    for _ in range(2):
        found = tracker(sample_of(boxes, [3, 3, 3], [0.6, 0.9, 0.5])).pred_instances
    assert found.bboxes.tolist() == boxes[1:] and found.instances_id.tolist() == [1, 2]


def test_time_of_a_camera():
    """Seconds decide what is forgotten, not the number of frames."""
    for gap, number in ((0.5, 1), (5, 2)):
        tracker = Tracker(10)
        for seconds in (0, 0.1, 0.2, 0.2 + gap, 0.3 + gap):
            found = ids_of(tracker(sample_of([[40, 30, 80, 90]], [3]), seconds))
        assert found == dict(class3=number)


def test_lines_and_list(detector):
    boxes = [[[10, 20, 30, 60]], [[12, 20, 32, 60]], [[14, 20, 34, 60]]]
    pictures = [np.full((*SIZE[::-1], 3), 90, np.uint8)] * 3
    samples = iter([sample_of(box, [3]) for box in boxes])
    seen = ObjectList()
    frames = list(track_frames(
        lambda image, score: next(samples), zip(['000', '100', '200'], [None] * 3, pictures, strict=True), 5))
    for frame in frames:
        seen.add(frame)
    assert [json.loads(frame.json_line())['objects'] for frame in frames] == [
        [], [dict(id=1, score=0.9, bbox=boxes[1][0]) | {'class': 'class3'}],
        [dict(id=1, score=0.9, bbox=boxes[2][0]) | {'class': 'class3'}]]
    assert [frame.seconds for frame in frames] == [0, 0.2, 0.4]
    assert frames[2].mot_lines() == '3,1,14.00,20.00,20.00,40.00,0.9000,4,-1,-1\n'
    assert seen.list() == [dict(id=1, score=0.9, frames=['100', '200']) | {'class': 'class3'}]
    assert seen.counts() == dict(class3=1) and frames[0].counts == {}
    drawn = np.asarray(draw_tracks(detector, frames[2], seen.counts()))
    assert drawn.shape == (*SIZE[::-1], 3)
    assert tuple(drawn[59, 34]) == color_of(1) and tuple(drawn[100, 100]) == (90, 90, 90)


def test_colours_differ():
    colours = np.array([color_of(number) for number in range(1, 13)], float)
    distances = np.abs(colours[:, None] - colours).sum(2) + 1000 * np.eye(len(colours))
    assert distances.min() > 40


def test_needs_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'trackers', None)
    with pytest.raises(UserError, match='tracking needs the package trackers: pip install -r requirements/optional'):
        Tracker(10)


def test_frames_of_a_camera_are_not_kept():
    seen = ObjectList(keep_frames=False)
    tracker = Tracker(10)
    for index in range(3):
        seen.add(TrackedFrame(index, str(index), 0, None, tracker(sample_of([[10, 20, 30, 60]], [3])), 1))
    assert seen.list() == [] and seen.counts() == dict(class3=1)
