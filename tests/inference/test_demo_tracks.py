"""tools/demo.py with tracking: videos, scenes, cameras and what it writes."""

import importlib.util
import json
import shutil
import signal
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from deit_detr.errors import UserError
from deit_detr.inference.camera import CameraFrames, camera_source, in_real_time, until_interrupted
from deit_detr.inference.video import VideoFrames, write_video
from tests.helpers.cameras import camera
from tests.helpers.paths import REPO


@pytest.fixture
def demo(detector_files, monkeypatch, tmp_path):
    """Run the tool in this process: starting one takes longer than the demo."""
    spec = importlib.util.spec_from_file_location('demo', REPO / 'tools/demo.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.chdir(tmp_path)

    def demo(*arguments):
        monkeypatch.setattr(sys, 'argv', ['demo.py', *map(str, (*detector_files, *arguments))])
        tool.main()

    return demo


@pytest.fixture(scope='module')
def picture(mini_frames) -> np.ndarray:
    return cv2.imread(str(next(mini_frames.glob('*/color/*.jpg'))))


@pytest.fixture(params=['http', 'rtsp'])
def stream(request, picture):
    """A camera at an address with a password, which hangs up after a few pictures; and the list of its connections."""
    with camera(request.param, picture) as served:
        yield served


@pytest.mark.slow
def test_video(demo, tmp_path, picture, capsys):
    pytest.importorskip('trackers', reason='optional')
    write_video(tmp_path / 'clip.mp4', [picture] * 4, 5)
    demo('clip.mp4', '--track', '--results', 'jsonl', '--score-thr', 0.2)
    assert len(VideoFrames(tmp_path / 'demo/clip.mp4')) == 4
    frames = [json.loads(line) for line in (tmp_path / 'demo/clip.jsonl').read_text().splitlines()]
    assert [frame['frame'] for frame in frames] == [0, 1, 2, 3] and frames[0]['objects'] == []
    numbers = {found['id'] for frame in frames for found in frame['objects']}
    assert numbers, 'the picture stands still'
    seen = json.loads((tmp_path / 'demo/clip.objects.json').read_text())
    assert {found['id'] for found in seen} == numbers == set(range(1, len(seen) + 1))
    assert 'clip.objects.json: ' in capsys.readouterr().out
    demo('clip.mp4', '--track', '--results', 'mot', '--score-thr', 0.2, '--frames', 3)
    rows = np.loadtxt(tmp_path / 'demo/clip.txt', delimiter=',', ndmin=2)
    assert rows.shape[1] == 10 and set(rows[:, 0]) == {2, 3}
    assert [(int(row[0]) - 1, int(row[1]), row[2]) for row in rows] == [
        (frame['frame'], found['id'], found['bbox'][0]) for frame in frames[:3] for found in frame['objects']]
    demo('clip.mp4', '--track', '--results', '-', '--frames', 1)
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1])['frame'] == 0


def test_scene(demo, tmp_path, mini_frames):
    pytest.importorskip('trackers', reason='optional')
    (tmp_path / 'scene0009_01/color').mkdir(parents=True)
    frame = next(mini_frames.glob('*/color/*.jpg'))
    for number in (0, 20, 100):
        shutil.copy(frame, tmp_path / f'scene0009_01/color/{number}.jpg')
    demo('scene0009_01', '--track', '--score-thr', 0.2)
    seen = json.loads((tmp_path / 'demo/scene0009_01.objects.json').read_text())
    assert seen and all(found['frames'] == ['20', '100'] for found in seen)


def test_flags_that_need_tracking(demo, capsys):
    for arguments in (('--results', 'mot'), ('--show',), ('--frames', 0)):
        with pytest.raises(SystemExit):
            demo('clip.mp4', *arguments)
        assert 'need --track' in (error := capsys.readouterr().err) or 'more than 0' in error


def test_window_without_a_display(demo, tmp_path, picture, monkeypatch):
    pytest.importorskip('trackers', reason='optional')
    monkeypatch.setattr(sys, 'platform', 'linux')
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    write_video(tmp_path / 'clip.mp4', [picture] * 2, 5)
    with pytest.raises(UserError, match='no display'):
        demo('clip.mp4', '--track', '--show')
    assert not (tmp_path / 'demo').exists()


@pytest.mark.parametrize('text, source', [
    ('0', 0), ('12', 12), ('rtsp://user:pw@10.0.0.2/a', 'rtsp://user:pw@10.0.0.2/a'), ('room.mp4', None),
    ('file:///etc/passwd', None), ('concat://a', None), ('C:/video.mp4', None)])
