"""Inference on any file that may be an image gives boxes or one message."""

import importlib.util
import io
import sys

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

import deit_detr
from deit_detr.errors import UserError
from deit_detr.inference.video import VideoFrames, write_video
from deit_detr.pages.html import picture
from tests.helpers.fuzzing import cases, contained, damaged, peak_memory
from tests.helpers.odd_images import ANY_FILE, MODES, image_file, jpeg_header, png_header
from tests.helpers.paths import REPO

#: Pillow starts Ghostscript, if it is installed, to decode this.
EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n4 4 moveto\nshowpage\n%%EOF\n'


def check(array: np.ndarray) -> None:
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size
    assert array.flags.c_contiguous


@cases(150)
@given(ANY_FILE, st.sampled_from(['a.jpg', 'a.png', 'a', '%03d.jpg', 'ä\n.webp']))
@example(png_header(60000, 60000, 8, 2), 'a.png')
@example(png_header(20000, 20000, 8, 2), 'a.png')
@example(jpeg_header(60000, 60000), 'a.jpg')
@example(jpeg_header(1, 60000), 'a.jpg')
@example(image_file('RGB', (24, 18), 'GIF', frames=3), 'a.gif')
@example(image_file('RGB', (24, 18), 'WEBP', frames=3), 'a.webp')
@example(image_file('CMYK', (24, 18), 'JPEG', orientation=6), 'a.jpg')
@example(image_file('I;16', (24, 18), 'PNG'), 'a.png')
@example(image_file('F', (24, 18), 'TIFF'), 'a.tiff')
@example(EPS, 'a.jpg')
def test_files(detector, tmp_path, data, name):
    path = tmp_path / name
    path.write_bytes(data)
    with contained(tmp_path):
        check(detector.read(path))
    with contained(tmp_path):
        assert picture(path) is None or picture(path).startswith('data:image/jpeg;base64,')
    path.unlink()


@pytest.mark.parametrize('data', [
    png_header(60000, 60000, 8, 2), png_header(30000, 30000, 8, 2), png_header(9000, 9000, 8, 2),
    jpeg_header(60000, 60000), jpeg_header(30000, 30000)], ids=['png 60k', 'png 30k', 'png 9k', 'jpeg 60k', 'jpeg 30k'])
def test_claimed_sizes_take_no_memory(detector, tmp_path, data):
    (tmp_path / 'a.png').write_bytes(data)

    def read() -> None:
        with pytest.raises(UserError, match='too large|exceeds limit'):
            detector(tmp_path / 'a.png')
        assert picture(tmp_path / 'a.png') is None

    assert peak_memory(read) < 100


ARRAYS = st.sampled_from(['u1', 'u1', 'u1', 'i1', 'u2', 'i8', 'f4', 'f8', 'c8', '?', 'O', 'U1', 'M8[s]', 'V4']).flatmap(
    lambda kind: arrays(kind, array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6)) if kind not in 'OV4' else
    array_shapes(min_dims=0, max_dims=4, min_side=0).map(lambda shape: np.empty(shape, kind)))
LAYOUTS = st.sampled_from([
    lambda a: a, np.asfortranarray, lambda a: a[::-1], lambda a: a[..., ::-1], lambda a: a.T, lambda a: a[:1],
    lambda a: np.lib.stride_tricks.as_strided(a, (3, 3, 3), (0, 0, 0)) if a.size else a,
    lambda a: np.ma.masked_array(a), lambda a: a.view(np.matrix) if a.ndim == 2 else a])


@cases(200)
@given(ARRAYS, LAYOUTS)
def test_arrays(detector, tmp_path, array, layout):
    try:
        array = layout(array)
    except (IndexError, ValueError):
        return
    if isinstance(array, np.ndarray):
        array.flags.writeable = False
    with contained(tmp_path):
        check(detector.read(array))


@cases(150)
@given(
    st.sampled_from([*MODES, 'La', 'RGBa', 'PA', 'HSV', 'LAB', 'RGBX', 'I;16B', 'I;16L']),
    st.tuples(st.integers(0, 9), st.integers(0, 9)), st.sampled_from([None, 0, 3, 6, 99, 'x']))
