"""The converter on images of any suffix, format and damage: converted, or listed by name with what to do."""

from pathlib import Path

import pytest
from PIL import Image

from deit_detr.errors import UserError
from tests.helpers.scannet_frames import SCENE, SIZE, instance_map, run, write_frame


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def flip_pixel_data(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b'IDAT') + 8] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ('kind', 'file', 'damage'),
    [
        ('no-jpeg', 'color/000000.jpg', Path.unlink),
        ('bad-jpeg', 'color/000000.jpg', lambda path: cut(path, 0.95)),
        ('bad-jpeg', 'color/000000.jpg', lambda path: cut(path, 0.1)),
        ('bad-jpeg', 'color/000000.jpg', lambda path: cut(path, 0)),
        ('bad-jpeg', 'color/000000.jpg', lambda path: Image.new('RGB', SIZE).save(path, 'PNG')),
        ('no-png', 'instance/000000.png', Path.unlink),
        ('bad-png', 'instance/000000.png', lambda path: cut(path, 0.7)),
        ('bad-png', 'instance/000000.png', lambda path: path.write_bytes(path.read_bytes()[:-12])),
        ('bad-png', 'instance/000000.png', lambda path: cut(path, 0)),
        ('bad-png', 'instance/000000.png', flip_pixel_data),
        ('not-16-bit', 'instance/000000.png', lambda path: Image.new('L', SIZE, 1).save(path)),
        ('not-16-bit', 'instance/000000.png', lambda path: Image.new('RGB', SIZE).save(path)),
    ])
def test_bad_frame_is_listed_and_skipped(root, kind, file, damage):
    write_frame(root, instance_map(v5001=(0, 0, 2, 2)), name='000100')
    good = (root / SCENE / file).read_bytes()
    damage(root / SCENE / file)

    coco, summary = run(root)
    # The image keeps the id that it has without the bad frame before it; annotations count on.
    assert [image['id'] for image in coco['images']] == [2]
    assert [(a['id'], a['image_id']) for a in coco['annotations']] == [(1, 2)]
    assert f'1 problems ({kind} 1)' in str(summary)
    report = summary.report_path.read_text().splitlines()
    assert len(report) == 1 and report[0].split('\t')[:2] == [kind, str(root / SCENE / file)]

    before = summary.json_path.read_bytes()
    with pytest.raises(UserError, match=file):
        run(root, strict=True)
    assert summary.json_path.read_bytes() == before
    left = sorted(path.name for path in summary.json_path.parent.iterdir())
    assert left == ['scannet_objdet_train.json', 'scannet_objdet_train_problems.txt', 'train']

    (root / SCENE / file).write_bytes(good)
    coco, summary = run(root, strict=True)
    assert len(coco['images']) == 2 and not summary.report_path.exists()


@pytest.mark.parametrize('suffix', ['.JPG', '.jpeg', '.JPEG', '.png', '.PNG'])
def test_suffixes_of_images(root, suffix):
    before, _ = run(root)
    color, map_ = (root / SCENE / name for name in ('color/000000.jpg', 'instance/000000.png'))
    Image.open(color).save(color.with_suffix(suffix))
    color.unlink()
    map_.rename(map_.with_suffix('.PNG'))
    coco, summary = run(root, strict=True)
    assert coco['images'][0].pop('file_name') == f'{SCENE}/color/000000{suffix}'
    assert before['images'][0].pop('file_name') == f'{SCENE}/color/000000.jpg' and coco == before
    assert (summary.json_path.parent / 'train' / SCENE / f'color/000000{suffix}').is_file()


def test_first_of_several_images_of_a_frame_is_read(root):
    for suffix in ('.png', '.JPG', '.jpeg'):
        Image.new('RGB', (7, 7)).save(root / SCENE / f'color/000000{suffix}')
    assert [image['file_name'] for image in run(root, strict=True)[0]['images']] == [f'{SCENE}/color/000000.jpg']
    (root / SCENE / 'color/000000.jpg').unlink()
    assert [image['file_name'] for image in run(root)[0]['images']] == [f'{SCENE}/color/000000.JPG']


def save_as(suffix, mode='RGB', file_format=None, **options):
    def damage(path: Path) -> None:
        path.unlink()
        Image.new(mode, SIZE).save(path.with_suffix(suffix), file_format, **options)
    return damage


TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize(
    ('file', 'damage', 'problem'),
    [
        ('color/000000.jpg', Path.unlink, 'no-jpeg color/000000.jpg: missing; extract it again'),
        ('color/000000.jpg', save_as('.webp'), (
            'no-jpeg color/000000.jpg: missing, and 000000.webp cannot be used: save it as JPEG or PNG')),
        ('color/000000.jpg', save_as('.jpg', file_format='PNG'), (
            'bad-jpeg color/000000.jpg: contains a PNG: change its suffix to .png')),
        ('color/000000.jpg', save_as('.png', file_format='JPEG'), (
            'bad-png color/000000.png: contains a JPEG: change its suffix to .jpg')),
        ('color/000000.jpg', save_as('.png', 'I;16'), 'bad-png color/000000.png: its pixels have more than 8 bits'),
        ('color/000000.jpg', save_as('.png', exif=TURNED), 'turned-png color/000000.png: has an EXIF orientation'),
        ('instance/000000.png', save_as('.tif', 'I;16'), (
            'no-png instance/000000.png: missing, and 000000.tif cannot be used: save it as 16-bit PNG')),
    ])
def test_image_of_another_kind_is_named(root, file, damage, problem):
    write_frame(root, instance_map(v5001=(0, 0, 2, 2)), name='000100')
    damage(root / SCENE / file)
    coco, summary = run(root)
    assert [image['id'] for image in coco['images']] == [2]
    (found,) = summary.problems
    assert f'{found.kind} {Path(found.file).relative_to(root / SCENE)}: {found.text}'.startswith(problem)


@pytest.mark.parametrize('damage', [
    lambda path: cut(path, 0.7), lambda path: path.write_bytes(path.read_bytes()[:-12]), flip_pixel_data])
def test_damaged_png_of_a_colour_frame(root, damage):
    write_frame(root, instance_map(), name='000100')
    (root / SCENE / 'color/000000.jpg').unlink()
    Image.new('RGB', SIZE).save(root / SCENE / 'color/000000.png')
    damage(root / SCENE / 'color/000000.png')
    (found,) = run(root)[1].problems
    assert (found.kind, found.file) == ('bad-png', str(root / SCENE / 'color/000000.png'))


def test_jpeg_with_zero_padding_is_complete(root):
    path = root / SCENE / 'color/000000.jpg'
    path.write_bytes(path.read_bytes() + bytes(100))
    assert run(root)[1].problems == []
