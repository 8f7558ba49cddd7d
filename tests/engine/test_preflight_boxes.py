"""What preflight says about boxes of whole objects, without area and marked "ignore", and which checks it ignores."""

import json
import sys

import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

from deit_detr.engine.start import preflight
from deit_detr.engine.start.data import check_data
from deit_detr.engine.start.findings import FAIL, OK, WARN, Finding, mark_ignored, require
from deit_detr.engine.start.preflight import CHECKS, PreflightHook, check_config
from deit_detr.errors import UserError
from tests.helpers.drawn_coco import draw_coco
from tests.helpers.paths import REPO

RECIPE = REPO / 'projects/deit_detr/configs/lw-detr_deit-tiny_1xb4-16e_mini-scannet.py'


def whole_objects(row, number):
    """Begin half of the boxes left of or above their image, as the full bodies of CrowdHuman do."""
    if number % 2:
        side = number % 4 // 2
        row['bbox'][side] -= 60
        row['bbox'][side + 2] += 60


def corners(row, number):
    left, top, width, height = row['bbox']
    row['bbox'] = [left, top, left + width, top + height]


def corners_and_one_outside(row, number):
    corners(row, number)
    row['bbox'][0] -= 40 * (number == 0)


def no_area(row, number):
    row['area'] *= number % 3 > 0


def marked(row, number):
    row['ignore'] = number % 3 == 0


@pytest.mark.parametrize('change, status, text', [
    (whole_objects, WARN, 'beyond the image (annotation 2); field "bbox" is [left, top, width, height] in pixels; '
                          'training clips boxes to their images, the evaluation does not'),
    (corners, FAIL, 'more than a pixel beyond the image'),
    (corners_and_one_outside, FAIL, 'more than a pixel beyond the image'),
    (no_area, FAIL, '4 with "area" 0 or less (annotation 1); mmdet leaves out boxes without area: set field "area"'),
    (marked, WARN, '4 marked "ignore" (annotation 1); mmdet leaves out'),
    (lambda row, number: None, OK, 'all 12 lie in their images'),
])
def test_boxes(change, status, text, tmp_path):
    init_default_scope('mmdet')
    draw_coco(tmp_path / 'val.json', tmp_path / 'val', [dict(id=1, name='cup')])
    content = json.loads((tmp_path / 'val.json').read_text())
    for number, row in enumerate(content['annotations']):
        change(row, number)
    (tmp_path / 'val.json').write_text(json.dumps(content))
    dataset = DATASETS.build(dict(
        type='CheckedCocoDataset', ann_file=str(tmp_path / 'val.json'), data_prefix=dict(img=f'{tmp_path}/val/'),
        metainfo=dict(classes=('cup',)), pipeline=[], test_mode=True))
    (found,) = [finding for finding in check_data(dict(val=dataset)) if finding.check == 'val boxes']
    assert found.status == status and text in found.message, found


@pytest.mark.parametrize('text, names', [
    ('("train boxes","val boxes")', ('train boxes', 'val boxes')), ('train/val overlap', ('train/val overlap',)),
    ('memory,disk', ('memory', 'disk'))])
def test_names_of_checks_on_the_command_line(text, names):
    """mmengine removes spaces from the value."""
    hook = PreflightHook(ignore=DictAction._parse_iterable(text))
    assert hook.ignore == names
    require(mark_ignored([Finding(name, FAIL, 'wrong') for name in names], hook.ignore))
    with pytest.raises(UserError, match='evaluator: wrong'):
        require(mark_ignored([Finding('evaluator', FAIL, 'wrong')], hook.ignore))


@pytest.mark.parametrize('ignore', [('train box',), 'all', (3,)])
def test_unknown_names_of_checks_are_refused(ignore):
    with pytest.raises(UserError, match=r'PreflightHook.ignore has \[.*the checks are versions, model fields, '):
        PreflightHook(ignore=ignore)


def test_all_checks_can_be_named(mini_scannet, monkeypatch, tmp_path):
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    cfg = Config.fromfile(RECIPE)
    cfg.work_dir, cfg.model.backbone.init_cfg = str(tmp_path), None
    found = [finding.check for finding in check_config(cfg)]
    cfg.train_dataloader.dataset.pipeline = []
    cfg.model.backbone.arch = 'none'
    cfg.val_dataloader.dataset.ann_file = 'missing.json'
    found += [finding.check for finding in check_config(cfg)]
    monkeypatch.setattr(preflight, 'check_fields', lambda _: (OK, ''))
    found += [finding.check for finding in check_config(cfg)]
    assert {'model', 'train/val overlap', 'disk'} < set(found) <= set(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize('ignore, status, shown', [(('val boxes',), 0, 'ignored'), (('train boxes',), 1, 'FAIL')])
def test_tool_ignores_what_the_training_ignores(ignore, status, shown, mini_scannet, monkeypatch, tmp_path, run):
    """The corners of boxes in the place of their size."""
    for split in ('train', 'val'):
        (tmp_path / split).symlink_to(mini_scannet / split)
        content = json.loads((mini_scannet / f'scannet_objdet_{split}.json').read_text())
        for number, row in enumerate(content['annotations'] if split == 'val' else ()):
            corners(row, number)
        (tmp_path / f'scannet_objdet_{split}.json').write_text(json.dumps(content))
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{tmp_path}/')
    cfg = Config.fromfile(RECIPE)
    cfg.model.backbone.init_cfg = None
    cfg.custom_hooks[0].ignore = ignore
    cfg.dump(tmp_path / 'config.py')
    output = run(sys.executable, REPO / 'tools/preflight.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'work',
                 status=status, OMP_NUM_THREADS=1)
    (line,) = [line for line in output.splitlines() if line.startswith('val boxes')]
    assert line.split()[2] == shown and ('FAIL' in output) == bool(status)

    cfg.work_dir, cfg.launcher = str(tmp_path / 'work'), 'none'
    cfg.train_cfg.max_epochs = 0
    if status:
        with pytest.raises(UserError, match='^val boxes: '):
            preflight.build_runner(cfg).train()
    else:
        preflight.build_runner(cfg).train()


def test_unknown_names_in_the_config_are_refused():
    cfg = Config(dict(default_scope='mmdet', custom_hooks=[dict(type='PreflightHook', ignore=('box',))]))
    with pytest.raises(UserError, match='PreflightHook.ignore has'):
        check_config(cfg)
