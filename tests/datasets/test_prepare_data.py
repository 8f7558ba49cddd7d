"""Labelled folders of other tools become COCO files that training reads, with every box where it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from deit_detr.datasets.formats.prepare import MARK
from tests.helpers.labelled_folders import (
    CLASSES,
    LAYOUTS,
    SIZE,
    TRUTH,
    coco,
    coco_content,
    draw,
    one_split,
    run_prepare,
    write,
    yolo,
)
from tests.helpers.paths import REPO


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


def as_homeobjects(root: Path) -> None:
    """Use the YAML file of HomeObjects-3K: the path is that of another folder, there are no test images."""
    yolo(root)
    write(root / 'data.yaml', 'path: ../datasets/homeobjects-3K # root\ntrain: train/images # 2285\n'
          'val: valid/images\ntest: # none\nnames:\n  0: spoon\n  1: cup\n  2: fork\n')


def with_lists_of_images(root: Path) -> None:
    """Name the images of a split in a text file, by absolute paths of another machine."""
    yolo(root)
    for split in ('train', 'valid'):
        write(root / f'{split}.txt', ''.join(
            f'/content/data/{path.relative_to(root)}\n' for path in sorted((root / split).rglob('*.jpg'))))
    write(root / 'data.yaml', 'train: /content/data/train.txt\nval: /content/data/valid.txt\nnames: [spoon, cup, fork]')


@pytest.mark.parametrize('make', [as_homeobjects, with_lists_of_images])
def test_yaml_files_of_other_machines(tmp_path, make):
    make(tmp_path / 'in')
    prepared = run_prepare(tmp_path / 'in')
    assert {split: sorted(images) for split, images in boxes_by_image(prepared).items()} == {
        split: sorted(Path(name).name for name in images) for split, images in TRUTH.items()}
    assert 'note' not in prepared.summary and 'Left out' not in prepared.summary


def test_doordetect(tmp_path):
    """Images, labels in a folder of their own, and the names that docs/data.md tells to write."""
    page = (REPO / 'docs/data.md').read_text()
    names = page.split("printf '")[1].split("'")[0].replace('\\n', '\n')
    one_split(tmp_path / 'in', 8)
    write(tmp_path / 'in/classes.txt', names)
    (tmp_path / 'in/data.yaml').unlink()
    assert '4 classes: door, handle, cabinet door, refrigerator door' in run_prepare(tmp_path / 'in').summary


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
    for text in ('boxes of a class number that is not listed: 1', 'boxes thinner than a pixel: 1',
                 'boxes outside the image: 1', 'malformed lines: 3, e.g. train/labels/a.txt:6', 'malformed boxes: 1',
                 'images that are truncated: 1, e.g. train/images/b.jpg', 'images that cannot be read (',
                 'images that no label file names: 1, e.g. elsewhere/x.jpg'):
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
    for text in ('images missing, or several of this name: 2', 'boxes of a class number that is not listed: 1',
                 'malformed boxes: 2', 'boxes of an image that is not listed: 1',
                 'has the id 0, which pycocotools takes for "no match"'):
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
    assert 'shapes without a box (polyline): 1' in prepared.summary and '(tag)' in prepared.summary


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
