"""The page about a data set: oddities counted by hand, the page in a browser."""

import base64
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from deit_detr.errors import UserError
from deit_detr.pages.data_page import ODDITIES, choose_images, find_images, make_data_page, read_split
from deit_detr.pages.html import picture
from tests.helpers.browser import browser  # noqa: F401 - a fixture
from tests.helpers.paths import REPO

BROWSE = [sys.executable, '-W', 'ignore', REPO / 'tools/analysis_tools/browse_data.py']

#: Boxes on images of 100x80 and the oddities of each; category 1 is a wall (stuff), category 2 a cup.
CASES = [
    ((1, 0, 0, 100, 80), []),
    ((2, 10, 10, 30, 20), []),
    ((2, 0, 0, 100, 80), ['whole image']),
    ((2, 10, 10, 3, 20), ['tiny']),
    ((2, 10, 10, 4, 4), []),
    ((2, 10, 10, 0, 5), ['empty']),
    ((2, 10, 10, 80, 4), ['thin']),
    ((2, 10, 10, 3.9, 78), ['tiny', 'thin', 'outside']),
    ((2, 70.4, 10, 30, 20), []),
    ((2, 71, 10, 30, 20), ['outside']),
    ((2, -1, 10, 30, 20), ['outside']),
    ((2, -50, -50, 300, 300), ['outside', 'whole image']),
]


@pytest.fixture
def odd_data(tmp_path) -> Path:
    """One image per case, then one with the same box three times, one without a box, a missing and a small one."""
    images = tmp_path / 'odd'
    images.mkdir()
    boxes = [[box] for box, _ in CASES]
    boxes += [[(2, 10, 10, 30, 20), (2, 10, 10, 30, 20), (1, 10, 10, 30, 20)], [], [(2, 10, 10, 30, 20)],
              [(2, 10, 10, 30, 20)]]
    content = dict(
        images=[dict(id=index, file_name=f'{index}.jpg', width=100, height=80) for index in range(len(boxes))],
        categories=[dict(id=1, name='wall', supercategory='stuff'), dict(id=2, name='cup')], annotations=[])
    for index, rows in enumerate(boxes):
        if index != len(boxes) - 2:
            size = (50, 40) if index == len(boxes) - 1 else (100, 80)
            Image.new('RGB', size, (90, 60, index)).save(images / f'{index}.jpg')
        content['annotations'] += [
            dict(id=100 * index + place + 1, image_id=index, category_id=box[0], bbox=list(box[1:]), area=1, iscrowd=0)
            for place, box in enumerate(rows)]
    ann_file = tmp_path / 'odd.json'
    ann_file.write_text(json.dumps(content))
    return ann_file


def test_oddities_by_hand(odd_data):
    split = read_split(odd_data, find_images(odd_data))
    names = list(ODDITIES)
    for index, (box, expected) in enumerate(CASES):
        assert [names[kind] for kind in split.box_kinds[100 * index + 1]] == expected, box
        assert split.image_kinds[index] == []
    twice = len(CASES)
    assert [[names[kind] for kind in split.box_kinds[100 * twice + place]] for place in (1, 2, 3)] == [
        ['twice'], ['twice'], []], 'a box of another class may overlap'
    assert [[names[kind] for kind in split.image_kinds[twice + place]] for place in (1, 2, 3)] == [
        ['no box'], ['no picture'], ['other size']]
    counts = {name: split.count(kind) for kind, name in enumerate(ODDITIES)}
    assert counts == {'no box': 1, 'no picture': 1, 'other size': 1, 'depth': 0, 'empty': 1, 'tiny': 2, 'thin': 2,
                      'outside': 4, 'whole image': 2, 'area 0': 0, 'ignore': 0, 'twice': 2}


def test_boxes_that_training_leaves_out_are_named(odd_data, tmp_path):
    content = json.loads(odd_data.read_text())
    content['annotations'][1]['area'] = content['annotations'][2]['area'] = 0
    content['annotations'][4]['ignore'] = 1
    odd_data.write_text(json.dumps(content))
    assert '; area 0: 2; ignore: 1; ' in make_data_page([odd_data], tmp_path / 'browse.html')


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_pictures_are_upright_as_in_training(kind, tmp_path):
    """The EXIF orientation counts: for the size, in the page and in the sheet."""
    exif = Image.Exif()
    exif[0x112] = 6  # red is at the bottom left of the file, at the top left of the picture
    stored = Image.new('RGB', (80, 100), 'blue')
    stored.paste('red', (0, 50, 40, 100))
    (tmp_path / 'odd').mkdir()
    stored.save(tmp_path / 'odd/0.jpg', kind, exif=exif)
    content = dict(images=[dict(id=1, file_name='0.jpg', width=100, height=80)], categories=[dict(id=1, name='cup')],
                   annotations=[dict(id=1, image_id=1, category_id=1, bbox=[60, 50, 20, 20], area=400, iscrowd=0)])
    (tmp_path / 'odd.json').write_text(json.dumps(content))
    assert read_split(tmp_path / 'odd.json', tmp_path / 'odd').image_kinds == {1: []}
    make_data_page([tmp_path / 'odd.json'], tmp_path / 'page.html', sheet=tmp_path / 'sheet.png')
    data = base64.b64decode(picture(tmp_path / 'odd/0.jpg').split(',')[1])
    for image in (Image.open(io.BytesIO(data)), Image.open(tmp_path / 'sheet.png')):
        assert image.width > image.height
        red, _, blue = image.convert('RGB').getpixel((4, 4))
        assert red > 200 > 50 > blue
    content['images'][0].update(width=80, height=100)  # as the file is stored: training sees it turned
    (tmp_path / 'odd.json').write_text(json.dumps(content))
    assert read_split(tmp_path / 'odd.json', tmp_path / 'odd').image_kinds == {1: [list(ODDITIES).index('other size')]}


