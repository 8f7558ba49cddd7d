"""Run "Your own data" of docs/data.md: its config, its commands, and every mistake that it says is caught."""

import copy
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from deit_detr.errors import UserError
from tests.helpers.drawn_coco import draw_coco
from tests.helpers.paths import REPO

PAGE = (REPO / 'docs/data.md').read_text().split('## Your own data\n')[1].split('\n## ')[0]
CLASSES = ['cup', 'fork', 'spoon']
#: The documented runs, made small.
SMALL = (
    ' model.backbone.init_cfg=None model.encoder.num_layers=1 model.decoder.num_layers=1 model.num_queries=100'
    ' train_dataloader.num_workers=0 train_dataloader.persistent_workers=False'
    ' val_dataloader.num_workers=0 val_dataloader.persistent_workers=False test_dataloader.num_workers=0'
    ' test_dataloader.persistent_workers=False train_cfg.max_epochs=1 default_hooks.logger.interval=1'
    ' "train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[(128,192)]"'
    ' "train_dataloader.dataset.pipeline.3.transforms.1.2.scales=[(128,192)]"'
    ' "val_dataloader.dataset.pipeline.1.scale=(192,128)" "test_dataloader.dataset.pipeline.1.scale=(192,128)"')


def blocks(language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', PAGE, flags=re.M | re.S)


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> Path:
    """Return a folder with the files of the repository and the data set and config of the page."""
    folder = tmp_path_factory.mktemp('own') / 'deit-detr'
    (folder / 'configs').mkdir(parents=True)
    for name in ('projects', 'tools', 'configs/_base_'):
        (folder / name).symlink_to(REPO / name)
    (folder / 'configs/cutlery.py').write_text(blocks('python')[1])
    # ids with gaps that begin at 0, as annotation tools write them
    categories = [dict(id=i, name=name) for i, name in zip((0, 4, 7), CLASSES, strict=True)]
    for split in ('train', 'val'):
        draw_coco(folder / f'data/cutlery/{split}.json', folder / 'data/cutlery' / split, categories)
    return folder


@pytest.fixture
def own(checkout, tmp_path, monkeypatch) -> Path:
    """Change to a copy of that folder, to make mistakes in."""
    shutil.copytree(checkout / 'data', tmp_path / 'data')
    (tmp_path / 'configs').mkdir()
    for name in ('projects', 'tools', 'configs/_base_'):
        (tmp_path / name).symlink_to(REPO / name)
    shutil.copy(checkout / 'configs/cutlery.py', tmp_path / 'configs')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_documented_commands_train_and_test(checkout, run):
    show, training, evaluation = [
        line for block in blocks('bash') for line in block.replace('\\\n', ' ').splitlines()]

    printed = run('bash', '-c', show, cwd=checkout)
    assert f'classes = {printed.strip()} ' in blocks('python')[1]

    log = run(*shlex.split(f'{training} --cfg-options {SMALL}'), cwd=checkout)
    assert (checkout / 'work_dirs/cutlery/epoch_1.pth').is_file()
    assert 'Epoch(train) [1][2/2]' in log, '4 images in batches of 2'
    classifiers = [
        value for key, value in torch.load(
            checkout / 'work_dirs/cutlery/epoch_1.pth', weights_only=True)['state_dict'].items()
        if 'cls_branches' in key and key.endswith('bias')]
    assert classifiers and all(value.shape == (3,) for value in classifiers)

    evaluation = evaluation.replace('epoch_12', 'epoch_1')
    log = run(*shlex.split(f'{evaluation} --cfg-options {SMALL}'), cwd=checkout)
    assert all(f'coco/{name}_precision' in log for name in CLASSES) and 'coco/bbox_mAP: ' in log
    assert len(list(checkout.glob('work_dirs/cutlery/*/pictures/**/*.jpg'))) == 4


def test_longer_schedule_fits_into_the_config(own):
    config = own / 'configs/cutlery.py'
    config.write_text(config.read_text() + blocks('python')[2])
    cfg = Config.fromfile(config)
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == 100
    assert cfg.param_scheduler[-1].type == 'MultiStepLR'


def build_datasets() -> list[CocoDataset]:
    cfg = Config.fromfile('configs/cutlery.py')
    init_default_scope(cfg.default_scope)
    return [DATASETS.build(copy.deepcopy(cfg[f'{name}_dataloader'].dataset)) for name in ('train', 'val', 'test')]


def edit_config(old: str, new: str) -> None:
    path = Path('configs/cutlery.py')
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def edit_json(name: str, edit) -> None:
    """Change the content of an annotation file in place by ``edit``."""
    path = Path('data/cutlery', name)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize('recipe', [
    'dino_deit-tiny_8xb2-12e_coco', 'detr_deit-tiny_8xb1-150e_scannet', 'detr-fast_deit-tiny_8xb1-150e_scannet',
    'dino_deit-tiny_1xb4-8e_mini-scannet'])
def test_config_over_other_recipes_gives_the_labels_of_the_file(own, recipe):
    edit_config('dino_deit-tiny_8xb2-12e_coco', recipe)
    label_of = {0: 0, 4: 1, 7: 2}
    for dataset, split in zip(build_datasets(), ('train', 'val', 'val'), strict=True):
        assert dataset.metainfo['classes'] == tuple(CLASSES)
        annotations = json.loads(Path(f'data/cutlery/{split}.json').read_text())['annotations']
        labels = [box['bbox_label'] for i in range(len(dataset)) for box in dataset.get_data_info(i)['instances']]
        assert labels == [label_of[annotation['category_id']] for annotation in annotations]
    cfg = Config.fromfile('configs/cutlery.py')
    assert cfg.model.bbox_head.num_classes == 3
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == 'data/cutlery/val.json'


@pytest.mark.parametrize('old, new, message', [
    ("'fork'", "'frok'", r'train.json: field "categories" .*3 classes.*missing \[\'frok\'\], unexpected \[\'fork\'\]'),
    ("'cup', 'fork'", "'fork', 'cup'", r"train.json: .*other order: \['cup', 'fork', 'spoon'\]"),
    (", 'spoon'", '', r"train.json: .*2 classes.*unexpected \['spoon'\]"),
    ("('cup', 'fork', 'spoon')", "('cup')", "metainfo.classes is the text 'cup'; one class needs a comma"),
    ('metainfo=dict(classes=classes)', '', 'train.json: .*80 classes'),
    ("'val.json', ", "'valid.json', ", 'valid.json: no such annotation file; set data_root, ann_file'),
    ("img='train/'", "img='images/'", 'data/cutlery/images/000000000000.jpg: no such image.*data_prefix.img'),
])
def test_a_config_that_does_not_fit_the_files(own, old, new, message):
    edit_config(old, new)
    with pytest.raises(UserError, match=message):
        build_datasets()


def from_one(content):
    for annotation in content['annotations']:
        annotation['category_id'] += 1


def unknown_image(content):
    content['images'].pop()


def ids_from_zero(content):
    for annotation in content['annotations']:
        annotation['id'] -= 1


def same_image_twice(content):
    content['images'].append(content['images'][0])


def no_crowd(content):
    del content['annotations'][3]['iscrowd']


def relative_boxes(content):
    for annotation in content['annotations']:
        annotation['bbox'] = [number / 96 for number in annotation['bbox']]


def other_order(content):
    content['categories'].reverse()


def only_annotations(content):
    del content['images']


@pytest.mark.parametrize('edit, message', [
    (from_one, r'field "category_id" of the annotations has 1, 5, 8, which is not in categories: .* 0, 4, 7'),
    (unknown_image, r'field "image_id" of the annotations has 30, which is not in images'),
    (ids_from_zero, r'ids of annotations must not be 0'),
    (same_image_twice, r'ids of images have to differ; these do not: 0'),
    (no_crowd, r'field "iscrowd" is missing in 1 of 12 annotations'),
    (relative_boxes, r'none of 12 boxes can be used: 12 thinner than a pixel; .*in pixels'),
    (other_order, r'other order: \[\'spoon\', \'fork\', \'cup\'\]'),
    (only_annotations, r'not a COCO detection file'),
], ids=lambda value: getattr(value, '__name__', ''))
def test_annotation_files_that_would_be_misread(own, edit, message):
    edit_json('val.json', edit)
    with pytest.raises(UserError, match=f'val.json: .*{message}'):
        build_datasets()


def test_truncated_annotation_file(own):
    path = Path('data/cutlery/train.json')
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match='train.json: not a JSON file'):
        build_datasets()


