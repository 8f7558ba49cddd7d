"""Evaluation of fewer images than the file has, of files of any encoding, of no detection, and of very many boxes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from deit_detr.datasets.coco_file import read_annotations
from deit_detr.engine.start.classes import check_classes
from deit_detr.engine.start.data import check_data
from deit_detr.engine.start.evaluator import build_metrics, check_evaluator
from deit_detr.engine.start.findings import FAIL, OK, WARN
from deit_detr.errors import UserError
from deit_detr.evaluation.detections import evaluate, read_data
from deit_detr.evaluation.pri3d import Pri3DMetric
from deit_detr.pages.data_page import make_data_page
from deit_detr.pages.evaluated_run import EvaluatedRun, evaluate_run
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


def test_images_that_are_evaluated_twice_are_named(ann_file, caplog):
    """The detections of all results of an image count together, so that the truth itself gets a low AP."""
    twice = DATASETS.build(dict(type='RepeatDataset', times=2, dataset=config(ann_file)))
    metric = METRICS.build(dict(type='CocoMetric', ann_file=str(ann_file)))
    MMLogger.get_current_instance().addHandler(caplog.handler)
    assert measure(metric, twice)['coco/bbox_mAP'] < 1
    MMLogger.get_current_instance().removeHandler(caplog.handler)
    assert '4 results are of an image that has others' in caplog.text
    for dataset in (twice, DATASETS.build(dict(type='ConcatDataset', datasets=[config(ann_file)] * 2))):
        status, message = check(ann_file, dataset)
        assert status == FAIL and 'several images of one id, by RepeatDataset or by files that are joined' in message


def test_evaluators_of_every_form_are_checked(ann_file, tmp_path):
    draw_coco(tmp_path / 'more.json', tmp_path / 'more', [
        dict(id=number, name=name) for number, name in enumerate(CLASSES, 1)], number=2)
    metric = dict(type='CocoMetric', ann_file=str(ann_file))
    for evaluator in (metric, [metric, dict(type='DumpDetResults', out_file_path='found.pkl')],
                      dict(type='Evaluator', metrics=metric), dict(metrics=[metric, dict(metric, prefix='b')])):
        assert check_evaluator(build_metrics(ConfigDict(e=evaluator).e), build(ann_file)) == (
            OK, 'AP 1.0 for the ground truth of 4 images')
    other = dict(metric, ann_file=str(tmp_path / 'more.json'))
    both = DATASETS.build(dict(type='ConcatDataset', datasets=[config(ann_file), dict(
        config(ann_file), ann_file=other['ann_file'], data_prefix=dict(img=f'{tmp_path}/more/'))]))
    cfg = ConfigDict(type='MultiDatasetsEvaluator', dataset_prefixes=['a', 'b'], metrics=[metric, other])
    assert check_evaluator(build_metrics(cfg), both)[0] == OK
    cfg.metrics = [other, metric]
    assert check_evaluator(build_metrics(cfg), both)[0] == FAIL
    assert check_evaluator(build_metrics(None), both)[1] == 'no COCO metric in val_evaluator'


def test_evaluator_without_a_file_needs_the_boxes_of_the_data_set(ann_file):
    metrics = build_metrics(ConfigDict(type='CocoMetric'))
    for meta_keys, expected in ((('img_id',), FAIL), (('img_id', 'instances'), OK)):
        dataset = DATASETS.build(config(ann_file) | dict(pipeline=[dict(type='PackDetInputs', meta_keys=meta_keys)]))
        status, message = check_evaluator(metrics, dataset)
        assert status == expected and ('has no ann_file: set it, or add' in message) == (status == FAIL)


@pytest.mark.parametrize('classes, status', [
    (CLASSES, OK), (('fork',), OK), (('cup', 'spoon'), OK), (('spoon', 'cup'), FAIL), (('cup', 'knife'), FAIL)])
def test_classes_of_the_file_that_are_not_trained(classes, status, ann_file):
    """mmdet trains on some classes of a file and evaluates these; it numbers them in the file's order."""
    dataset = DATASETS.build(config(ann_file) | dict(type='CocoDataset', metainfo=dict(classes=classes)))
    metrics = build_metrics(ConfigDict(type='CocoMetric', ann_file=str(ann_file)))
    found, message = check_classes(dict(val=dataset), dict(val=metrics), ConfigDict(num_classes=len(classes)))
    assert found == status and ('but val_evaluator.ann_file has' in message) == (status == FAIL)
    if status == OK:
        assert check_evaluator(metrics, dataset)[0] == OK
        metric = METRICS.build(dict(type='CocoMetric', ann_file=str(ann_file)))
        assert measure(metric, dataset)['coco/bbox_mAP'] == 1
        results = write_results(ann_file.with_name('found.json'), ann_file, 0)
        cfg = ConfigDict(val_dataloader=dict(dataset=config(ann_file) | dict(
            type='CocoDataset', metainfo=dict(classes=classes))))
        evaluation = evaluate(read_data(cfg, 'val'), results)
        assert evaluation.classes == list(classes) and evaluation.summary()['AP'] == 1


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


