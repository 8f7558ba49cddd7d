"""The raw ScanNetV2 download: the same boxes as from scannet_frames_25k, and every fault named."""

import json
import os
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from deit_detr.errors import UserError
from deit_detr.scannet import converter
from deit_detr.scannet.converter import convert
from deit_detr.scannet.mini_scannet import make_mini_scannet
from deit_detr.scannet.raw import combine_maps, read_label_table
from deit_detr.scannet.sens import MAX_COLOR_BYTES, SensFile
from tests.helpers.raw_scannet import RAW_IDS, TABLE, VOID_ID, write_raw, write_sens, write_table
from tests.helpers.scannet_frames import SCENE, SIZE, SPLITS_DIR, instance_map, run, write_frame

LABELS, INSTANCES, SENS = f'{SCENE}_2d-label-filt.zip', f'{SCENE}_2d-instance-filt.zip', f'{SCENE}.sens'


@pytest.fixture
def frames(tmp_path) -> Path:
    """Three frames of one scene, the last with nothing in it."""
    ids = instance_map(
        v1=(0, 0, 24, 3), v2=(0, 15, 24, 3), v5001=(2, 4, 4, 5), v5002=(8, 4, 4, 5), v40001=(20, 4, 2, 2))
    ids[13, 3] = 5001  # in two parts
    write_frame(tmp_path / 'frames', ids)
    write_frame(tmp_path / 'frames', instance_map(v1=(3, 0, 9, 9), v39004=(4, 4, 5, 5)), name='000100')
    write_frame(tmp_path / 'frames', instance_map(), name='000200')
    for number in (0, 100, 200):
        Image.new('RGB', SIZE, (number, 9, 9)).save(tmp_path / 'frames' / SCENE / f'color/{number:06d}.jpg')
    return tmp_path / 'frames'


@pytest.fixture
def scene(frames) -> Path:
    """The folder of the same scene as downloaded."""
    write_raw(frames, frames.parent / 'scans')
    return frames.parent / 'scans' / SCENE


def content(coco: dict) -> dict:
    return {key: value for key, value in coco.items() if key != 'info'}


def run_raw(scene: Path, **options):
    return run(scene.parent, **options)


def kinds(summary) -> list[str]:
    return [problem.kind for problem in summary.problems]


@pytest.mark.parametrize(('sens', 'packed', 'kind'), [
    (True, True, '-filt'), (True, False, '-filt'), (False, True, '-filt'), (False, False, '-filt'), (True, True, '')])
def test_same_boxes_from_both_layouts(frames, tmp_path, sens, packed, kind):
    expected, _ = run(frames, with_mask=True)
    shutil.rmtree(tmp_path / 'out')
    write_raw(frames, tmp_path / 'scans', sens, packed, kind)
    (summary,) = convert(tmp_path, tmp_path / 'out', SPLITS_DIR, ('train',), workers=1, with_mask=True)
    coco = json.loads(summary.json_path.read_text())
    assert len(coco['annotations']) == 6 and content(coco) == content(expected) and not summary.problems
    for image in coco['images']:
        copied = tmp_path / 'out/train' / image['file_name']
        assert copied.read_bytes() == (frames / image['file_name']).read_bytes()
    assert (tmp_path / 'out/train' / SCENE).is_symlink() != sens


def test_same_boxes_from_both_layouts_of_rendered_rooms(tmp_path):
    make_mini_scannet(tmp_path / 'frames', SPLITS_DIR, num_train=4, num_val=4, size=(96, 72), workers=1)
    write_raw(tmp_path / 'frames', tmp_path / 'scans')
    for options in (dict(), dict(num_classes=18, min_area=9)):
        for a, b in zip(*(convert(tmp_path / name, tmp_path / f'out-{name}', SPLITS_DIR, workers=workers, **options)
                          for name, workers in (('frames', 1), ('scans', 2))), strict=True):
            expected, coco = (json.loads(summary.json_path.read_text()) for summary in (a, b))
            assert len(coco['annotations']) > 10 and content(coco) == content(expected)