def test_log_counts_boxes_left_out_and_beyond(own):
    def corners_and_a_thin_box(content):
        for annotation in content['annotations']:
            left, top, width, height = annotation['bbox']
            annotation['bbox'] = [left, top, left + width, top + height]
        content['annotations'][0]['bbox'] = [5, 5, 0.5, 20]

    edit_json('train.json', corners_and_a_thin_box)
    MMLogger.get_instance('own', log_file='own.log')  # the current one from now on
    build_datasets()
    log = Path('own.log').read_text()
    assert 'train.json: 1 of 12 boxes left out' in log
    assert re.search(r'WARNING - .*train.json: [1-9]\d* of 12 boxes reach beyond', log)


def test_any_number_of_classes_has_colours():
    metainfo = DATASETS.get('CheckedCocoDataset')._load_metainfo(dict(classes=tuple(map(str, range(365)))))
    assert len(metainfo['palette']) == 365
    assert len(set(metainfo['palette'])) > 300
    json.dumps(metainfo['palette'])  # plain numbers: a checkpoint with others is not read with weights_only


def build_runner(**options) -> Runner:
    cfg = Config.fromfile('configs/cutlery.py')
    words = shlex.split(SMALL)
    cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in (w.split('=', 1) for w in words)})
    cfg.merge_from_dict(options)
    cfg.work_dir, cfg.launcher = 'work_dir', 'none'
    return Runner.from_cfg(cfg)


