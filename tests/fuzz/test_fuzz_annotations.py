"""Annotation files with any value anywhere: training and the data page read a file or refuse it with a message."""

import copy
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mmdet.registry import DATASETS
from mmengine.registry import init_default_scope
from PIL import Image

from deit_detr.datasets.coco_file import read_annotations
from deit_detr.images import FORMATS
from deit_detr.pages.data_page import make_data_page
from deit_detr.scannet.classes import scannet_metainfo
from tests.helpers.fuzzing import ODD_VALUES, cases, changed, contained, damaged, peak_memory, places
from tests.helpers.odd_images import ANY_FILE, image_file, jpeg_header, png_header

CONTENT = dict(
    images=[dict(id=7, file_name='scene0000_00/color/0.jpg', width=40, height=30), dict(
        id=8, file_name='scene0000_00/color/1.jpg', width=40, height=30)],
    annotations=[
        dict(id=1, image_id=7, category_id=3, bbox=[1, 2, 20, 10], area=200, iscrowd=0, segmentation=[]),
        dict(id=2, image_id=7, category_id=5, bbox=[1.5, 2.5, 8, 9], area=72, iscrowd=0, ignore=False),
        dict(id=3, image_id=8, category_id=3, bbox=[0, 0, 40, 30], area=1200, iscrowd=1)],
    categories=[dict(id=3, name='cup', supercategory='thing'), dict(id=5, name='fork')])