def test_sources(text, source):
    assert camera_source(text) == source


def test_file_with_a_number_as_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / '7').mkdir()
    assert camera_source('7') is None


def test_camera_that_is_not_there(demo):
    with pytest.raises(UserError, match='camera97: no webcam that OpenCV can open'):
        demo('97')
    with pytest.raises(UserError, match='127.0.0.1_9_x: no stream that OpenCV can open') as error:
        demo('rtsp://user:secret@127.0.0.1:9/x')
    assert 'secret' not in str(error.value)


@pytest.mark.slow
def test_stream_reconnects(demo, stream, tmp_path):
    pytest.importorskip('trackers', reason='optional')
    address, connections = stream
    demo(address, '--results', 'jsonl', '--frames', 5)
    (video,) = (tmp_path / 'demo').glob('*.mp4')
    (lines,) = (tmp_path / 'demo').glob('*.jsonl')
    assert 'secret' not in video.name and len(VideoFrames(video)) >= 1
    times = [json.loads(line)['seconds'] for line in lines.read_text().splitlines()]
    assert len(times) == 5 and times == sorted(set(times)) and len(connections) > 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith('reader of')]


def test_stream_that_stays_away_ends_with_a_sentence(demo, monkeypatch, tmp_path, picture):
    """The video so far is kept."""
    pytest.importorskip('trackers', reason='optional')

    class Capture:  # a subclass of cv2.VideoCapture corrupts memory when it is freed
        pictures = iter([picture] * 2)

        def isOpened(self):  # noqa: N802
            return True

        def get(self, _):
            return -1

        def read(self):
            return (True, picture) if next(self.pictures, None) is not None else (False, None)

        def release(self):
            pass

    monkeypatch.setattr(CameraFrames, '_open', lambda self: Capture())
    monkeypatch.setattr(CameraFrames.__init__, '__defaults__', (0.7,))
    with pytest.raises(UserError, match='camera3: no picture for 0.7 s; ended'):
        demo('3')
    assert [path.name for path in (tmp_path / 'demo').iterdir()] == ['camera3.mp4']
    with pytest.raises(UserError, match='camera3: no picture'):
        demo('3', '--out-dir', 'other')
    assert not (tmp_path / 'other').exists() or not list((tmp_path / 'other').iterdir())


def test_camera_gives_the_newest_picture(monkeypatch):
    class Capture:
        count = 0

        def isOpened(self):  # noqa: N802
            return True

        def get(self, _):
            return -1

        def read(self):
            time.sleep(0.01)
            Capture.count += 1
            return True, np.full((4, 6 if Capture.count < 20 else 8, 3), Capture.count % 256, np.uint8)

        def release(self):
            Capture.released = True

    monkeypatch.setattr(CameraFrames, '_open', lambda self: Capture())
    seen = []
    for seconds, frame in CameraFrames(0):
        assert frame.shape == (4, 6, 3), 'also when the camera changes its size'
        seen.append((seconds, int(frame[0, 0, 0])))
        time.sleep(0.1)  # a slow detector
        if len(seen) == 5:
            break
    numbers = [number for _, number in seen]
    assert numbers == sorted(set(numbers)) and numbers[-1] > 2 * len(numbers)
    deadline = time.monotonic() + 5
    while not getattr(Capture, 'released', False) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Capture.released


def test_video_at_an_address_that_ends(tmp_path, picture, monkeypatch):
    write_video(tmp_path / 'a.mp4', [picture] * 3, 5)
    monkeypatch.setattr(CameraFrames, '_open', lambda self: cv2.VideoCapture(str(tmp_path / 'a.mp4')))
    with pytest.raises(UserError, match='a.mp4: a video that ends. Download it'):
        CameraFrames('http://127.0.0.1/a.mp4')


def test_video_keeps_the_time_of_the_camera():
    frames = [(10.0, 'a'), (10.05, 'b'), (10.5, 'c'), (10.8, 'd')]
    assert list(in_real_time(iter(frames), 10)) == ['b'] * 5 + ['c'] * 3 + ['d']
    assert list(in_real_time(iter(frames[:1]), 10)) == ['a'] and list(in_real_time([], 10)) == []


def test_interrupt_ends_once():
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with until_interrupted() as stopped:
            signal.raise_signal(signal.SIGINT)
            assert stopped.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)
