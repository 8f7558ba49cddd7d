"""The converter against hand-made frames, a slow reference, real photographs, and every kind of bad input."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from deit_detr.errors import UserError
from deit_detr.scannet.classes import scannet_metainfo
from deit_detr.scannet.converter import convert
from deit_detr.scannet.frames import SCALED_NOTE, UNCHECKED_NOTE, find_segments
from tests.helpers.fork_server import start
from tests.helpers.paths import REPO
from tests.helpers.scannet_frames import SCENE, SIZE, SPLITS_DIR, instance_map, run, write_frame


def boxes_of(coco: dict) -> list[tuple]:
    return [(a['category_id'], *a['bbox'], a['area']) for a in coco['annotations']]


def reference_segments(ids: np.ndarray) -> list[tuple]:
    """ScanNet's semantics in the plainest words: value, x, y, width, height, area."""
    result = []
    for value in np.unique(ids):
        y, x = np.nonzero(ids == value)
        result.append((value, x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1, len(x)))
    return result


@given(arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 65535])))
def test_segments_equal_the_reference(ids):
    values, boxes, areas = find_segments(ids)
    assert np.column_stack((values, boxes, areas)).tolist() == [list(map(int, row)) for row in reference_segments(ids)]


def test_value_semantics(tmp_path):
    root = tmp_path / 'frames'
    ids = instance_map(
        v1=(0, 0, 24, 3), v2=(0, 15, 24, 3), v1000=(1, 4, 2, 2), v1001=(4, 4, 3, 2), v40001=(8, 4, 2, 2),
        v39001=(23, 14, 1, 1), v13001=(12, 4, 2, 2))
    ids[8, 3:5] = ids[12, 20] = 3001  # one object in two parts
    write_frame(root, ids)
    coco, summary = run(root)
    assert boxes_of(coco) == [
        (1, 0, 0, 24, 3, 72),
        (2, 0, 15, 24, 3, 71 + 1),
        (1, 1, 4, 2, 2, 4),
        (1, 4, 4, 3, 2, 6),
        (3, 3, 8, 18, 5, 3),
        (39, 23, 14, 1, 1, 1)]
    assert [a['id'] for a in coco['annotations']] == [1, 2, 3, 4, 5, 6]
    assert {(a['image_id'], a['iscrowd']) for a in coco['annotations']} == {(1, 0)}
    assert coco['images'] == [dict(id=1, file_name=f'{SCENE}/color/000000.jpg', width=24, height=18)]
    assert [(c['id'], c['name']) for c in coco['categories']] == list(
        zip(scannet_metainfo()['category_ids'], scannet_metainfo()['classes'], strict=True))
    assert summary.problems == [] and summary.boxes['wall'] == 3


def test_frame_without_boxes_is_kept(root):
    write_frame(root, instance_map(), name='000100')
    coco, summary = run(root)
    assert [image['id'] for image in coco['images']] == [1, 2]
    assert {a['image_id'] for a in coco['annotations']} == {1}
    assert summary.num_empty == 1 and '1 frames without boxes' in str(summary)


def test_frames_are_ordered_by_number(root):
    for name in ('20', '100', '3'):
        write_frame(root, instance_map(), name=name)
    coco, _ = run(root)
    assert [Path(image['file_name']).stem for image in coco['images']] == ['000000', '3', '20', '100']


def test_boxes_and_masks_are_in_jpeg_pixels(tmp_path):
    root = tmp_path / 'frames'
    write_frame(root, instance_map(v1=(0, 0, 24, 3), v5001=(2, 3, 4, 5)), jpeg_size=(72, 36))
    coco, summary = run(root, with_mask=True)
    assert coco['images'][0]['width'] == 72 and coco['images'][0]['height'] == 36
    assert boxes_of(coco) == [(1, 0, 0, 72, 6, 432), (5, 6, 6, 12, 10, 120)]
    mask = mask_utils.decode(coco['annotations'][1]['segmentation'])
    assert mask.shape == (36, 72) and mask.sum() == 120 and mask[6:16, 6:18].all()
    assert summary.notes == {SCALED_NOTE: 1} and SCALED_NOTE in str(summary) and not summary.problems


def test_18_classes_leave_out_stuff_and_small_segments(tmp_path):
    ids = np.zeros((60, 60), np.uint16)
    ids[:20], ids[20:45, :40], ids[45:, :] = 1, 5001, 7001  # 1200, 1000 and 900 px
    ids[20, 50] = 1001
    write_frame(tmp_path / 'frames', ids)
    coco, summary = run(tmp_path / 'frames', num_classes=18)
    assert boxes_of(coco) == [(5, 0, 20, 40, 25, 1000)] and len(coco['categories']) == 18
    assert summary.num_small == 1
    coco, _ = run(tmp_path / 'frames', num_classes=18, min_area=0)
    assert [box[0] for box in boxes_of(coco)] == [5, 7]
    coco, _ = run(tmp_path / 'frames', min_area=1000)
    assert [box[0] for box in boxes_of(coco)] == [1, 5]


