"""MiniScanNet: layout, determinism, and that its labels, depth and poses belong to the same rooms."""

import json
import sys

import cv2
import numpy as np
import pytest

from deit_detr.errors import UserError
from deit_detr.scannet.classes import SCANNET_CLASSES, STUFF_IDS
from deit_detr.scannet.mini_scannet import make_mini_scannet
from deit_detr.scannet.mini_scannet.geometry import Camera, Mesh
from deit_detr.scannet.mini_scannet.materials import CERAMIC
from deit_detr.scannet.mini_scannet.render import Lights, Scene
from deit_detr.scannet.mini_scannet.rooms import THEMES, Room
from deit_detr.scannet.mini_scannet.textures import PAINTERS, TEXTURE_SIZE, Atlas
from deit_detr.scannet.mini_scannet.writer import MIN_VISIBLE_PIXELS
from tests.helpers.fork_server import start
from tests.helpers.paths import REPO

SPLITS = REPO / 'data' / 'splits'
SMALL = dict(num_train=6, num_val=2, size=(64, 48), workers=1)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """One training scene of each kind of room, in a size where objects are still recognisable."""
    out = tmp_path_factory.mktemp('mini') / 'frames'
    result = make_mini_scannet(out, SPLITS, num_train=20, num_val=4, size=(160, 120), workers=2)
    return out, result


@pytest.fixture(scope='module', params=THEMES)
def room(request):
    return Room((11,), request.param)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob('*')) if path.is_file()}


def frames(root):
    return sorted(root.glob('*/instance/*.png'))


def unproject(depth, camera_to_world, intrinsics):
    row, column = np.indices(depth.shape)
    rays = np.stack([column, row, np.ones_like(row)], -1) @ np.linalg.inv(intrinsics[:3, :3]).T
    return (rays * depth[..., None]) @ camera_to_world[:3, :3].T + camera_to_world[:3, 3]


def two_boxes():
    lights = Lights(np.array([0, 0, 9.0]), np.ones(3), np.array([0, 0, 9.0]), np.ones(3), np.ones(3))
    near, far = Mesh(), Mesh()
    near.box((-0.5, 2, -0.5), (0.5, 3, 0.5), CERAMIC)
    far.box((-1, 5, -1), (2, 6, 1), CERAMIC)
    return near, far, lights


@pytest.mark.parametrize('order', [1, -1])
def test_nearest_face_wins_at_its_exact_place(order):
    near, far, lights = two_boxes()
    scene = Scene([(near, 3001), (far, 5002)][::order], Atlas((0,)), lights)
    camera = Camera.look_at((0, 0, 0), (0, 1, 0), np.radians(90), (81, 61))
    _, instance, depth = scene.render(camera)

    row, column = np.indices(instance.shape)
    x, y = (column - 40) / 40.5, (row - 30) / 40.5
    covers_near = (np.abs(x) <= 0.25) & (np.abs(y) <= 0.25)
    covers_far = (x >= -1 / 5) & (x <= 2 / 5) & (np.abs(y) <= 1 / 5) & ~covers_near
    np.testing.assert_array_equal(instance, np.select([covers_near, covers_far], [3001, 5002], 0))
    np.testing.assert_allclose(depth, np.select([covers_near, covers_far], [2, 5], 0), rtol=1e-5)


def test_a_face_behind_and_around_the_camera_is_clipped():
    _, _, lights = two_boxes()
    shell = Mesh()
    shell.box((-1, -1, -1), (1, 3, 1), CERAMIC, inside=True)
    camera = Camera.look_at((0.2, 0, 0.1), (0.2, 1, 0.1), np.radians(100), (64, 48))
    _, instance, depth = Scene([(shell, 1)], Atlas((0,)), lights).render(camera)
    assert (instance == 1).all()
    assert depth.max() == pytest.approx(3, rel=1e-5)
    points = unproject(depth, camera.pose(), camera.intrinsics())
    on_shell = np.minimum(np.abs(points - (-1, -1, -1)).min(-1), np.abs(points - (1, 3, 1)).min(-1))
    assert on_shell.max() < 1e-4