def test_pil_images(detector, tmp_path, mode, size, orientation):
    image = Image.new(mode, size)
    if orientation is not None:
        image.getexif()[0x0112] = orientation
    with contained(tmp_path):
        check(detector.read(image))


@cases(60)
@given(ANY_FILE)
@example(image_file('RGB', (24, 18), 'GIF', frames=3))
def test_pil_images_of_damaged_files(detector, tmp_path, data):
    try:
        image = Image.open(io.BytesIO(data))
    except Exception:  # Pillow's, before this package reads it
        return
    with contained(tmp_path):
        check(detector.read(image))
    image.close()
    with contained(tmp_path):
        check(detector.read(image))


@pytest.mark.parametrize('shape', [(1, 1, 3), (1, 4000, 3), (4000, 1, 3), (20, 1), (3, 900, 4), (16, 320, 3)])
def test_shapes_that_vanish_when_they_are_resized(detector, tmp_path, shape):
    with contained(tmp_path):
        found = detector(np.zeros(shape, np.uint8), score_thr=0)
        assert found.ori_shape == shape[:2]
        detector.draw(np.zeros(shape, np.uint8), found)


@cases(15)
@given(ANY_FILE)
@example(image_file('CMYK', (40, 30), 'JPEG', orientation=6))
def test_detections(detector, tmp_path, data):
    path = tmp_path / 'a.jpg'
    path.write_bytes(data)
    with contained(tmp_path):
        found = detector(path, score_thr=0)
        height, width = found.ori_shape
        boxes = found.pred_instances.bboxes
        assert boxes.isfinite().all() and boxes.min() >= 0 and boxes[:, 2].max() <= width
        assert boxes[:, 3].max() <= height
    path.unlink()


@pytest.mark.parametrize('kind', ['PPM', 'TIFF'])
def test_floating_point_pictures(detector, tmp_path, kind):
    (tmp_path / 'a.jpg').write_bytes(image_file('F', (40, 30), kind))
    with contained(tmp_path), pytest.raises(UserError, match='a.jpg: .*floating-point'):
        detector(tmp_path / 'a.jpg')


@pytest.fixture
def demo(detector_files, detector, monkeypatch, tmp_path):
    """tools/demo.py in this process, with a detector that is already loaded."""
    spec = importlib.util.spec_from_file_location('demo', REPO / 'tools/demo.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(deit_detr, 'load', lambda *_: detector)
    monkeypatch.chdir(tmp_path)

    def demo(*arguments):
        monkeypatch.setattr(sys, 'argv', ['demo.py', *map(str, (*detector_files, *arguments))])
        tool.main()

    return demo


@pytest.mark.parametrize('name, data', [
    ('a.jpg', b''), ('a.png', png_header(60000, 60000)), ('a.jpg', EPS), ('a.mp4', b''), ('a.mp4', bytes(4000)),
    ('a.mp4', b'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n'),
    ('a.mp4', b'#EXTM3U\n\0'), ('a.mp4', b'ffconcat version 1.0\nfile other.mp4\n'), ('a.mp4', EPS),
    ('a.sdp', b'v=0\n'), ('%d.mp4', b'RIFF\0\0\0\0AVI ')])
def test_demo_on_broken_inputs(demo, tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with contained(tmp_path) as refused:
        demo(name)
    assert refused and not (tmp_path / 'demo').exists()


@pytest.fixture(scope='module')
def video(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp('video') / 'a.mp4'
    noise = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
    write_video(path, list(noise), 5)
    return path.read_bytes()


@cases(80)
@given(st.data())
def test_damaged_videos(tmp_path, video, data):
    path = tmp_path / 'a.mp4'
    path.write_bytes(data.draw(damaged(video)))
    with contained(tmp_path):
        frames = VideoFrames(path)
        assert frames.fps > 0 and len(frames) >= 0
        for number, frame in enumerate(frames):
            check(frame)
            assert number < 1000
    path.unlink()


def test_opencv_is_quiet_about_what_it_cannot_read():
    assert cv2.imdecode(np.frombuffer(EPS, np.uint8), cv2.IMREAD_COLOR) is None