def test_only_wanted_frames_are_copied(scene, tmp_path, capsys):
    coco, summary = run_raw(scene, every=200)
    assert [Path(image['file_name']).name for image in coco['images']] == ['000000.jpg', '000200.jpg']
    assert sorted(os.listdir(tmp_path / 'out/train' / SCENE / 'color')) == ['000000.jpg', '000200.jpg']
    assert 'train: copies about 0 MB of colour images out of 1 .sens files' in capsys.readouterr().out
    # The frames in between are no JPEGs; asked for, they are named.
    _, summary = run_raw(scene, every=50)
    assert summary.problems[0].file == f'{scene / SENS}, frame 50' and kinds(summary) == ['bad-jpeg'] * 2
    assert summary.num_frames == 3


def test_every_takes_fewer_of_scannet_frames_25k(frames):
    assert [image['file_name'][-10:] for image in run(frames, every=200)[0]['images']] == ['000000.jpg', '000200.jpg']


def test_second_run_writes_only_what_is_missing(scene, tmp_path):
    run_raw(scene)
    folder = tmp_path / 'out/train' / SCENE / 'color'
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / '000100.jpg').write_bytes(b'half')
    run_raw(scene)
    assert Image.open(folder / '000100.jpg').size == SIZE
    assert {path: path.stat().st_mtime_ns for path in before if path.stem != '000100'} == {
        path: time for path, time in before.items() if path.stem != '000100'}


@pytest.mark.parametrize('place', ['link', 'color-link', 'frames'])
def test_images_are_not_copied_among_other_files(scene, frames, tmp_path, place):
    folder = tmp_path / 'out/train' / SCENE
    if place == 'link':
        run(frames)
    elif place == 'color-link':
        folder.mkdir(parents=True)
        (folder / 'color').symlink_to(frames)
    else:
        shutil.copytree(frames / SCENE, folder)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match=f'{SCENE}.*in the way of the colour images of {SCENE}.sens.*another --out-dir'):
        run_raw(scene, link=False)
    assert sorted(tmp_path.rglob('*')) == before


def test_recording_that_was_cut_off(scene, tmp_path):
    whole, _ = run_raw(scene)
    sens = scene / SENS
    data = sens.read_bytes()
    jpegs = [data.index(jpeg.read_bytes()) for jpeg in sorted((tmp_path / 'out/train' / SCENE / 'color').iterdir())]
    for end, kept in [(jpegs[0] - 20, 0), (jpegs[0] + 50, 0), (jpegs[1] - 300, 1), (jpegs[1] + 50, 1),
                      (jpegs[2] - 97, 2), (jpegs[2] - 96, 2), (jpegs[2], 2), (len(data) - 8, 3)]:
        sens.write_bytes(data[:end])
        shutil.rmtree(tmp_path / 'out')
        if not kept:
            with pytest.raises(UserError, match=rf'{SCENE}\.sens: ends (before|within) frame 0 of 230: 3 of 3 frames'):
                run_raw(scene)
            continue
        coco, summary = run_raw(scene)
        assert coco['images'] == whole['images'][:kept]
        assert coco['annotations'] == [a for a in whole['annotations'] if a['image_id'] <= kept]
        assert kinds(summary) == ['cut-sens'] * (kept < 3), end
        if summary.problems:
            assert f' of 230: {3 - kept} of 3 frames to convert are left out; download' in summary.problems[0].text
        with pytest.raises(UserError, match=r'\.sens: ends') if kept < 3 else open(os.devnull):
            run_raw(scene, strict=True)