@pytest.mark.parametrize('name', PAINTERS)
def test_textures_are_images_and_differ_between_seeds(name):
    first, second = (PAINTERS[name](np.random.default_rng(seed)) for seed in (0, 1))
    assert first.shape == (TEXTURE_SIZE, TEXTURE_SIZE, 3)
    assert np.clip(first, 0, 1).mean() == pytest.approx(first.mean(), abs=0.05)
    assert not np.array_equal(first, second)


def test_every_pixel_shows_the_object_that_it_is_labelled_as(room):
    bounds = {value: mesh.bounds() for mesh, value in room.meshes if value > 0}
    for k in range(3):
        camera = room.camera(k, (96, 72), np.radians(65))
        _, instance, depth = room.scene.render(camera)
        assert (depth > 0.2).all(), 'a hole in the room, or the camera touches something'
        points = unproject(depth, camera.pose(), camera.intrinsics())
        for value in np.unique(instance[instance > 0]):
            low, high = bounds[value]
            seen = points[instance == value]
            assert (seen > low - 0.01).all() and (seen < high + 0.01).all(), value


def test_furniture_stays_in_the_room(room):
    for mesh, value in room.meshes:
        low, high = mesh.bounds()
        assert (low > -0.03).all() and (high < room.size + 0.03).all(), value


def test_layout_and_values(dataset):
    root, result = dataset
    ids = {row[1] for row in SCANNET_CLASSES}
    assert len(frames(root)) == 24
    boxes = {'train': {}, 'val': {}}
    train = (SPLITS / 'scannetv2_train.txt').read_text().split()
    for path in frames(root):
        scene, name = path.parents[1], path.stem
        assert int(name) % 100 == 0 and len(name) == 6
        color = cv2.imread(str(scene / 'color' / f'{name}.jpg'))
        label = cv2.imread(str(scene / 'label' / f'{name}.png'), cv2.IMREAD_UNCHANGED)
        instance = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        depth = cv2.imread(str(scene / 'depth' / f'{name}.png'), cv2.IMREAD_UNCHANGED)
        assert color.shape == (120, 160, 3)
        assert label.shape == instance.shape == depth.shape == (120, 160)
        assert (label.dtype, instance.dtype, depth.dtype) == (np.uint8, np.uint16, np.uint16)
        np.testing.assert_array_equal(label, np.where(instance < 1000, instance, instance // 1000))
        assert 30 < color.mean() < 225 and color.std() > 10
        values, counts = np.unique(instance[instance > 0], return_counts=True)
        assert counts.min() >= MIN_VISIBLE_PIXELS
        for value in values.tolist():
            nyu40_id = value // 1000 or value
            assert nyu40_id in ids
            assert (value < 1000) == (nyu40_id in STUFF_IDS)
            assert value < 1000 or value % 1000 > 0
            split = boxes['train' if scene.name in train else 'val']
            split[nyu40_id] = split.get(nyu40_id, 0) + 1
    for split, count in result['boxes'].items():
        assert {name: count[name] for name in count if count[name]} == {
            name: boxes[split][i] for name, i, _ in SCANNET_CLASSES if i in boxes[split]}


def test_all_classes_appear_in_one_room_of_each_kind(dataset):
    missing = [name for name, count in dataset[1]['boxes']['train'].items() if count == 0]
    assert not missing


def test_written_pose_and_intrinsics_unproject_the_depth_to_the_floor(dataset):
    checked = 0
    for path in frames(dataset[0]):
        scene, name = path.parents[1], path.stem
        depth = cv2.imread(str(scene / 'depth' / f'{name}.png'), cv2.IMREAD_UNCHANGED) / 1000
        pose, intrinsics = np.loadtxt(scene / 'pose' / f'{name}.txt'), np.loadtxt(scene / 'intrinsics_depth.txt')
        floor = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) == 2
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-5)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1, abs=1e-5)
        assert 1.1 < pose[2, 3] < 1.9
        assert np.abs(unproject(depth, pose, intrinsics)[floor][:, 2]).max(initial=0) < 0.005
        checked += floor.any()
    assert checked > 10


def test_scenes_follow_the_official_splits(dataset):
    names = {path.name for path in dataset[0].iterdir() if path.is_dir()}
    train, val = ((SPLITS / f'scannetv2_{split}.txt').read_text().split() for split in ('train', 'val'))
    assert names == {*train[:5], *val[:1]}


