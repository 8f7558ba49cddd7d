"""Evaluation of fewer images than the file has, of files of any encoding, of no detection, and of very many boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope

from deit_detr.datasets.coco_file import read_annotations
from deit_detr.engine.start.data import check_data
from deit_detr.engine.start.evaluator import build_metrics, check_evaluator
from deit_detr.engine.start.findings import FAIL, OK, WARN
from deit_detr.errors import UserError
from deit_detr.evaluation.detections import evaluate, read_data
from deit_detr.evaluation.pri3d import Pri3DMetric
from deit_detr.pages.data_page import make_data_page
from tests.helpers.drawn_coco import draw_coco

CLASSES = ('cup', 'fork', 'spoon')


@pytest.fixture
def ann_file(tmp_path) -> Path:
    """Annotations of four images with three boxes each, beside the images."""
    init_default_scope('mmdet')
    draw_coco(tmp_path / 'val.json', tmp_path / 'val', [
        dict(id=number, name=name) for number, name in enumerate(CLASSES, 1)])
    return tmp_path / 'val.json'


def edit(ann_file: Path, change) -> None:
    content = json.loads(ann_file.read_text())
    change(content)
    ann_file.write_text(json.dumps(content))


def config(ann_file: Path, **changes) -> dict:
    return dict(type='CheckedCocoDataset', ann_file=str(ann_file), data_prefix=dict(img=f'{ann_file.parent}/val/'),
                metainfo=dict(classes=CLASSES), pipeline=[], test_mode=True, **changes)


def build(ann_file: Path, **changes) -> BaseDataset:
    return DATASETS.build(config(ann_file, **changes))


def measure(metric: MMDetCocoMetric, dataset: BaseDataset, shift: float = 0, score: float = 1) -> dict[str, float]:
    """Evaluate the boxes of a data set, shifted to the right; ``score=0`` finds none."""
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        rows = info['instances'] if score else []
        boxes = torch.tensor([row['bbox'] for row in rows]).reshape(-1, 4).double()
        metric.process({}, [dict(img_id=info['img_id'], ori_shape=(64, 96), pred_instances=dict(
            bboxes=boxes + torch.tensor([shift, 0, shift, 0]), scores=torch.full((len(rows),), float(score)),
            labels=torch.tensor([row['bbox_label'] for row in rows], dtype=torch.long)))])
    return metric.evaluate(len(dataset))


def check(ann_file: Path, dataset: BaseDataset, **metric) -> tuple[str, str]:
    return check_evaluator(build_metrics(ConfigDict(type='CocoMetric', ann_file=str(ann_file), **metric)), dataset)


def write_results(path: Path, ann_file: Path, shift: float) -> Path:
    rows = json.loads(ann_file.read_text(encoding='utf-8-sig'))['annotations']
    path.write_text(json.dumps([
        dict(image_id=row['image_id'], category_id=row['category_id'], score=1.0,
             bbox=[row['bbox'][0] + shift, *row['bbox'][1:]]) for row in rows]))
    return path


# ---- fewer images

@pytest.mark.parametrize('changes', [
    dict(indices=2), dict(indices=[3, 1]), dict(test_mode=False, filter_cfg=dict(filter_empty_gt=True, min_size=65))])
def test_run_preflight_and_report_evaluate_the_same_images(changes, ann_file, tmp_path):
    edit(ann_file, lambda content: [image.update(height=65) for image in content['images'][:2]])
    changes = {**dict(test_mode=True), **changes}
    dataset = DATASETS.build(config(ann_file) | changes)
    assert len(dataset) == 2
    metric = METRICS.build(dict(type='CocoMetric', ann_file=str(ann_file)))
    assert measure(metric, dataset)['coco/bbox_mAP'] == 1
    shifted = measure(metric, dataset, shift=2)['coco/bbox_mAP']
    assert 0 < shifted < 1
    assert check(ann_file, dataset) == (OK, 'AP 1.0 for the ground truth of 2 images')
    cfg = ConfigDict(val_dataloader=dict(dataset=config(ann_file) | changes))
    results = write_results(tmp_path / 'found.json', ann_file, shift=2)
    reported = evaluate(read_data(cfg, 'val'), results).summary()['AP']
    assert reported == pytest.approx(shifted, abs=6e-4)


def test_next_evaluation_sees_other_images(ann_file):
    metric = METRICS.build(dict(type='CocoMetric', ann_file=str(ann_file)))
    for indices in (2, 4, [3]):
        assert measure(metric, build(ann_file, indices=indices))['coco/bbox_mAP'] == 1
    plain = MMDetCocoMetric(str(ann_file))
    assert measure(plain, build(ann_file), 3) == measure(metric, build(ann_file), 3)


def test_recall_of_proposals_belongs_to_its_image(ann_file):
    """mmdet pairs the images of the file with predictions in the order of the data set."""
    metric = METRICS.build(dict(type='CocoMetric', ann_file=str(ann_file), metric='proposal_fast'))
    assert measure(metric, build(ann_file, indices=[3, 1]))['coco/AR@100'] == 1


def test_metric_that_counts_the_whole_file_is_named(ann_file):
    """A pure-Python config names mmdet's class itself."""
    metric = MMDetCocoMetric(str(ann_file))
    status, message = check_evaluator([metric], build(ann_file, indices=2))
    assert status == WARN and 'may count the boxes of all 4 images' in message
    assert check_evaluator([metric], build(ann_file))[0] == OK


