"""Labelled folders of other tools become COCO files that training reads, with every box where it was."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from deit_detr.datasets.formats.prepare import MARK, prepare
from deit_detr.errors import UserError
from tests.helpers.labelled_folders import CLASSES, LAYOUTS, SIZE, TRUTH, coco, coco_content, draw, write, yolo
from tests.helpers.paths import REPO

RECIPE = REPO / 'projects/deit_detr/configs/dino_deit-tiny_8xb2-12e_coco.py'


def run_prepare(root: Path, out: Path | None = None, **options):
    return prepare(root, out or root.parent / 'out', RECIPE, workers=1, **options)


def boxes_by_image(prepared, splits=('train', 'val')) -> dict[str, dict[str, list]]:
    """Return the boxes that the data sets of the written config give, by split and name of the image."""
    from mmdet.registry import DATASETS

    cfg = Config.fromfile(prepared.config)
    init_default_scope('mmdet')
    found = {}
    for split in splits:
        dataset = DATASETS.build(dict(cfg[f'{split}_dataloader'].dataset, test_mode=True, pipeline=[]))
        assert type(dataset).__name__ == 'CheckedCocoDataset'
        found[split] = {}
        for item in dataset.load_data_list():
            assert Path(item['img_path']).is_file()
            names = dataset.metainfo['classes']
            found[split][Path(item['img_path']).stem.split('-')[-1]] = [
                (names[box['bbox_label']], box['bbox']) for box in item['instances']]
    return found


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_the_same_boxes(tmp_path, layout):
    LAYOUTS[layout](tmp_path / 'in')
    prepared = run_prepare(tmp_path / 'in')

    assert tuple(Config.fromfile(prepared.config).train_dataloader.dataset.metainfo.classes) == tuple(CLASSES)
    found = boxes_by_image(prepared)
    for split, images in TRUTH.items():
        assert set(found[split]) == {Path(name).name for name in images}
        for name, boxes in images.items():
            converted = found[split][Path(name).name]
            assert [label for label, _ in converted] == [label for label, _ in boxes]
            for (_, (x1, y1, x2, y2)), (_, (x, y, w, h)) in zip(converted, boxes, strict=True):
                assert np.abs(np.subtract([x1, y1, x2, y2], [x, y, x + w, y + h])).max() < 0.01
    content = json.loads((tmp_path / 'out/train.json').read_text())
    assert [row['id'] for row in content['annotations']] == [1, 2, 3, 4, 5]
    assert [row['name'] for row in content['categories']] == CLASSES
    assert 'train: 4 images, 1 of them without boxes, 5 boxes' in prepared.summary
    assert 'Left out' not in prepared.summary


def test_results_are_written_again_and_do_not_depend_on_the_layout_or_the_run(tmp_path):
    yolo(tmp_path / 'in')
    first = run_prepare(tmp_path / 'in')
    before = [path.read_bytes() for path in [first.config, *first.ann_files]]
    assert [path.read_bytes() for path in [first.config, *run_prepare(tmp_path / 'in').ann_files]] == before
    assert first.config.read_text().startswith(MARK) and len(first.config.read_text().splitlines()) == 7


def one_split(root: Path, number: int = 40) -> None:
    for index in range(number):
        draw(root / f'images/{index:03d}.png', str(index), (32, 24))
        write(root / f'labels/{index:03d}.txt', f'{index % 2} 0.5 0.5 0.25 0.5')
    write(root / 'data.yaml', 'names: {0: cup, 1: fork}\n')


def test_a_folder_without_splits_is_divided_by_content(tmp_path):
    one_split(tmp_path / 'in')
    prepared = run_prepare(tmp_path / 'in')
    assert 'no split into train and val' in prepared.summary
    found = boxes_by_image(prepared)
    assert len(found['train']) + len(found['val']) == 40 and 4 <= len(found['val']) <= 13
    assert not set(found['train']) & set(found['val'])

    # another name does not change the side, a copy comes to the same side, more images change nothing
    draw(tmp_path / 'in/images/more.png', 'more', (32, 24))
    name = next(iter(found['val']))
    shutil.copy(tmp_path / f'in/images/{name}.png', tmp_path / 'in/images/copy.png')
    again = boxes_by_image(run_prepare(tmp_path / 'in'))
    assert 'copy' in again['val'] and set(found['val']) <= set(again['val'])
    assert set(found['train']) <= set(again['train'])


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    root = tmp_path / 'in'
    yolo(root)
    images = root / 'train/images'
    write(root / 'train/labels/a.txt', '\n'.join([
        '1 0.5 0.5 0.25 0.25', '7 0.5 0.5 0.25 0.25', '1 0.5 0.5 0.001 0.25', '1 3.5 0.5 0.25 0.25',
        '1 0.5 nan 0.25 0.25', '1 0.5', 'cup 1 2 3 4', '1 0.5 0.5 -0.25 0.25', '']))
    (images / 'b.jpg').write_bytes((images / 'b.jpg').read_bytes()[:900])
    (images / 'kitchen/c.jpg').write_bytes(b'no image')
    draw(root / 'elsewhere/x.jpg', 'x')
    summary = run_prepare(root).summary
    for text in ('1 boxes of a class number that is not listed', '1 boxes thinner than a pixel',
                 '1 boxes outside the image', '3 malformed lines, e.g. train/labels/a.txt:6', '1 malformed boxes',
                 '1 images that are truncated, e.g. train/images/b.jpg', '1 images that cannot be read (',
                 '1 images that no label file names, e.g. elsewhere/x.jpg'):
        assert text in summary, (text, summary)
    assert 'train: 2 images, 1 of them without boxes, 1 boxes' in summary


def test_coco_with_missing_images_ids_from_0_and_unknown_ids(tmp_path):
    root = tmp_path / 'in'
    coco(root)
    content = coco_content('train', base=5)
    content['images'].append(dict(id=90, file_name='../../../etc/passwd', width=9, height=9))
    content['images'].append(dict(id=91, file_name='elsewhere/a.jpg', width=96, height=64))
    content['annotations'] += [
        dict(id=70, image_id=0, category_id=99, bbox=[1, 1, 5, 5]),
        dict(id=71, image_id=99, category_id=5, bbox=[1, 1, 5, 5]),
        dict(id=72, image_id=0, category_id=5, bbox=[], segmentation=[[1, 2, 11, 2, 11, 22]]),
        dict(id=73, image_id=0, category_id=5, bbox=[1, 2, 30]), dict(id=74, image_id=0, category_id=5, bbox='big'),
        dict(id=75, image_id=0, category_id=5, bbox=[1, 2, 10, 10], iscrowd=1, area=44)]
    write(root / 'annotations/instances_train2017.json', json.dumps(content))
    summary = run_prepare(root).summary
    for text in ('2 images missing', '1 boxes of a class number that is not listed', '2 malformed boxes',
                 '1 boxes of an image that is not listed', 'has the id 0, which pycocotools takes for "no match"'):
        assert text in summary, (text, summary)
    rows = json.loads((tmp_path / 'out/train.json').read_text())['annotations']
    of_first = [row for row in rows if row['image_id'] == 1]
    assert of_first[2]['bbox'] == [1, 2, 10, 20] and of_first[2]['area'] == 200
    assert of_first[3]['iscrowd'] == 1 and of_first[3]['area'] == 44


def test_classes_that_are_not_listed_come_last(tmp_path):
    LAYOUTS['labelme'](tmp_path / 'in')
    (tmp_path / 'in/labels.txt').write_text('spoon\nfork\n')
    prepared = run_prepare(tmp_path / 'in')
    assert 'not listed come last: cup' in prepared.summary and 'spoon, fork, cup' in prepared.summary
    (tmp_path / 'in/labels.txt').unlink()
    assert '3 classes: cup, fork, spoon' in run_prepare(tmp_path / 'in').summary


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('labelled', ['upright', 'stored'])
def test_photographs_with_an_exif_orientation(tmp_path, orientation, labelled):
    """A box drawn on the photograph as stored, or as shown, encloses the same red area after decoding."""
    import cv2

    root = tmp_path / 'in'
    coco(root)
    upright = np.zeros((60, 80, 3), np.uint8)
    upright[10:30, 5:45] = (255, 0, 0)
    box = [5, 10, 40, 20]
    back = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
            6: Image.ROTATE_90, 7: Image.TRANSVERSE, 8: Image.ROTATE_270}
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(back[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(root / 'train2017/a.jpg', exif=exif, quality=95)
    size = (80, 60)
    if labelled == 'stored':
        if orientation < 5:  # the sizes do not tell: boxes are taken to be upright
            return
        red = np.argwhere(np.asarray(stored)[..., 0] > 128)
        (top, left), (bottom, right) = red.min(0), red.max(0) + 1
        box, size = [int(left), int(top), int(right - left), int(bottom - top)], stored.size
    content = coco_content('train', first=1, base=5)
    content['images'][0].update(width=size[0], height=size[1])
    content['annotations'] = [dict(content['annotations'][0], bbox=box)]
    write(root / 'annotations/instances_train2017.json', json.dumps(content))
    prepared = run_prepare(root)
    assert ('labelled before rotation' in prepared.summary) == (labelled == 'stored')
    x1, y1, x2, y2 = map(round, boxes_by_image(prepared)['train']['a'][0][1])
    decoded = cv2.imread(str(root / 'train2017/a.jpg'))
    assert decoded.shape[:2] == (60, 80) and (decoded[y1 + 1:y2 - 1, x1 + 1:x2 - 1, 2] > 128).all()
    assert (x1, y1, x2, y2) == (5, 10, 45, 30)


def test_turned_boxes_and_ellipses_become_the_rectangle_around_them(tmp_path):
    root = tmp_path / 'in'
    LAYOUTS['cvat'](root)
    text = (root / 'annotations.xml').read_text()
    shapes = ('<box label="cup" xtl="20" ytl="20" xbr="60" ybr="40" rotation="90"/>'
              '<ellipse label="cup" cx="40" cy="30" rx="20" ry="10" rotation="90"/>'
              '<mask label="cup" left="3" top="4" width="5" height="6" rle="1"/>'
              '<polyline label="cup" points="1,2;3,4"/><tag label="cup"/>')
    write(root / 'annotations.xml', text.replace('height="64"></image>', f'height="64">{shapes}</image>', 1))
    prepared = run_prepare(root)
    boxes = [box for _, box in boxes_by_image(prepared)['train']['d']]
    assert np.allclose(boxes, [[30, 10, 50, 50], [30, 10, 50, 50], [3, 4, 8, 10]], atol=0.01)
    assert '1 shapes without a box (polyline)' in prepared.summary and '(tag)' in prepared.summary


def test_a_turned_box_of_label_studio_turns_around_its_first_corner(tmp_path):
    root = tmp_path / 'in'
    LAYOUTS['label_studio'](root)
    tasks = json.loads((root / 'project-1.json').read_text())
    tasks[3]['annotations'][1]['result'] = [dict(
        type='rectanglelabels', original_width=SIZE[0], original_height=SIZE[1],
        value=dict(x=50, y=25, width=25, height=25, rotation=90, rectanglelabels=['cup']))]
    write(root / 'project-1.json', json.dumps(tasks))
    (_, box), = boxes_by_image(run_prepare(root))['train']['d']
    assert np.allclose(box, [48 - 16, 16, 48, 16 + 24], atol=0.01)


def test_polygons_scores_and_keypoints_of_yolo(tmp_path):
    root = tmp_path / 'in'
    yolo(root)
    write(root / 'train/labels/a.txt', '0 0.25 0.25 0.75 0.25 0.5 0.75\n1 0.5 0.5 0.25 0.5 0.97\n')
    boxes = [box for _, box in boxes_by_image(run_prepare(root))['train']['a']]
    assert np.allclose(boxes, [[24, 16, 72, 48], [36, 16, 60, 48]], atol=0.01)
    write(root / 'data.yaml', (root / 'data.yaml').read_text() + 'kpt_shape: [2, 3]\n')
    write(root / 'train/labels/a.txt', '1 0.5 0.5 0.25 0.5 0.1 0.1 2 0.9 0.9 2')
    (_, box), = boxes_by_image(run_prepare(root))['train']['a']
    assert np.allclose(box, [36, 16, 60, 48], atol=0.01)


def test_voc_that_counts_from_0_and_difficult_boxes(tmp_path):
    root = tmp_path / 'in'
    LAYOUTS['voc'](root)
    path = root / 'Annotations/b.xml'
    path.write_text(path.read_text().replace('<xmin>2<', '<xmin>0<').replace('<difficult>0', '<difficult>1'))
    prepared = run_prepare(root)
    assert 'corners count from 0, unlike those of VOC' in prepared.summary
    assert '1 boxes marked "difficult" are regions to ignore' in prepared.summary
    assert boxes_by_image(prepared)['train']['a'][0][1] == [4, 5, 33.5, 25]


def test_a_test_split_is_converted_and_a_split_that_is_missing_is_named(tmp_path):
    root = tmp_path / 'in'
    yolo(root)
    assert 'data.yaml names test: ../test/images, which is not in the folder' in run_prepare(root).summary
    draw(root / 'test/images/t.jpg', 't')
    assert 'test: 1 images, 1 of them without boxes, 0 boxes' in run_prepare(root).summary
    assert len(json.loads((tmp_path / 'out/test.json').read_text())['images']) == 1


def nothing(root):
    root.mkdir()


def images_only(root):
    draw(root / 'a.jpg', 'a')


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
    (archive, 'unpack the archives first'),
    (parquet, 'images and labels have to be single files'),
    (scannet, 'for ScanNet use tools/dataset_converters/scannet2coco.py'),
    (classification, 'there are images only, and no labels'),
    (yolo_without_labels, 'YOLO needs a label file for an image'),
    (video, '"CVAT for video": export the task as "CVAT for images 1.1"'),
    (other_json, 'it holds 3 .json, 1 .jpg'),
    (entities, 'not YOLO .* it holds 1 .jpg, 1 .xml'),
    (yaml_that_runs_code, 'not YOLO'),
    (no_usable_box, 'no box for train can be used in YOLO .*5 boxes of a class number that is not listed'),
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
    assert sum(map(len, boxes_by_image(prepared).values())) == 8


def test_links_that_go_in_circles_and_aliases_that_explode(tmp_path):
    root = tmp_path / 'in'
    yolo(root)
    os.symlink(root, root / 'train/loop')
    bomb = ''.join(f'{chr(98 + i)}: &{chr(98 + i)} [{", ".join([f"*{chr(97 + i)}"] * 9)}]\n' for i in range(20))
    write(root / 'data.yaml', f'a: &a [x]\n{bomb}names: [spoon, cup, fork]\n')
    write(root / 'README.md', f'---\na: &a [x]\n{bomb}---\n')
    write(root / 'metadata.jsonl', '"objects"')
    assert 'train: 4 images' in run_prepare(root).summary