def rewrite_streamed(path: Path) -> None:
    """Write an archive again as a stream, with the sizes behind each member."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith('/')}

    class Pipe:
        def __init__(self, file):
            self.write, self.flush = file.write, file.flush

    with path.open('wb') as file, zipfile.ZipFile(Pipe(file), 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize('archive', [LABELS, INSTANCES])
@pytest.mark.parametrize('streamed', [False, True])
def test_archive_that_was_cut_off(scene, tmp_path, archive, streamed):
    if streamed:
        rewrite_streamed(scene / archive)
    whole, summary = run_raw(scene)
    assert not summary.problems and whole['annotations']
    with zipfile.ZipFile(scene / archive) as opened:
        folder = archive[len(f'{SCENE}_2d-') : -len('.zip')]
        starts = [opened.getinfo(f'{folder}/{number}.png').header_offset for number in (0, 100, 200)]
        directory = opened.start_dir
    data = (scene / archive).read_bytes()
    for end, kept in [(starts[1], 1), (starts[1] + 20, 1), (starts[2] - 1, 2 - (not streamed)), (directory, 3),
                      (len(data) - 5, 3)]:
        (scene / archive).write_bytes(data[:end])
        coco, summary = run_raw(scene)
        assert coco['images'] == whole['images'][:kept]
        assert coco['annotations'] == [a for a in whole['annotations'] if a['image_id'] <= kept]
        (problem,) = summary.problems
        assert (problem.kind, problem.file) == ('cut-zip', str(scene / archive))
        assert problem.text.startswith(f'cut off: {3 - kept} of 3 frames to convert have no map in it')
    for junk in (b'', b'<html>', data[:20]):
        (scene / archive).write_bytes(junk)
        with pytest.raises(UserError, match=f'{archive}: not a zip archive: 3 of 3 frames'):
            run_raw(scene)


def test_damage_in_an_archive_is_one_frame(scene):
    data = bytearray((scene / LABELS).read_bytes())
    with zipfile.ZipFile(scene / LABELS) as opened:
        start = opened.getinfo('label-filt/100.png').header_offset
    data[start + 80 : start + 90] = b'x' * 10
    (scene / LABELS).write_bytes(data)
    coco, summary = run_raw(scene)
    assert [image['id'] for image in coco['images']] == [1, 3]
    assert [(p.kind, p.file) for p in summary.problems] == [('bad-png', f'{scene / LABELS}, label-filt/100.png')]


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 1, 2, 255])),
       arrays(np.uint16, (5, 7), elements=st.sampled_from([0, 1101, 1102, 1105, 1139, 1357, 9, 65535])))
def test_combined_maps_equal_the_reference(instances, labels):
    """By its definition: the class of most pixels; 1101 is wall, 1102 floor, 1357 void, 9 and 65535 are in no table."""
    table = np.full(1 << 16, 41, np.uint8)
    table[[0, 1357, *RAW_IDS.values()]] = [0, 0, *RAW_IDS]
    combined, unknown = combine_maps(instances, labels, table)
    assert unknown == sorted({9, 65535} & set(labels.ravel().tolist()))
    classes = np.where(table[labels] == 41, 0, table[labels])
    expected = np.where((instances == 0) & np.isin(classes, (1, 2)), classes, 0).astype(int)
    for instance in set(instances.ravel().tolist()) - {0}:
        found, counts = np.unique(classes[instances == instance], return_counts=True)
        class_ = int(found[counts.argmax()])
        expected[instances == instance] = class_ if class_ < 3 else class_ * 1000 + instance
    np.testing.assert_array_equal(combined, expected)
    assert combined.dtype == np.uint16


def test_unknown_raw_ids_are_listed(scene):
    (scene.parent.parent / TABLE).write_text('id\tnyu40id\n1101\t1\n1102\t2\n')
    coco, summary = run_raw(scene)
    assert {a['category_id'] for a in coco['annotations']} == {1, 2}
    assert [(p.kind, p.file) for p in summary.problems] == [
        ('unknown-id', f'{scene / LABELS}, label-filt/{number}.png') for number in (0, 100, 200)]
    assert f'ids [1105, 1140, {VOID_ID}] are not in {TABLE}' in summary.problems[0].text


def test_last_row_of_an_id_counts(tmp_path):
    """Some ids of scannetv2-labels.combined.tsv have two NYU40 ids; these are all the rows of three of them."""
    rows = [(107, 'pipe', 40), (188, 'shower door', 8), (107, 'pipes', 38), (385, 'cabinet door', 8),
            (385, 'cabinet doors', 3), (188, 'shower doors', 38), (5, 'chair', 5)]
    table = read_label_table(write_table(tmp_path, rows))
    assert table[[107, 188, 385, 5, VOID_ID, 0, 6]].tolist() == [38, 38, 3, 5, 0, 0, 41]


@pytest.mark.parametrize(('text', 'message'), [
    ('id\traw_category\n1\twall\n', "no column 'nyu40id'"),
    ('id,nyu40id\n1,1\n', "no column 'id'"),
    ('', "no column 'id'"),
    ('id\tnyu40id\n1\t1\nx\t2\n', "line 3 has id 'x' and nyu40id '2'"),
    ('id\tnyu40id\n1\t41\n', "line 2 has id '1' and nyu40id '41'"),
    ('id\tnyu40id\n70000\t4\n', "line 2 has id '70000'"),
    ('id\tnyu40id\n1\t\xff\n', 'not a table in UTF-8'),
])
def test_bad_label_table(scene, tmp_path, text, message):
    path = scene.parent.parent / TABLE
    path.write_bytes(text.encode('latin1'))
    with pytest.raises(UserError, match=f'{TABLE}: {message}.*as downloaded'):
        run_raw(scene)
    assert not (tmp_path / 'out').exists()


def test_place_of_the_label_table(scene, tmp_path):
    path = scene.parent.parent / TABLE
    other = path.rename(tmp_path / 'mine.tsv')
    with pytest.raises(UserError, match=f'{TABLE}: no such file.*--label_map.*--label-map'):
        run_raw(scene)
    with pytest.raises(UserError, match=f'missing.tsv: .*give {TABLE} with --label-map'):
        run_raw(scene, label_map=tmp_path / 'missing.tsv')
    assert run_raw(scene, label_map=other)[1].num_frames == 3
    (path.parent / 'tasks').mkdir()
    other.rename(path.parent / 'tasks' / TABLE)
    assert run_raw(scene)[1].num_frames == 3


def edit_sens(place: int, value: bytes):
    def damage(scene: Path) -> None:
        path = scene / SENS
        data = bytearray(path.read_bytes())
        data[place : place + len(value)] = value
        path.write_bytes(data)
    return damage


HEADER = 12 + len('StructureSensor') + 256


@pytest.mark.parametrize(('damage', 'problem'), [
    (lambda scene: (scene / LABELS).unlink(),
     f'no-labels {SCENE}: has no {LABELS}, packed or unpacked; download both'),
    (lambda scene: [(scene / LABELS).unlink(), (scene / INSTANCES).unlink()],
     f'no-labels {SCENE}: has no {LABELS} and no {INSTANCES}, packed or unpacked'),
    (lambda scene: (scene / SENS).unlink(), f'no-color {SCENE}: has neither images in color/ nor {SENS}'),
    (lambda scene: [(scene / 'color').mkdir(), Image.new('RGB', SIZE).save(scene / 'color/7.jpg')],
     f'no-frames {SCENE}/color: has no image whose number is a multiple of 100, such as 100.jpg or 000100.jpg'),
    (edit_sens(0, b'\3'), f'bad-sens {SCENE}/{SENS}: not a .sens file of version 4; download it again, or export'),
    (edit_sens(HEADER, b'\1'), f'bad-sens {SCENE}/{SENS}: its colour frames have compression type 1, only 2 (JPEG)'),
    (edit_sens(HEADER + 33, b'\xff'), f'bad-sens {SCENE}/{SENS}: its header gives '),
    (lambda scene: (scene / SENS).write_bytes((scene / SENS).read_bytes()[:HEADER]),
     f'bad-sens {SCENE}/{SENS}: ends within its header'),
])
def test_scene_that_cannot_be_used(scene, damage, problem):
    shutil.copytree(scene, scene.parent / 'scene0000_01')
    for path in (scene.parent / 'scene0000_01').iterdir():
        path.rename(path.with_name(path.name.replace(SCENE, 'scene0000_01')))
    damage(scene)
    coco, summary = run_raw(scene)
    assert {Path(image['file_name']).parts[0] for image in coco['images']} == {'scene0000_01'}
    (found,) = summary.problems
    assert f'{found.kind} {Path(found.file).relative_to(scene.parent)}: {found.text}'.startswith(problem)
    shutil.rmtree(scene.parent / 'scene0000_01')
    with pytest.raises(UserError, match='no usable scene of the train split, 1 problems. The first: '):
        run_raw(scene)


def test_impossible_size_in_a_recording(scene):
    frame = HEADER + 36 + 80  # the first size of the first frame
    edit_sens(frame, (MAX_COLOR_BYTES + 1).to_bytes(8, 'little'))(scene)
    with pytest.raises(UserError, match='frame 0 of 230 has an impossible size: 3 of 3 frames'):
        run_raw(scene)


@pytest.mark.parametrize(('folder', 'dtype', 'kind'), [
    ('label', np.uint8, 'not-16-bit'), ('instance', np.uint16, 'not-8-bit')])
def test_maps_of_another_depth(frames, tmp_path, folder, dtype, kind):
    write_raw(frames, tmp_path / 'scans', packed=False)
    path = tmp_path / 'scans' / SCENE / f'{folder}-filt/100.png'
    Image.fromarray(np.asarray(Image.open(path)).astype(dtype)).save(path)
    _, summary = run(tmp_path / 'scans')
    assert [(p.kind, p.file) for p in summary.problems] == [(kind, str(path))] and summary.num_frames == 2
    path.unlink()
    _, summary = run(tmp_path / 'scans')
    assert [(p.kind, p.file) for p in summary.problems] == [('no-png', f'{path.parent}, 100.png')]


def test_color_names_of_both_exporters(frames, tmp_path):
    """Numbers with and without zeros, and those of ScanNet's C++ program."""
    write_raw(frames, tmp_path / 'scans', sens=False)
    color = tmp_path / 'scans' / SCENE / 'color'
    (color / '000000.jpg').rename(color / '0.jpg')
    (color / '000100.jpg').rename(color / 'frame-000100.color.jpg')
    coco, summary = run(tmp_path / 'scans')
    assert [Path(image['file_name']).name for image in coco['images']] == [
        '0.jpg', 'frame-000100.color.jpg', '000200.jpg']
    assert len(coco['annotations']) == 6 and not summary.problems