@pytest.mark.slow
def test_all_fields_that_disagree_are_named(own):
    edit_json('val.json', other_order)
    shutil.copytree('data/cutlery', 'data/other')
    edit_json('../other/val.json', lambda content: content['categories'].pop())
    runner = build_runner(**{
        'model.bbox_head.num_classes': 80, 'val_dataloader.dataset.metainfo.classes': ('spoon', 'fork', 'cup'),
        'val_evaluator.ann_file': 'data/other/val.json'})
    with pytest.raises(UserError) as error:
        runner.train()
    message = str(error.value)
    assert 'train_dataloader.dataset.metainfo.classes has 3 (cup, fork, spoon), but' in message
    assert 'val_dataloader.dataset.metainfo.classes has 3 (spoon, fork, cup); ' in message
    assert 'val_evaluator.ann_file has 2 (spoon, fork); ' in message
    assert 'model.bbox_head.num_classes is 80' in message and 'dn_cfg' not in message


def test_checkpoint_of_other_classes_is_not_tested(own):
    torch.save(dict(state_dict={}, meta=dict(dataset_meta=dict(classes=['fork', 'cup', 'spoon']))), 'other.pth')
    with pytest.raises(UserError, match=r'on 3 \(fork, cup, spoon\), but test_dataloader.* has 3 \(cup, fork, spoon'):
        build_runner(load_from='other.pth').test()


def test_training_starts_from_a_checkpoint_of_other_classes(own, capfd):
    other = build_runner(**{'model.bbox_head.num_classes': 5}).model
    torch.save(dict(state_dict=other.state_dict(), meta=dict(dataset_meta=dict(classes=tuple('abcde')))), 'other.pth')
    runner = build_runner()
    assert len(runner.train_loop.dataloader) == 2  # built, so that this run is one of training
    runner.load_checkpoint('other.pth')
    output = capfd.readouterr().out
    (fresh,) = re.findall(r'tensors depend on the classes and start fresh \((.*?)\)', output)
    shapes = {key: value.shape for key, value in runner.model.state_dict().items()}
    assert fresh.split(', ') == [key for key, value in other.state_dict().items() if value.shape != shapes[key]]
    assert '0 of 3 classes keep their rows. 3 of 3 start fresh: cup, fork, spoon' in output


@pytest.mark.slow
def test_mistake_on_the_command_line_is_one_line(own, run):
    output = run(
        'python', 'tools/train.py', 'configs/cutlery.py', '--cfg-options', *shlex.split(SMALL),
        'model.bbox_head.num_classes=4', cwd=own, status=2)
    (error,) = [line for line in output.splitlines() if line.startswith('error: ')]
    assert 'model.bbox_head.num_classes is 4' in error and '3 (cup, fork, spoon)' in error
    assert 'Traceback' not in output
    assert not list(own.glob('work_dirs/**/*.pth'))
