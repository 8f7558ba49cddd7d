"""Folders that cannot be prepared get a sentence, and nothing is written; hostile files do no harm."""

import json
import os
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from deit_detr.errors import UserError
from tests.helpers.labelled_folders import LAYOUTS, coco, coco_content, draw, one_split, run_prepare, write, yolo
from tests.helpers.paths import REPO

#: Makes the training of the written config small.
SMALL = (
    'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False', 'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False', 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1',
    'train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[(128,192)]',
    'train_dataloader.dataset.pipeline.3.transforms.1.2.scales=[(128,192)]',
    'val_dataloader.dataset.pipeline.1.scale=(192,128)')


def nothing(root):
    root.mkdir()


def images_only(root):
    draw(root / 'a.jpg', 'a')


def pipes(root):
    images_only(root)
    for name in ('b.jpg', 'a.json', 'a.xml', 'data.yaml'):
        os.mkfifo(root / name)  # nobody writes: a reader would wait


def archive(root):
    write(root / 'data.zip', 'PK')


def parquet(root):
    write(root / 'data/train-00000.parquet', 'PAR1')


def scannet(root):
    draw(root / 'scene0000_00/color/000000.jpg', 'a')
    draw(root / 'scene0000_00/label/000000.png', 'a')
    write(root / 'scene0000_00/pose/000000.txt', '1 0 0 0')


def classification(root):
    for name in ('cup', 'fork'):
        draw(root / name / 'a.jpg', name)


def yolo_without_labels(root):
    yolo(root)
    for path in root.glob('*/labels'):
        shutil.rmtree(path)


def video(root):
    LAYOUTS['cvat'](root)
    write(root / 'annotations.xml', '<annotations><track id="0" label="cup"/></annotations>')


def other_json(root):
    images_only(root)
    write(root / 'package.json', '{"name": "cup", "shapes": 3}')
    write(root / 'list.json', '[1, {"a": 2}]')
    write(root / 'broken.json', '{"images": [')


def entities(root):
    images_only(root)
    write(root / 'a.xml', '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><filename>&e;</filename>'
          '</annotation>')


def yaml_that_runs_code(root):
    images_only(root)
    write(root / 'data.yaml', 'names: !!python/object/apply:os.system ["touch ran"]')
    write(root / 'a.txt', '0 0.5 0.5 0.5 0.5')


def no_usable_box(root):
    yolo(root)
    for path in root.rglob('labels/**/*.txt'):
        path.write_text('9 0.5 0.5 0.1 0.1')


def two_formats(root):
    yolo(root / 'a')
    coco(root / 'b')


def twice(root):
    coco(root)
    write(root / 'annotations/instances_train2017_v2.json', json.dumps(coco_content('train')))