PLACES = list(places(CONTENT))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data set without its annotation file."""
    init_default_scope('mmdet')  # an earlier test file may have set another one
    (tmp_path / 'data/val/scene0000_00/color').mkdir(parents=True)
    for name in '01':
        Image.new('RGB', (40, 30)).save(tmp_path / f'data/val/scene0000_00/color/{name}.jpg')
    return tmp_path


def use(folder: Path, data: bytes, name: str = 'CheckedCocoDataset', **metainfo) -> list:
    """Open an annotation file as training does, and make its page; return the errors."""
    ann_file = folder / 'data/val.json'
    ann_file.write_bytes(data)
    with contained(folder) as refused:
        dataset = DATASETS.build(dict(
            type=name, data_root=f'{folder}/data/', ann_file='val.json', data_prefix=dict(img='val/'), pipeline=[],
            metainfo=metainfo, filter_cfg=dict(filter_empty_gt=True, min_size=2)))
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            assert Path(info['img_path']).is_relative_to(folder / 'data/val') and '..' not in info['img_path']
            for instance in info['instances']:
                left, top, right, bottom = instance['bbox']
                assert right - left >= 1 and bottom - top >= 1
    with contained(folder) as refused_page:
        make_data_page([ann_file], folder / 'page.html')
        (folder / 'page.html').unlink()
    return [*refused, *refused_page]


def test_the_file_itself_is_taken(folder):
    assert use(folder, json.dumps(CONTENT).encode(), classes=('cup', 'fork')) == []
    assert use(folder, b'\xef\xbb\xbf' + json.dumps(CONTENT).encode(), classes=('cup', 'fork')) == []
    assert use(folder, json.dumps(CONTENT).encode('utf-16'), classes=('cup', 'fork')) == []


@cases(250)
@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD_VALUES | st.just(...)), min_size=1, max_size=3))
@example([(('images', 0, 'file_name'), '../../../etc/passwd')])
@example([(('images', 0, 'file_name'), '/etc/passwd')])
@example([(('images', 0, 'width'), '40')])
@example([(('annotations', 0, 'bbox'), [float('nan')] * 4)])
@example([(('annotations', 0, 'bbox', 2), 10 ** 400)])
@example([(('annotations', 0, 'id'), '1')])
@example([(('annotations', 0, 'image_id'), [])])
@example([(('annotations', 0), None)])
@example([(('annotations',), {'id': 1})])
@example([(('categories', 0, 'name'), '\ud800')])
@example([(('categories', 0, 'id'), [])])
def test_anything_anywhere(folder, changes):
    content = copy.deepcopy(CONTENT)
    for path, value in changes:
        if path in set(places(content)):
            content = changed(content, path, value)
    use(folder, json.dumps(content).encode(), classes=('cup', 'fork'))


@cases(120)
@given(damaged(json.dumps(CONTENT).encode()))
@example(b'')
@example(b'[' * 100_000)
@example(b'{"images": ' * 100_000)
@example(b'\xff\xfe' * 10)
@example(b'{"images": [], "categories": [], "annotations": ' + b'9' * 5000 + b'}')
@example(b'{"images": NaN, "categories": Infinity}')
@example(b'"images categories"')
def test_damaged_files(folder, data):
    use(folder, data, classes=('cup', 'fork'))


@cases(30)
@given(st.sampled_from([('categories', index, field) for index in (0, 19) for field in ('id', 'name')]), ODD_VALUES)
def test_categories_of_scannet(folder, path, value):
    names = scannet_metainfo(20)
    content = dict(CONTENT, categories=[
        dict(id=id_, name=name) for id_, name in zip(names['category_ids'], names['classes'], strict=True)])
    assert use(folder, json.dumps(content).encode(), 'ScanNetDataset') == []
    use(folder, json.dumps(changed(content, path, value)).encode(), 'ScanNetDataset')


@cases(400)
@given(st.text(st.sampled_from('./\\ab:\0\n~%')))
@example('a/../b.jpg')
@example('..')
@example('a/..')
@example('\\\\server\\share')
def test_no_file_name_leaves_the_folder(folder, name):
    ann_file = folder / 'names.json'
    ann_file.write_text(json.dumps(dict(CONTENT, images=[
        dict(CONTENT['images'][0], file_name=name), CONTENT['images'][1]])))
    with contained(folder) as refused:
        read_annotations(ann_file, ann_file)
    if not refused:
        (folder / 'deep/er/images').mkdir(parents=True, exist_ok=True)
        assert (folder / 'deep/er/images' / name).resolve().is_relative_to(folder / 'deep/er/images')


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return the size of the image as it is seen, turned by its EXIF orientation; ``None`` if it is not an image."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size[::-1] if image.getexif().get(0x112) in (5, 6, 7, 8) else image.size
    except Exception:  # decoders raise many types
        return None


@cases(60)
@given(ANY_FILE, st.integers(1, 50), st.integers(1, 50))
@example(image_file('CMYK', (40, 30), 'JPEG', orientation=6), 40, 30)
@example(image_file('I;16', (40, 30), 'PNG'), 40, 30)
@example(image_file('RGB', (40, 30), 'GIF', frames=3), 40, 30)
@example(image_file('RGB', (40, 1), 'PNG'), 1, 40)
@example(b'', 10 ** 6, 1)
def test_page_and_sheet_of_any_images(folder, data, width, height):
    (folder / 'data/val/scene0000_00/color/0.jpg').write_bytes(data)
    (folder / 'data/val.json').write_text(json.dumps(changed(
        changed(CONTENT, ('images', 0, 'width'), width), ('images', 0, 'height'), height)))
    with contained(folder) as refused:
        summary = make_data_page([folder / 'data/val.json'], folder / 'page.html', sheet=folder / 'sheet.jpg')
    assert refused == []
    with Image.open(folder / 'sheet.jpg') as sheet:
        assert sheet.size == (6 * 240, 180)
    opened = image_size(data)
    assert ('no picture' in summary) == (opened is None)
    assert ('other size' in summary) == (opened not in (None, (width, height)))


def test_claimed_sizes_and_what_is_no_file(folder):
    """They neither take memory nor block."""
    color = folder / 'data/val/scene0000_00/color'
    (folder / 'data/val.json').write_text(json.dumps(CONTENT))
    for make in (
            lambda path: path.write_bytes(png_header(60000, 60000, 8, 2)), lambda path: path.mkdir(),
            lambda path: path.write_bytes(jpeg_header(60000, 60000)), os.mkfifo,
            lambda path: path.symlink_to('/dev/zero'), lambda path: path.symlink_to(path.name)):
        for path in color.iterdir():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        make(color / '0.jpg')

        def write() -> None:
            summary = make_data_page([folder / 'data/val.json'], folder / 'page.html', sheet=folder / 'sheet.jpg')
            assert 'no picture: 2' in summary  # the other one is missing

        assert peak_memory(write) < 100