@pytest.mark.parametrize('proposal_nums', [None, (1, 10, 100), (100, 120, 200)])
def test_log_report_and_preflight_count_as_many_detections(proposal_nums, ann_file, tmp_path, caplog):
    """pycocotools' AP counts 100 detections for any limits, the others the last limit."""
    def crowd(content):
        content['annotations'] += [dict(
            id=1000 + number, image_id=content['images'][0]['id'], category_id=1, area=16, iscrowd=0,
            bbox=[number % 30 * 3, number // 30 * 10, 2, 8]) for number in range(149)]

    edit(ann_file, crowd)
    settings = dict(type='CocoMetric', ann_file=str(ann_file), classwise=True)
    settings |= dict(proposal_nums=proposal_nums) if proposal_nums else {}
    dataset = build(ann_file)
    with caplog.at_level('INFO', 'mmengine'):
        MMLogger.get_current_instance().addHandler(caplog.handler)
        logged = measure(METRICS.build(settings), dataset)
        MMLogger.get_current_instance().removeHandler(caplog.handler)
    last = proposal_nums[-1] if proposal_nums else 1000
    assert logged['coco/bbox_mAP'] == pytest.approx(np.mean([100 / 153, 1, 1]), abs=0.01)
    assert logged['coco/bbox_mAP_50'] == (logged['coco/bbox_mAP'] if last == 100 else 1)
    text = f'detections of a class in an image; AP50, AP75, AP by size and AP by class count {last}: 1 times'
    assert (text in caplog.text) == (last != 100)

    results = write_results(tmp_path / 'found.json', ann_file, 0)
    run = EvaluatedRun(SimpleNamespace(folder=tmp_path, missing=[], config=Config(dict(
        val_dataloader=dict(dataset=config(ann_file)), val_evaluator=settings))))
    evaluate_run(run, None, results, tmp_path / 'kept.json')
    reported = run.evaluation.summary()
    for name, key in (('AP', 'mAP'), ('AP50', 'mAP_50'), ('AP75', 'mAP_75'), ('AP small', 'mAP_s')):
        assert reported[name] == pytest.approx(logged[f'coco/bbox_{key}'], abs=6e-4), name
    for name, values in zip(CLASSES, run.evaluation.class_ap(), strict=True):
        assert values[0] == pytest.approx(logged[f'coco/{name}_precision'], abs=6e-4)
    assert any(text in line for line in run.training.missing) == (last != 100)
    assert run.evaluation.matches.gt_found.sum() == (161 if last != 100 else 111)

    status, message = check(ann_file, dataset, **{'proposal_nums': settings.get('proposal_nums', (100, 300, 1000))})
    assert status == WARN and f'AP {logged["coco/bbox_mAP"]} to' in message
    assert ('set val_evaluator.proposal_nums=(100,300,1000)' if last == 100 else
            f'bbox_mAP_50, which counts {last}') in message


@pytest.mark.parametrize('changes, text', [
    (dict(), None), (dict(iou_thrs=np.linspace(.5, .95, 10).tolist()), None), (dict(iou_thrs=[0.5]), 'iou_thrs'),
    (dict(type='Pri3DMetric'), 'type Pri3DMetric'), (dict(type=MMDetCocoMetric), None),
    (dict(ann_file='moved.json'), None), (dict(ann_file='other.json'), 'ann_file'), (dict(proposal_nums=[100]), None)])
@pytest.mark.parametrize('put', [lambda x: x, lambda x: [dict(type='DumpDetResults', out_file_path='a.pkl'), x],
                                 lambda x: dict(type='Evaluator', metrics=[x])])
def test_report_says_why_the_log_has_other_numbers(put, changes, text, ann_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('other.json').write_text(ann_file.read_text() + ' ')
    metric = dict(type='CocoMetric', ann_file=str(ann_file)) | changes
    run = EvaluatedRun(SimpleNamespace(folder=tmp_path, missing=[], config=ConfigDict(
        val_dataloader=dict(dataset=config(ann_file)), val_evaluator=put(metric))))
    evaluate_run(run, None, write_results(tmp_path / 'found.json', ann_file, 0), tmp_path / 'kept.json')
    assert run.evaluation.summary()['AP'] == 1
    found = [line for line in run.training.missing if 'The log has other numbers' in line]
    assert len(found) == (text is not None) and (not text or f'val_evaluator.{text}' in found[0])


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