def test_page_in_a_browser(odd_data, browser, tmp_path):  # noqa: F811
    out = tmp_path / 'browse.html'
    summary = make_data_page([odd_data], out)
    assert 'no box: 1' in summary and 'outside: 4' in summary
    for width in (1280, 375):
        browser.open(out, width)
        assert browser.problems == []
        assert browser.run('document.documentElement.scrollWidth') <= width, 'the page scrolls sideways'
    number = len(CASES) + 4
    assert browser.run('document.querySelectorAll(".card").length') == number
    assert browser.run('[...document.images].every(image => image.naturalWidth > 0) && document.images.length') == (
        number - 1)

    def visible() -> list[str]:
        return browser.run('[...document.querySelectorAll(".card:not([hidden]) strong")].map(node => node.textContent)')

    def follow(link: str) -> None:
        browser.run(f'document.querySelector(`{link}`).click(); 0')

    kinds = list(ODDITIES)
    follow(f'a[data-kind="{kinds.index("outside")}"]')
    assert visible() == ['7.jpg', '9.jpg', '10.jpg', '11.jpg']
    follow(f'a[data-kind="{kinds.index("no box")}"]')
    assert visible() == [f'{len(CASES) + 1}.jpg']
    follow('a[data-class="0"]')
    assert visible() == ['0.jpg', f'{len(CASES)}.jpg']
    assert browser.problems == []


def test_both_splits_on_the_command_line(mini_scannet, run, tmp_path):
    ann_files = [mini_scannet / f'scannet_objdet_{split}.json' for split in ('train', 'val')]
    output = run(
        *BROWSE, *ann_files, '--out', tmp_path / 'page.html', '--sheet', tmp_path / 'sheet.jpg', '--images', 10)
    assert 'page.html: ' in output
    page = (tmp_path / 'page.html').read_text()
    assert '10 of 24 images' in page
    contents = [json.loads(path.read_text()) for path in ann_files]
    for content in contents:
        total = len(content['annotations'])
        walls = sum(box['category_id'] == 1 for box in content['annotations'])
        assert f'{walls} ({100 * walls / total:.1f} %)' in page
    assert '<th>Scenes in more than one</th><td>none</td>' in page
    with Image.open(tmp_path / 'sheet.jpg') as sheet:
        assert sheet.size == (6 * 240, 2 * 180)
        assert len({sheet.getpixel((x, 90)) for x in range(0, 1440, 7)}) > 50, 'pictures, not a flat colour'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['page.html', 'sheet.jpg']


def test_same_scene_in_both_files_is_named(mini_scannet, tmp_path):
    content = json.loads((mini_scannet / 'scannet_objdet_val.json').read_text())
    for split in ('train', 'val'):
        (tmp_path / f'{split}.json').write_text(json.dumps(content))
    make_data_page([tmp_path / 'train.json', tmp_path / 'val.json'], tmp_path / 'page.html',
                   [mini_scannet / 'val'] * 2, max_images=0)
    scene = content['images'][0]['file_name'].split('/')[0]
    assert f'<th>Scenes in more than one</th><td>{scene}, ' in (tmp_path / 'page.html').read_text()


def test_some_pictures_of_each_oddity_are_chosen(odd_data):
    split = read_split(odd_data, find_images(odd_data))
    for image in split.images[:12]:  # as if most images were fine
        split.box_kinds[100 * image['id'] + 1] = []
    chosen = [image['id'] for _, image in choose_images([split], 14)]
    assert len(set(chosen)) == 14 and chosen == sorted(chosen)
    assert {12, 13, 14, 15} & set(chosen), 'odd ones'
    for number in (0, 1, 5, 16, 99):
        assert len(choose_images([split], number)) == min(number, 16)


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda content: content['annotations'][0].update(bbox=[1, 2, 'a', 4]), '"bbox" .*the id 1'),
        (lambda content: content['annotations'][0].update(bbox=[1, 2, float('nan'), 4]), '"bbox" .*the id 1'),
        (lambda content: content['images'][2].update(width=0), '"width" .*the id 2'),
        (lambda content: content['annotations'][0].update(category_id=9), 'field "category_id" .* has 9'),
        (lambda content: content.pop('images'), 'not a COCO detection file'),
    ])
def test_files_that_training_would_refuse(damage, message, odd_data, tmp_path):
    content = json.loads(odd_data.read_text())
    damage(content)
    odd_data.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        make_data_page([odd_data], tmp_path / 'page.html')
    assert str(odd_data) in str(error.value) and not (tmp_path / 'page.html').exists()


def test_bad_input_ends_in_one_line(odd_data, run, tmp_path):
    shutil.move(odd_data.parent / 'odd', odd_data.parent / 'elsewhere')
    output = run(*BROWSE, odd_data, status=2)
    assert output.startswith('error: ') and 'no folder odd beside it' in output and output.count('\n') == 1
    out = tmp_path / 'page.html'
    with pytest.raises(UserError, match='gone.json: no such annotation file'):
        make_data_page([tmp_path / 'gone.json'], out, [tmp_path])
    with pytest.raises(UserError, match='2 folders for 1 annotation files'):
        make_data_page([odd_data], out, [tmp_path] * 2)
    with pytest.raises(UserError, match='sheet.tif.gz: cannot be written'):
        make_data_page([odd_data], out, [odd_data.parent / 'elsewhere'], sheet=tmp_path / 'sheet.tif.gz')
    assert not list(tmp_path.glob('.*'))