def test_test_scans_have_images_only(scene, tmp_path):
    test = tmp_path / 'scans_test/scene0707_00'
    test.mkdir(parents=True)
    shutil.copy(scene / SENS, test / 'scene0707_00.sens')
    (summary,) = convert(tmp_path, tmp_path / 'out', SPLITS_DIR, ('test',), workers=1)
    coco = json.loads(summary.json_path.read_text())
    assert len(coco['images']) == 3 and coco['annotations'] == [] and not summary.problems
    assert (tmp_path / 'out/test' / coco['images'][2]['file_name']).is_file()


def test_memory_does_not_grow_with_the_recording(tmp_path):
    write_sens(tmp_path / 'a.sens', {}, 60, junk=bytes(200_000), depth=bytes(100_000))
    sens = SensFile(tmp_path / 'a.sens')
    tracemalloc.start()
    try:
        assert [(number, len(data)) for number, data in sens.color_frames(2)] == [(n, 200_000) for n in range(0, 60, 2)]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_full_disk_leaves_whole_images(scene, tmp_path, monkeypatch):
    """The second image does not fit: the first stays whole, there is no file of annotations."""
    written = []

    def full(path, data, **options):
        if written:
            raise OSError(28, 'No space left on device', str(path))
        written.append(path)
        return write(path, data, **options)

    write = converter.read_raw_scene.__globals__['write_bytes']
    monkeypatch.setitem(converter.read_raw_scene.__globals__, 'write_bytes', full)
    with pytest.raises(UserError, match=r'color/000100\.jpg: No space left'):
        run_raw(scene)
    assert [path.name for path in tmp_path.glob('out/**/*') if path.is_file()] == ['000000.jpg']