@pytest.mark.slow
def test_same_bytes_whatever_the_number_of_workers(tmp_path):
    make_mini_scannet(tmp_path / 'one', SPLITS, **SMALL)
    make_mini_scannet(tmp_path / 'three', SPLITS, **dict(SMALL, workers=3))
    assert contents(tmp_path / 'one') == contents(tmp_path / 'three')


@pytest.mark.slow
def test_more_frames_keep_the_first_ones_and_another_seed_changes_them(tmp_path):
    few, more, other = tmp_path / 'few', tmp_path / 'more', tmp_path / 'other'
    make_mini_scannet(few, SPLITS, **SMALL)
    make_mini_scannet(more, SPLITS, **dict(SMALL, num_train=9))
    make_mini_scannet(other, SPLITS, **dict(SMALL, seed=1))
    few, more, other = contents(few), contents(more), contents(other)
    del few['mini_scannet.json']
    assert few.items() <= more.items()
    images = [name for name in few if name.endswith('.jpg')]
    assert len(images) == 8 and all(few[name] != other[name] for name in images)


def test_second_run_with_the_same_arguments_leaves_the_data_alone(tmp_path):
    out = tmp_path / 'out'
    first = make_mini_scannet(out, SPLITS, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    second = make_mini_scannet(out, SPLITS, **SMALL)
    assert (first.pop('reused'), second.pop('reused')) == (False, True)
    assert first == second
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    with pytest.raises(UserError, match='remove it or name a new folder'):
        make_mini_scannet(out, SPLITS, **dict(SMALL, seed=5))


def test_an_empty_folder_is_filled(tmp_path):
    make_mini_scannet(tmp_path, SPLITS, num_train=1, num_val=0, size=(64, 48), workers=1)
    assert len(frames(tmp_path)) == 1


@pytest.mark.parametrize(('content', 'message'), [('notes.txt', 'is not empty'), ('mini_scannet.json', 'is damaged')])
def test_a_folder_with_other_content_is_refused_and_kept(tmp_path, content, message):
    (tmp_path / content).write_text('mine')
    with pytest.raises(UserError, match=message):
        make_mini_scannet(tmp_path, SPLITS, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [content]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(num_train=-1), 'train must be at least 0, not -1'),
        (dict(num_train=0, num_val=0), 'nothing to render'),
        (dict(size=(64, 8)), 'size must be between'),
        (dict(seed=-3), 'seed must be at least 0'),
        (dict(workers=0), 'workers must be at least 1'),
        (dict(splits_dir='nowhere'), 'cannot read the split nowhere'),
    ])
def test_bad_arguments_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        make_mini_scannet(**dict(dict(SMALL, out_dir=tmp_path / 'out', splits_dir=SPLITS), **change))
    assert not list(tmp_path.iterdir())


def test_a_failing_scene_leaves_nothing_behind(tmp_path):
    splits = tmp_path / 'splits'
    splits.mkdir()
    # The second scene cannot have a folder of such a name.
    (splits / 'scannetv2_train.txt').write_text(f'scene0000_00\n{"x" * 300}\n')
    with pytest.raises(UserError, match='out: cannot be written'):
        make_mini_scannet(tmp_path / 'out', splits, **dict(SMALL, num_val=0))
    assert [path.name for path in tmp_path.iterdir()] == ['splits']


def test_command_line(tmp_path):
    def call(*args):
        script = REPO / 'tools/dataset_converters/make_mini_scannet.py'
        return start(sys.executable, script, *args, cwd=tmp_path, merged=False)

    done = call('out', '--train', '1', '--val', '1', '--size', '64x48')
    assert done.returncode == 0, done.stderr
    arguments = json.loads((tmp_path / 'out' / 'mini_scannet.json').read_text())['arguments']
    assert (arguments['train'], arguments['val'], arguments['size']) == (1, 1, [64, 48])
    assert 'wrote out' in done.stdout and 'bookshelf' in done.stdout
    failed = call('out', '--train', '2')
    assert failed.returncode == 2 and failed.stdout == ''
    assert failed.stderr.startswith('error: ') and failed.stderr.count('\n') == 1
    assert call('new', '--size', 'big').returncode == 2
