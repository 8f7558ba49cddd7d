"""The converter on any kind of frame: it converts it or lists it as a problem, and writes only to the output folder."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from deit_detr.datasets.coco_file import read_annotations
from deit_detr.scannet.converter import convert
from deit_detr.scannet.frames import MAX_FRAME_PIXELS, ReadOptions, read_png, read_scene
from tests.helpers.fuzzing import cases, contained, peak_memory
from tests.helpers.odd_images import ANY_FILE, GOOD_JPEG, GOOD_PNG, image_file, jpeg_header, png_header

SCENE = 'scene0000_00'


def write_scene(root: Path, scene: str, name: str, **files: bytes) -> None:
    for folder, content in files.items():
        (root / scene / folder).mkdir(parents=True, exist_ok=True)
        (root / scene / folder / f'{name}{".jpg" if folder == "color" else ".png"}').write_bytes(content)


def run(folder: Path, scenes: bytes = SCENE.encode(), **options) -> tuple[list, dict | None]:
    """Convert ``frames/`` to ``out/``; return the errors and the content of the file."""
    lists = folder / 'lists'
    lists.mkdir(exist_ok=True)
    for split in ('train', 'val', 'test'):
        (lists / f'scannetv2_{split}.txt').write_bytes(scenes if split == 'train' else b'')
    out = folder / 'out'
    out.mkdir(exist_ok=True)
    before = {path: path.read_bytes() for path in (folder / 'frames').rglob('*') if path.is_file()}
    with contained(out) as refused:
        # a list of problems is kept on purpose when no frame can be used
        try:
            convert(folder / 'frames', out, lists, ('train',), workers=1, **options)
        finally:
            (out / 'scannet_objdet_train_problems.txt').unlink(missing_ok=True)
    assert before == {path: path.read_bytes() for path in (folder / 'frames').rglob('*') if path.is_file()}
    if refused:
        return refused, None
    ann_file = out / 'scannet_objdet_train.json'
    content = read_annotations(ann_file, ann_file)
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    for annotation in content['annotations']:
        left, top, width, height = annotation['bbox']
        assert min(left, top) >= 0 and min(width, height) >= 1
        assert left + width <= sizes[annotation['image_id']][0] and top + height <= sizes[annotation['image_id']][1]
    for path in sorted(out.rglob('*'), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    return refused, content


@cases(250)
@given(ANY_FILE, ANY_FILE | st.just(GOOD_PNG), ANY_FILE, st.booleans())
@example(jpeg_header(60000, 60000), GOOD_PNG, b'', False)
@example(GOOD_JPEG, png_header(60000, 60000), b'', True)
@example(jpeg_header(60000, 300), GOOD_PNG, b'', True)
@example(GOOD_JPEG, GOOD_PNG, png_header(60000, 60000, 8), False)
@example(image_file('RGB', (24, 18), 'JPEG', orientation=6), GOOD_PNG, b'', False)
@example(image_file('CMYK', (24, 18), 'JPEG'), GOOD_PNG, b'', False)
@example(image_file('L', (24, 18), 'JPEG'), image_file('I', (24, 18), 'PNG'), b'', True)
@example(GOOD_JPEG, image_file('I;16', (24, 18), 'PNG', frames=3), image_file('RGB', (24, 18), 'PNG'), False)
def test_files_of_any_kind(tmp_path, color, instance, label, with_mask):
    write_scene(tmp_path / 'frames', SCENE, '000000', color=color, instance=instance, label=label)
    write_scene(tmp_path / 'frames', SCENE, '000100', color=GOOD_JPEG, instance=GOOD_PNG)
    refused, content = run(tmp_path, with_mask=with_mask)
    assert not refused and content['images'][-1]['file_name'].endswith('000100.jpg'), 'the frame beside it is kept'


@cases(100)
@given(ANY_FILE, st.sampled_from(['.jpeg', '.JPG', '.png', '.PNG']))
@example(image_file('RGB', (24, 18), 'PNG', orientation=6), '.png')
@example(png_header(60000, 60000, 8), '.png')
def test_colour_images_of_any_suffix(tmp_path, color, suffix):
    write_scene(tmp_path / 'frames', SCENE, '000000', color=color, instance=GOOD_PNG)
    path = tmp_path / 'frames' / SCENE / 'color/000000.jpg'
    path.rename(path.with_suffix(suffix))
    write_scene(tmp_path / 'frames', SCENE, '000100', color=GOOD_JPEG, instance=GOOD_PNG)
    refused, content = run(tmp_path)
    path.with_suffix(suffix).unlink()
    assert not refused and content['images'][-1]['file_name'].endswith('000100.jpg'), 'the frame beside it is kept'


@cases(100)
@given(st.lists(st.integers(0, 65535), min_size=12, max_size=12), st.sampled_from(['L', 'P', 'RGB', 'LA', '1', 'I;16']))
@example([5] * 12, 'RGB')
def test_labels_of_any_mode(tmp_path, ids, mode):
    """A label map beside ids below 1000, some of which are not of a class."""
    instance = io.BytesIO()
    Image.fromarray(np.array(ids, np.uint16).reshape(3, 4)).save(instance, 'PNG')
    write_scene(tmp_path / 'frames', SCENE, '0', color=image_file('RGB', (4, 3), 'JPEG'), instance=instance.getvalue(),
                label=image_file(mode, (5, 2), 'PNG'))
    run(tmp_path)


@pytest.mark.parametrize('color, instance', [
    (jpeg_header(65000, 65000), GOOD_PNG), (jpeg_header(13000, 13000), GOOD_PNG), (jpeg_header(4400, 4400), GOOD_PNG),
    *((GOOD_JPEG, png_header(side, side)) for side in (1 << 30, 13000, 4400))])
def test_claimed_sizes_take_no_memory(tmp_path, color, instance):
    write_scene(tmp_path, SCENE, '0', color=color, instance=instance)
    options = ReadOptions(frozenset(range(1, 41)))
    assert peak_memory(lambda: read_scene(tmp_path / SCENE, ['0'], options)) < 600


def test_noise_of_the_largest_size_takes_bounded_memory(tmp_path):
    side = int(MAX_FRAME_PIXELS ** 0.5) // 4
    Image.fromarray(np.random.default_rng(0).integers(0, 40000, (side, side), np.uint16)).save(tmp_path / 'a.png')
    assert read_png(tmp_path / 'a.png', (side, side), need_16_bit=True)[0].shape == (side, side)
    write_scene(tmp_path, SCENE, '0', color=jpeg_header(side, side), instance=(tmp_path / 'a.png').read_bytes())
    options = ReadOptions(frozenset(range(1, 41)))
    used = peak_memory(lambda: read_scene(tmp_path / SCENE, ['0'], options))
    assert used < 1000 / 16 + 50, 'MB, for a sixteenth of the largest frame'


FILE_NAMES = st.text(
    st.sampled_from('aZ0 .\n\t\r\x1b[~%$`;\'"\\é\u202e\ud800😀'), min_size=1, max_size=12,
).map(lambda name: name.replace('\ud800', '\udc80')).filter(lambda name: name not in ('.', '..') and name[0] != '.')


@cases(120)
@given(FILE_NAMES, FILE_NAMES, st.booleans())
@example('a\nb', 'scene\tx', True)
@example('\udc80', '\udc80', True)
def test_names_of_any_kind(tmp_path, name, scene, broken):
    root = tmp_path / 'frames'
    write_scene(root, SCENE, name, color=b'' if broken else GOOD_JPEG, instance=GOOD_PNG)
    write_scene(root, SCENE, '000100', color=GOOD_JPEG, instance=GOOD_PNG)
    write_scene(root, scene, name, color=GOOD_JPEG, instance=GOOD_PNG)
    refused, content = run(tmp_path)
    assert not refused
    for image in content['images']:
        assert (root / image['file_name']).is_file()
    for path in sorted(root.rglob('*'), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def test_each_problem_is_one_line(tmp_path):
    write_scene(tmp_path / 'frames', SCENE, 'a\nb\tc\x1b[2J', color=b'', instance=GOOD_PNG)
    write_scene(tmp_path / 'frames', SCENE, 'good', color=GOOD_JPEG, instance=GOOD_PNG)
    (tmp_path / 'lists').mkdir()
    for split in ('train', 'val', 'test'):
        (tmp_path / f'lists/scannetv2_{split}.txt').write_text(SCENE)
    (summary,) = convert(tmp_path / 'frames', tmp_path / 'out', tmp_path / 'lists', ('train',), workers=1)
    (line,) = summary.report_path.read_text().splitlines()
    assert line.count('\t') == 2 and line.replace('\t', '').isprintable()


@pytest.mark.parametrize('lists', [
    b'../outside', b'/etc', b'scene0000_00/../../outside', b'..', b'.', b'', b'\xff\xfe', b'\0', b'scene0000_00\0'])
def test_scene_lists_lead_nowhere_else(tmp_path, lists):
    write_scene(tmp_path / 'frames', SCENE, '0', color=GOOD_JPEG, instance=GOOD_PNG)
    write_scene(tmp_path, 'outside', '0', color=GOOD_JPEG, instance=GOOD_PNG)
    refused, content = run(tmp_path, lists)
    assert refused and content is None


def test_links_out_of_the_tree_and_files_that_are_none(tmp_path):
    """Linked scenes and files are read; loops, pipes and folders named like files are problems."""
    root = tmp_path / 'frames'
    write_scene(root, SCENE, '0', color=GOOD_JPEG, instance=GOOD_PNG)
    color = root / SCENE / 'color'
    (color / '1.jpg').symlink_to('/etc/passwd')
    (color / '2.jpg').symlink_to('2.jpg')
    (color / '3.jpg').mkdir()
    (color / '4.jpg').symlink_to('/dev/zero')
    os.mkfifo(color / '5.jpg')
    (root / 'loop').symlink_to(root)
    refused, content = run(tmp_path)
    assert not refused and len(content['images']) == 1
    assert 'root:' not in json.dumps(content)