@pytest.mark.slow
def test_photographs(indoor_photos, tmp_path):
    summaries = convert(indoor_photos, tmp_path / 'two', SPLITS_DIR, workers=2, with_mask=True)
    assert [(s.num_frames, s.boxes.total(), s.problems) for s in summaries] == [(24, 117, []), (28, 127, [])]

    kept = scannet_metainfo()['category_ids']
    for summary in summaries:
        coco = COCO(summary.json_path)
        images = coco.loadImgs(coco.getImgIds())
        assert [image['id'] for image in images] == list(range(1, len(images) + 1))
        for image in images:
            jpeg = tmp_path / 'two' / summary.split / image['file_name']
            assert Image.open(jpeg).size == (image['width'], image['height'])
            path = Path(str(jpeg).replace('/color/', '/instance/')).with_suffix('.png')
            ids = np.asarray(Image.open(path))
            expected = [(v if v < 1000 else v // 1000, v, *rest) for v, *rest in reference_segments(ids)]
            expected = [row for row in expected if row[0] in kept]
            annotations = coco.loadAnns(coco.getAnnIds(image['id']))
            assert [(a['category_id'], *a['bbox'], a['area']) for a in annotations] == [
                (category, *rest) for category, _, *rest in expected
            ]
            for annotation, (_, value, *_) in zip(annotations, expected, strict=True):
                np.testing.assert_array_equal(coco.annToMask(annotation), ids == value)

    for again in convert(indoor_photos, tmp_path / 'one', SPLITS_DIR, workers=1, with_mask=True):
        assert again.json_path.read_bytes() == (tmp_path / 'two' / again.json_path.name).read_bytes()


def test_void_written_as_wall_is_left_out(tmp_path):
    root = tmp_path / 'frames'
    ids = instance_map(v1=(0, 0, 24, 18), v5001=(2, 3, 4, 5))
    for name in ('000000', '000100'):
        write_frame(root, ids, name=name, label=ids // 1000)
    coco, summary = run(root)
    assert [box[0] for box in boxes_of(coco)] == [5, 5]
    assert [p.kind for p in summary.problems] == ['label-disagrees'] * 2
    assert summary.problems[1].file == str(root / SCENE / 'instance/000100.png')
    assert summary.num_frames == 2


def test_label_maps_are_sampled(tmp_path):
    root = tmp_path / 'frames'
    wall, chair = instance_map(v1=(0, 0, 24, 3)), instance_map(v5=(0, 0, 24, 3))
    void = np.zeros_like(wall)
    write_frame(root, instance_map(v5001=(0, 0, 2, 2)), name='000000')
    write_frame(root, wall, name='000100')  # the first with an id below 1000: checked, right
    write_frame(root, wall, name='000200', label=void)  # trusted
    write_frame(root, chair, name='000300')  # a thing with an id below 1000: checked, right
    write_frame(root, chair, name='000400', label=void)  # checked, wrong
    write_frame(root, wall, name='000500')  # no longer trusted, but right
    write_frame(root, wall, name='000600', label=void)  # still not trusted
    coco, summary = run(root)
    assert [a['image_id'] for a in coco['annotations']] == [1, 2, 3, 4, 6]
    assert [Path(p.file).stem for p in summary.problems] == ['000400', '000600']


def test_missing_label_map_is_noted(tmp_path):
    root = tmp_path / 'frames'
    write_frame(root, instance_map(v1=(0, 0, 24, 3)), label=None)
    coco, summary = run(root)
    assert len(coco['annotations']) == 1
    assert summary.notes == {UNCHECKED_NOTE: 1} and not summary.problems


def test_ids_beyond_nyu40_are_listed(root):
    write_frame(root, instance_map(v5001=(0, 0, 2, 2), v41001=(3, 3, 2, 2), v55=(6, 6, 1, 1)), name='000100')
    coco, summary = run(root)
    assert len(coco['annotations']) == 2
    assert [p.kind for p in summary.problems] == ['unknown-id'] and '[55, 41001]' in summary.problems[0].text


def test_nothing_usable_is_an_error(root):
    Image.new('L', SIZE, 1).save(root / SCENE / 'instance/000000.png')
    with pytest.raises(UserError, match=r'no usable frame in the train split.*instance/000000\.png.*2d-label-filt'):
        run(root)
    assert [path.name for path in (root.parent / 'out').iterdir()] == ['scannet_objdet_train_problems.txt']


def test_scene_in_no_split(root):
    write_frame(root, instance_map(), scene='scene9999_00')
    coco, summary = run(root)
    assert len(coco['images']) == 1
    assert [(p.kind, p.file) for p in summary.problems] == [('in-no-split', str(root / 'scene9999_00'))]
    with pytest.raises(UserError, match='scene9999_00'):
        run(root, strict=True)


def test_scene_without_frames(root):
    (root / 'scene0000_01' / 'color').mkdir(parents=True)
    _, summary = run(root)
    assert [(p.kind, p.file) for p in summary.problems] == [('no-frames', str(root / 'scene0000_01'))]
    assert '2 of the 1201 scenes' in str(summary)


@pytest.mark.parametrize(
    ('folders', 'message'),
    [
        ([], 'no such folder'),
        (['other'], 'no scene of the train split'),
        ([f'{SCENE}/color'], f'{SCENE}: no frames in any scene'),
        ([f'scans/{SCENE}/instance'], f'scans/{SCENE}: no frames in any scene'),
        ([f'{SCENE}/color', f'{SCENE}/label-filt'], f'{SCENE}: has no {SCENE}_2d-instance-filt.zip, packed'),
        ([f'{SCENE}/label-filt', f'{SCENE}/instance-filt'], f'{SCENE}: has neither images in color/ nor {SCENE}.sens'),
    ])
def test_root_that_cannot_be_converted(tmp_path, folders, message):
    for folder in folders:
        (tmp_path / 'frames' / folder).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        run(tmp_path / 'frames')
    assert not (tmp_path / 'out').exists()


def test_no_scene_of_one_split_stops_before_converting(root):
    with pytest.raises(UserError, match='no scene of the val split'):
        run(root, splits=('train', 'val'))
    assert not (root.parent / 'out').exists()


def test_missing_scene_list(root, tmp_path):
    with pytest.raises(UserError, match='scannetv2_train.txt: no such scene list'):
        convert(root, tmp_path / 'out', tmp_path)


def test_folder_above_the_frames(root):
    parent = root.parent / 'download'
    parent.mkdir()
    root.rename(parent / 'scannet_frames_25k')
    write_frame(parent / 'scannet_frames_test', instance_map(), scene='scene0707_00')
    shutil.rmtree(parent / 'scannet_frames_test/scene0707_00/instance')
    summaries = convert(parent, root.parent / 'out', SPLITS_DIR, splits=('train', 'test'), workers=1)
    train, test = (json.loads(summary.json_path.read_text()) for summary in summaries)
    assert len(train['annotations']) == 1
    assert [image['file_name'] for image in test['images']] == ['scene0707_00/color/000000.jpg']
    assert test['annotations'] == [] and len(test['categories']) == 20


def test_links(root, tmp_path):
    run(root)
    link = tmp_path / 'out/train' / SCENE
    # Side by side, data and links move together; elsewhere, the links must not depend on their own place.
    assert str(link.readlink()) == f'../../frames/{SCENE}' and (link / 'color/000000.jpg').is_file()
    run(root)
    convert(root, tmp_path / 'elsewhere/out', SPLITS_DIR, splits=('train',), workers=1)
    assert (tmp_path / 'elsewhere/out/train' / SCENE).readlink() == root / SCENE

    moved = root.rename(tmp_path / 'moved')
    run(moved)
    assert (link / 'color/000000.jpg').is_file()


def test_folder_with_other_content_is_not_touched(root, tmp_path):
    (tmp_path / 'out/train' / SCENE).mkdir(parents=True)
    with pytest.raises(UserError, match='not a link to a scene'):
        run(root)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['train']
    run(root, link=False)
    assert not any((tmp_path / 'out/train' / SCENE).iterdir())


def test_command_line(root):
    def call(*args):
        return start(sys.executable, REPO / 'tools/dataset_converters/scannet2coco.py', *args, cwd=root, merged=False)

    done = call('.', '--out-dir', '../out', '--split', 'train', '--workers', '2', '--no-link')
    assert done.returncode == 0, done.stderr
    assert 'chair 1' in done.stdout and 'no problems' in done.stdout and '1/1' in done.stderr
    assert [path.name for path in (root.parent / 'out').iterdir()] == ['scannet_objdet_train.json']

    failed = call('missing', '--out-dir', '../out')
    assert failed.returncode == 2 and failed.stdout == ''
    assert failed.stderr.splitlines()[-1].startswith('error: missing: no such folder')
    assert 'Traceback' not in failed.stderr