def test_subset_of_frames_with_boxes(ann_file):
    edit(ann_file, lambda content: content.update(annotations=content['annotations'][3:]))
    metric = Pri3DMetric(str(ann_file))
    assert measure(metric, build(ann_file, indices=3))['pri3d/bbox_mAP'] == 1
    assert metric.img_ids == [10, 20]


# ---- files

@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_all_readers_take_a_byte_order_mark(encoding, ann_file, tmp_path):
    results = write_results(tmp_path / 'found.json', ann_file, 0)
    ann_file.write_text(ann_file.read_text(), encoding=encoding)
    dataset = build(ann_file)
    assert {finding.status for finding in check_data(dict(val=dataset))} == {OK}
    for name in ('CocoMetric', 'Pri3DMetric'):
        (value, *_), = [measure(METRICS.build(dict(type=name, ann_file=str(ann_file))), dataset).values()]
        assert value == 1
    assert check(ann_file, dataset)[0] == OK
    cfg = ConfigDict(val_dataloader=dict(dataset=config(ann_file)))
    assert evaluate(read_data(cfg, 'val'), results).summary()['AP'] == 1
    assert 'no picture' not in make_data_page([ann_file], tmp_path / 'page.html')


@pytest.mark.parametrize('text, message', [('{', 'not a JSON file'), ('[]', 'not a COCO file: it holds a list')])
def test_metric_names_a_file_that_it_cannot_read(text, message, ann_file):
    ann_file.write_text(text)
    with pytest.raises(UserError, match=f'val.json: {message}'):
        METRICS.build(dict(type='CocoMetric', ann_file=str(ann_file)))


def test_image_ids_are_timestamps_of_microseconds(ann_file, tmp_path):
    def stamp(content):
        for table, field in (('images', 'id'), ('annotations', 'image_id')):
            for row in content[table]:
                row[field] += 1_795_000_000_000_000

    edit(ann_file, stamp)
    results = write_results(tmp_path / 'found.json', ann_file, 0)
    assert evaluate(read_data(ConfigDict(val_dataloader=dict(dataset=config(ann_file))), 'val'), results).summary()[
        'AP'] == 1
    assert check(ann_file, build(ann_file))[0] == OK


