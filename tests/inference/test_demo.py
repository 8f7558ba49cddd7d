"""tools/demo.py on pictures, folders, videos and scenes; its files are written whole or not at all."""

import importlib.util
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import deit_detr
from deit_detr.errors import UserError
from deit_detr.inference.video import VideoFrames, scene_frames, write_picture, write_video
from tests.helpers.paths import REPO

TOOL = REPO / 'tools/demo.py'


@pytest.fixture
def demo(detector_files, monkeypatch, tmp_path):
    """Run the tool in this process: starting one takes longer than the demo."""
    spec = importlib.util.spec_from_file_location('demo', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.chdir(tmp_path)

    def demo(*arguments):
        monkeypatch.setattr(sys, 'argv', ['demo.py', *map(str, (*detector_files, *arguments))])
        tool.main()

    return demo


def frames_of(path: Path) -> list[np.ndarray]:
    return list(VideoFrames(path))


@pytest.mark.slow
def test_command_line_draws_a_picture(detector_files, mini_frames, run, tmp_path):
    shutil.copy(next(mini_frames.glob('*/color/000000.jpg')), tmp_path / 'room.jpg')
    # the order of its imports matters: not all tools begin with this package
    output = run(sys.executable, TOOL, *detector_files, 'room.jpg', own_start=True)
    assert output.startswith('demo/room.jpg: ') and output.endswith(' ms)\n') and output.count('\n') == 1
    with Image.open(tmp_path / 'demo/room.jpg') as picture:
        assert picture.size == (960, 720)
    assert len(list(tmp_path.rglob('*'))) == 3, 'room.jpg, demo/ and demo/room.jpg'


@pytest.mark.slow
def test_scene_becomes_a_video_in_order(demo, detector_files, mini_frames, tmp_path):
    scene = tmp_path / 'scene0009_01'
    (scene / 'color').mkdir(parents=True)
    originals = sorted(mini_frames.glob('*/color/*.jpg'))[:3]
    for number, path in zip((9, 100, 1000), originals, strict=True):  # raw exports have no leading zeros
        shutil.copy(path, scene / f'color/{number}.jpg')
    assert [path.name for path in scene_frames(scene)] == ['9.jpg', '100.jpg', '1000.jpg']
    demo(scene, '--out-dir', 'out')
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['scene0009_01.mp4']
    assert VideoFrames(tmp_path / 'out/scene0009_01.mp4').fps == 2
    detector = deit_detr.load(*detector_files)
    shown = frames_of(tmp_path / 'out/scene0009_01.mp4')
    expected = [np.asarray(detector.draw(path, detector(path)))[..., ::-1] for path in originals]
    differences = np.array([[np.abs(a.astype(int) - b).mean() for b in expected] for a in shown])
    assert (differences.argmin(1) == range(3)).all() and differences.diagonal().max() < 6 < differences[0, 1]


def test_video_keeps_length_and_speed(demo, tmp_path):
    moving = [np.full((120, 160, 3), 60 + 20 * number, np.uint8) for number in range(5)]
    assert write_video(tmp_path / 'clip.avi.mp4', moving, 12.5) == 5
    demo('clip.avi.mp4', '--score-thr', 1)
    video = VideoFrames(tmp_path / 'demo/clip.avi.mp4')
    assert (video.fps, len(video)) == (12.5, 5)
    shown = list(video)
    assert all(frame.shape == (720, 960, 3) for frame in shown)
    assert np.diff([frame.mean() for frame in shown]) == pytest.approx(20, abs=2)
    with pytest.raises(UserError, match='clip.avi.mp4: would be overwritten'):
        demo('demo/clip.avi.mp4')


@pytest.mark.parametrize('fps, written', [
    (119.8825, 119.88), (240.0344, 240.03), (999.99993, 1000), (23.976023976, 23.976), (65.5351, 65.54)])
def test_odd_rates(tmp_path, fps, written):
    """Those of phones' slow motion: the time base of MPEG-4 ends at 65535."""
    assert write_video(tmp_path / 'slow.mp4', [np.zeros((48, 64, 3), np.uint8)] * 3, fps) == 3
    assert VideoFrames(tmp_path / 'slow.mp4').fps == pytest.approx(written)


def test_folder_of_pictures(demo, mini_frames, tmp_path, capsys):
    (tmp_path / 'in').mkdir()
    frame = Image.open(next(mini_frames.glob('*/color/*.jpg')))
    for name in ('a.png', 'b.JPG', 'c.bmp'):
        frame.save(tmp_path / 'in' / name)
    (tmp_path / 'in/notes.txt').write_text('no picture')
    demo('in')
    assert sorted(path.name for path in (tmp_path / 'demo').iterdir()) == ['a.png', 'b.JPG', 'c.bmp']
    assert capsys.readouterr().out.count(' ms)\n') == 3
    before = (tmp_path / 'in/a.png').read_bytes()
    with pytest.raises(UserError, match='a.png: would be overwritten'):
        demo('in', '--out-dir', 'in')
    assert (tmp_path / 'in/a.png').read_bytes() == before


def test_folders_of_pictures(demo, mini_frames, tmp_path):
    """One picture an image for any layout; of scenes, the frames without ``color``."""
    frame = next(mini_frames.glob('*/color/*.jpg'))
    for name in ('0.jpg', 'day1/0.jpg', 'day2/0.jpg', 's1/color/0.jpg', 's1/depth/0.jpg', 'demo/old.jpg'):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(frame, tmp_path / 'in' / name)
    (tmp_path / 'in/day2/up').symlink_to(tmp_path / 'in')
    demo('in', '--out-dir', 'in/demo', '--score-thr', 1)
    drawn = {str(path.relative_to(tmp_path / 'in/demo')) for path in (tmp_path / 'in/demo').rglob('*.*')}
    assert drawn == {'0.jpg', 'day1/0.jpg', 'day2/0.jpg', 's1/0.jpg', 'old.jpg'}
    demo('in/s1/color/0.jpg')
    assert [path.name for path in (tmp_path / 'demo').iterdir()] == ['0.jpg']


@pytest.mark.parametrize('name, message', [
    ('nowhere.jpg', 'nowhere.jpg: no such file or folder'),
    ('empty', 'empty: has no pictures, and none in color'),
    ('broken.jpg', 'broken.jpg: cannot be read as an image'),
    ('broken.mp4', 'broken.mp4: neither an image nor a video'),
])
def test_inputs_that_are_none(demo, tmp_path, name, message):
    (tmp_path / 'empty').mkdir()
    for broken in ('broken.jpg', 'broken.mp4'):
        (tmp_path / broken).write_bytes(b'not what the name says')
    with pytest.raises(UserError, match=message):
        demo(name)
    assert not (tmp_path / 'demo').exists()


def test_needs_an_input_or_the_page(demo, capsys):
    for arguments in ((), ('room.jpg', '--web')):
        with pytest.raises(SystemExit):
            demo(*arguments)
        assert 'either an input or --web' in capsys.readouterr().err


def test_videos_are_whole_or_not_there(tmp_path):
    grey = np.full((48, 64, 3), 90, np.uint8)
    out = tmp_path / 'out.mp4'

    def stopped():
        yield grey
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(out, stopped(), 5)
    with pytest.raises(UserError, match='there are no frames'):
        write_video(out, [], 5)
    assert not list(tmp_path.iterdir())
    write_video(out, [grey] * 2, 5)
    before = out.read_bytes()
    with pytest.raises(UserError, match='frame 1 is 64x50, the first was 64x48'):
        write_video(out, [grey, np.zeros((50, 64, 3), np.uint8)], 5)
    assert out.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match='cannot be written'):
        write_video(out / 'inside_a_file.mp4', [grey], 5)
    assert write_video(tmp_path / 'odd.mp4', [grey[:47, :63]] * 3, 5) == 3
    assert [frame.shape for frame in frames_of(tmp_path / 'odd.mp4')] == [(46, 62, 3)] * 3


def test_pictures_are_whole_or_not_there(tmp_path):
    picture = Image.new('RGB', (8, 6))
    write_picture(tmp_path / 'new/a.png', picture)
    assert cv2.imread(str(tmp_path / 'new/a.png')).shape == (6, 8, 3)
    with pytest.raises(UserError, match='has to end in the suffix of a picture'):
        write_picture(tmp_path / 'a.picture', picture)
    with pytest.raises(UserError, match='cannot be written'):
        write_picture(tmp_path / 'new/a.png/b.png', picture)
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['a.png', 'new']