@pytest.mark.parametrize('make, message', [
    (nothing, 'not YOLO with data.yaml, .*: it holds no files'),
    (images_only, 'it holds 1 .jpg; there are images only, and no labels'),
    (pipes, 'it holds 1 .jpg; there are images only, and no labels'),
    (archive, 'unpack the archives first'),
    (parquet, 'images and labels have to be single files'),
    (scannet, 'for ScanNet use tools/dataset_converters/scannet2coco.py'),
    (classification, 'there are images only, and no labels'),
    (yolo_without_labels, 'YOLO needs a label file for an image'),
    (video, '"CVAT for video": export the task as "CVAT for images 1.1"'),
    (other_json, 'it holds 3 .json, 1 .jpg'),
    (entities, 'not YOLO .* it holds 1 .jpg, 1 .xml'),
    (yaml_that_runs_code, 'not YOLO'),
    (no_usable_box, 'no box for train can be used in YOLO .*boxes of a class number that is not listed: 5'),
    (two_formats, r'holds COCO and YOLO \(a/data.yaml\); choose one with --format coco or yolo'),
    (twice, 'a.jpg is labelled twice in COCO'),
])
def test_other_folders_get_a_sentence_and_nothing_is_written(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / 'in')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match=message) as error:
        run_prepare(tmp_path / 'in')
    assert '\n' not in str(error.value)
    assert sorted(tmp_path.rglob('*')) == before


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    yolo(tmp_path / 'in')
    (tmp_path / 'in/private').mkdir()
    true, locked = os.scandir, set()

    def scandir(path):
        if not isinstance(path, int) and os.path.relpath(path, tmp_path) in locked:
            raise PermissionError(13, 'Permission denied', str(path))
        return true(path)

    monkeypatch.setattr(os, 'scandir', scandir)  # modes do not hold for root
    locked.add('in/private')
    assert 'folders that cannot be read: 1, e.g. private' in run_prepare(tmp_path / 'in').summary
    for folders, message in ((('in/train', 'in/valid'), 'it holds 1 .yaml; private cannot be read'),
                             (('in',), 'in: cannot be read .Permission denied')):
        locked.update(folders)
        with pytest.raises(UserError, match=message):
            run_prepare(tmp_path / 'in', tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_folders_of_results_that_are_refused(tmp_path):
    yolo(tmp_path / 'in')
    write(tmp_path / 'out/train.json', 'mine')
    for folder, message in ((tmp_path / 'out', 'holds other files'), (tmp_path / 'in', 'another folder than')):
        with pytest.raises(UserError, match=message):
            run_prepare(tmp_path / 'in', folder)
    assert (tmp_path / 'out/train.json').read_text() == 'mine'
    with pytest.raises(UserError, match='no such folder'):
        run_prepare(tmp_path / 'missing', tmp_path / 'new')
    inside = run_prepare(tmp_path / 'in', tmp_path / 'in/results')
    assert run_prepare(tmp_path / 'in', tmp_path / 'in/results').summary == inside.summary


@pytest.mark.parametrize('failing', ['train.json', 'val.json', 'out.py'])
def test_a_failure_leaves_no_file(tmp_path, monkeypatch, failing):
    yolo(tmp_path / 'in')
    true = Path.write_text

    def full(self, *args, **kwargs):
        if self.name == failing:
            raise OSError(28, 'No space left on device', str(self))
        return true(self, *args, **kwargs)

    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(UserError, match=f'{failing}: cannot be written'):
        run_prepare(tmp_path / 'in')
    assert not [path for path in (tmp_path / 'out').rglob('*') if path.is_file()]


def test_strange_names_of_classes_and_folders(tmp_path):
    root = tmp_path / "in 'quoted' {{ fileBasename }}"
    one_split(root, 8)
    names = ["it's", '{{ _base_.model }}']
    write(root / 'data.yaml', json.dumps(dict(names=names)))
    prepared = run_prepare(root)
    cfg = Config.fromfile(prepared.config)
    assert list(cfg.train_dataloader.dataset.metainfo.classes) == names
    assert cfg.train_dataloader.dataset.data_prefix.img == f'{root}/images/'


def test_links_that_go_in_circles_and_aliases_that_explode(tmp_path):
    root = tmp_path / 'in'
    yolo(root)
    os.symlink(root, root / 'train/loop')
    bomb = ''.join(f'{chr(98 + i)}: &{chr(98 + i)} [{", ".join([f"*{chr(97 + i)}"] * 9)}]\n' for i in range(20))
    write(root / 'data.yaml', f'a: &a [x]\n{bomb}names: [spoon, cup, fork]\n')
    write(root / 'README.md', f'---\na: &a [x]\n{bomb}---\n')
    write(root / 'metadata.jsonl', '"objects"')
    assert 'train: 4 images' in run_prepare(root).summary


@pytest.mark.slow
def test_two_commands_from_a_folder_to_a_training(tmp_path, run):
    yolo(tmp_path / 'in')
    recipe = tmp_path / 'recipe.py'  # the preflights need no weights and little time then
    write(recipe, f"_base_ = '{REPO}/projects/deit_detr/configs/dino_deit-tiny_8xb2-12e_coco.py'\n"
          'few = dict(num_layers=1)\n'
          'model = dict(backbone=dict(init_cfg=None), encoder=few, decoder=few, num_queries=100)\n')
    printed = run('python', REPO / 'tools/prepare_data.py', 'in', '--out-dir', 'data/own', '--recipe', recipe)
    assert 'YOLO (data.yaml), 3 classes: spoon, cup, fork' in printed
    assert 'all 5 lie in their images' in printed and ' FAIL ' not in printed
    assert (tmp_path / 'data/own/browse.html').is_file()
    *_, command = printed.strip().splitlines()
    assert command == 'python tools/train.py data/own/own.py'
    log = run('python', REPO / 'tools/train.py', command.split()[-1], '--cfg-options', *SMALL)
    assert 'Epoch(train) [1][2/2]' in log and 'coco/bbox_mAP: ' in log