def test_categories_of_one_name_are_refused(ann_file):
    edit(ann_file, lambda content: content['categories'][1].update(name='cup'))
    with pytest.raises(UserError, match=r"val.json: names of categories have to differ; 'cup' occurs twice \(ids 1, 2"):
        read_annotations(ann_file, ann_file)


# ---- no detection, limits

def test_no_detection_is_an_ap_of_0(ann_file):
    for metric, prefix in ((METRICS.build(dict(type='CocoMetric', ann_file=str(ann_file))), 'coco'),
                           (Pri3DMetric(str(ann_file)), 'pri3d')):
        assert measure(metric, build(ann_file), score=0)[f'{prefix}/bbox_mAP'] == 0
    assert measure(Pri3DMetric(str(ann_file)), build(ann_file), score=0.5)['pri3d/bbox_mAP_50'] == 0


@pytest.mark.parametrize('changes, status', [
    (dict(proposal_nums=(1, 10, 100)), OK), (dict(proposal_nums=(1, 10, 300)), FAIL),
    (dict(proposal_nums=(100,)), FAIL), (dict(proposal_nums=(1, 10, 300), metric_items=['mAP_50']), OK),
    (dict(proposal_nums=(10,), metric='proposal_fast'), OK),
    (dict(metric=['bbox', 'segm']), OK), (dict(metric_items=['mAP_50']), OK)])
def test_settings_of_the_metric(changes, status, ann_file, tmp_path):
    found, message = check(ann_file, build(ann_file), outfile_prefix=str(tmp_path / 'kept'), **changes)
    assert found == status, message
    assert ('proposal_nums is' in message) == (status == FAIL)
    assert not list(tmp_path.glob('kept*')), 'the files of the run are not touched'


def test_more_boxes_than_ap_counts(ann_file):
    def crowd(content):
        first = content['images'][0]['id']
        content['annotations'] += [dict(
            id=1000 + number, image_id=first, category_id=1, bbox=[number % 30 * 3, number // 30 * 10, 2, 8], area=16,
            iscrowd=0) for number in range(149)]

    edit(ann_file, crowd)
    status, message = check(ann_file, build(ann_file))
    assert status == WARN and '1 images have more boxes of a class than the 100 detections' in message
    assert '(up to 150); compare bbox_mAP_50, which counts 1000' in message and 'differ' not in message

    dataset = build(ann_file)  # which then differs from the file
    edit(ann_file, lambda content: [row.update(bbox=[0, 0, 5, 5]) for row in content['annotations'][:9]])
    status, message = check(ann_file, dataset)
    assert status == FAIL and '100 detections' in message and 'differ in boxes' in message


@pytest.mark.parametrize('change, reason', [
    (dict(ignore=1), 'marked "ignore"'), (dict(area=0), 'with "area" 0 or less'),
    (dict(bbox=[5, 5, 0.8, 20]), 'thinner than a pixel'), (dict(bbox=[200, 5, 10, 10]), 'outside the image')])
def test_boxes_that_only_the_evaluation_counts(change, reason, ann_file):
    edit(ann_file, lambda content: [row.update(change) for row in content['annotations'][::6]])
    status, message = check(ann_file, build(ann_file))
    assert status == WARN and f'leaves out 2 boxes {reason}, which count as missed' in message
    assert float(message.split('AP ')[1].split()[0]) == pytest.approx(np.mean([0.5, 1, 1]), abs=0.01)


@pytest.mark.parametrize('change, reason', [
    (dict(ignore=1), 'marked "ignore"; mmdet leaves out boxes with the field "ignore"'),
    (dict(area=0), 'with "area" 0 or less; mmdet leaves out boxes without area: set field "area" to width')])
def test_data_without_a_usable_box_says_why(change, reason, ann_file):
    edit(ann_file, lambda content: [row.update(change) for row in content['annotations']])
    with pytest.raises(UserError, match=f'none of 12 boxes can be used: 12 {reason}'):
        build(ann_file)
