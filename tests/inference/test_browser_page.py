"""The page of build_web.py in a real browser: the pixels and boxes of run_onnx.py, and nothing from elsewhere."""

import base64
import functools
import json
import shutil
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from mmdet.visualization import get_palette
from mmengine.config import Config

from deit_detr.inference import export
from tests.helpers.browser import browser as browser
from tests.helpers.fork_server import start
from tests.helpers.paths import REPO
from tests.helpers.pictures import picture

BUILD = REPO / 'tools/deployment/build_web.py'
DETECTOR = (REPO / 'tools/deployment/web/detector.js').read_text()
READY = (
    'document.readyState === "complete" && typeof element === "function" && '
    '(!controls.choose.disabled || !element("error").hidden)')


@pytest.fixture(scope='module')
def page(small_onnx, tmp_path_factory) -> Path:
    """The page as a folder."""
    if shutil.which('npm') is None:
        pytest.skip('needs npm for onnxruntime-web (Debian: apt-get install npm)')
    folder = tmp_path_factory.mktemp('web') / 'page'
    result = start(sys.executable, BUILD, small_onnx, '--out-dir', folder, cwd=folder.parent)
    if 'npm cannot get' in result.stdout:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0 and f'{folder}/index.html: with the files beside it ' in result.stdout, result.stdout
    return folder


@pytest.fixture(scope='module')
def address(page):
    """The address of the page on a server that knows nothing about it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=page)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


def wait_for(browser, expression: str, seconds: float = 90):
    deadline = time.monotonic() + seconds
    while not (value := browser.run(expression)):
        assert time.monotonic() < deadline, (expression, browser.run('document.body.innerText'), browser.problems)
        time.sleep(0.05)
    return value


def visit(browser, url: str) -> str:
    """Open the page, and return its header when the model is ready."""
    browser.problems.clear()
    browser.call('Network.clearBrowserCache')  # files of the same second count as the same
    browser.call('Emulation.setDeviceMetricsOverride', width=1280, height=900, deviceScaleFactor=1, mobile=False)
    browser.call('Page.navigate', url='about:blank')
    wait_for(browser, 'location.href === "about:blank"')
    browser.call('Page.navigate', url=url)
    wait_for(browser, READY)
    return browser.run('document.querySelector("header").innerText')


def detect(browser, path: Path) -> tuple[tuple[np.ndarray, ...], str]:
    """Give the page a picture; return boxes, scores and labels, and the text of an error."""
    browser.run('result = null; show("error", ""); 0')
    chosen = browser.call('Runtime.evaluate', expression='controls.file')
    browser.call('DOM.setFileInputFiles', files=[str(path)], objectId=chosen['result']['objectId'])
    wait_for(browser, 'result && element("count").textContent !== "Detecting …" || !element("error").hidden')
    found = browser.run('result ? result.found : []')
    return tuple(np.array([one[key] for one in found]) for key in ('box', 'score', 'label')), browser.run(
        'element("error").textContent')


def check_equal(found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    """Check that detections are the same, but for the order of equal scores."""
    assert len(found[0]) == len(expected[0])
    for box, score, label in zip(*found, strict=True):
        same = expected[2] == label
        assert (np.abs(expected[0][same] - box).max(1) + 100 * np.abs(expected[1][same] - score)).min() < 0.05


def requests(browser) -> list[str]:
    return [text.removeprefix('request of ') for text in browser.problems if text.startswith('request of ')]


def test_boxes_of_run_onnx(page, address, browser, run_onnx, small_onnx, tmp_path):
    header = visit(browser, address)
    assert '20 classes · float32' in header and 'Runs on the CPU (WebAssembly with SIMD, ' in header
    assert browser.run('crossOriginIsolated'), 'the service worker sets the headers that threads need'
    detector = run_onnx.OnnxDetector(small_onnx, 1)
    pictures = [picture(tmp_path / f'{width}.jpg', width, height) for width, height in ((640, 480), (301, 422))]
    for path in [*pictures, picture(tmp_path / 'same.png', 320, 240)]:
        found, error = detect(browser, path)
        assert error == ''
        check_equal(found, detector(run_onnx.read_image(path)))
    assert all(url.startswith(address) for url in requests(browser))

    # the page: a row for each object above the threshold, the colours of the file, a time for each step
    browser.run(f'controls.threshold.value = {np.sort(found[1])[-4] - 0.005}; controls.threshold.oninput(); 0')
    shown = int((found[1] >= browser.run('Number(controls.threshold.value)')).sum())
    assert 4 <= shown < 20 and browser.run('element("found").rows.length') == shown
    assert browser.run('element("count").textContent') == f'{shown} objects'
    red, green, blue = detector.colours[found[2][0]]
    assert browser.run('document.querySelector("#found i").style.background') == f'rgb({red}, {green}, {blue})'
    for step in ('read', 'resize', 'model', 'draw'):
        assert step in browser.run('element("times").innerText')

    (tmp_path / 'text.jpg').write_text('text')
    picture(tmp_path / 'line.png', 4000, 8)
    assert detect(browser, tmp_path / 'text.jpg')[1] == 'text.jpg: cannot be read as an image'
    assert detect(browser, tmp_path / 'line.png')[1].startswith('4000x8 pixels: one side is more than 20 times')


def test_one_file_without_a_server(page, browser, run_onnx, small_onnx, run, tmp_path):
    package = tmp_path / 'package'
    shutil.copytree(page / 'runtime', package / 'dist')
    run(sys.executable, BUILD, small_onnx, '--out-dir', tmp_path / 'one', '--one-file', '--runtime', package)
    assert [path.name for path in (tmp_path / 'one').iterdir()] == ['index.html']
    assert 'Runs on the CPU (WebAssembly with SIMD, 1 thread)' in visit(browser, (tmp_path / 'one/index.html').as_uri())
    path = picture(tmp_path / 'a.jpg', 640, 480)
    found, error = detect(browser, path)
    assert error == ''
    check_equal(found, run_onnx.OnnxDetector(small_onnx, 1)(run_onnx.read_image(path)))
    assert all(url.startswith(('file:', 'blob:')) for url in requests(browser))
    for width in (1280, 390):
        browser.call('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1, mobile=False)
        assert browser.run('document.documentElement.scrollWidth') <= width, 'the page scrolls sideways'


def test_fixed_batch_and_size(page, address, browser, run_onnx, small_onnx, tmp_path):
    model = onnx.load(small_onnx)
    for axis, size in enumerate((2, 240, 320)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    before = (page / 'model.onnx').read_bytes()
    try:
        onnx.save(model, page / 'model.onnx')
        visit(browser, address)
        path = picture(tmp_path / 'a.jpg', 640, 480)
        found, error = detect(browser, path)
        assert error == ''
        check_equal(found, run_onnx.OnnxDetector(small_onnx, 1)(run_onnx.read_image(path)))
        error = detect(browser, picture(tmp_path / 'upright.jpg', 480, 640))[1]
        assert error.startswith('480x640 pixels become 240x320, on which the model does not run: ')
        (page / 'model.onnx').write_text('no model')
        assert 'model.onnx was not written by export_onnx.py' in visit(browser, address)
    finally:
        (page / 'model.onnx').write_bytes(before)


def test_without_a_gpu_the_page_says_so(address, browser):
    header = visit(browser, f'{address}?runtime=webgpu')
    assert 'Runs on the CPU (WebAssembly with SIMD, ' in header and 'WebGPU failed: ' in header


@pytest.mark.parametrize('difference, takes_over', [(0.5, False), (1.5, True)])
def test_a_gpu_that_finds_other_boxes_is_not_used(difference, takes_over, browser):
    """With both runtimes replaced: the CPU finds boxes beside those of the GPU."""
    browser.call('Page.navigate', url='about:blank')
    result = browser.run(f'''(async () => {{
        {DETECTOR}
        const found = offset => [{{box: [1, 2, 3, 4 + offset], score: 0.9, label: 0}}];
        run = async session => ({{found: found(session.offset)}});
        load = async () => {{ session = {{offset: {difference}}}; ort = {{env: {{wasm: {{numThreads: 1}}}}}}; }};
        [session, unchecked] = [{{offset: 0}}, true];
        ort = {{InferenceSession: {{create: async () => ({{offset: {difference}, release: async () => 0}})}}}};
        const {{found: [one]}} = await detect(null);
        return [one.box[3], runtime ?? 'WebGPU', unchecked];
    }})()''')
    expected = [4 + difference, 'Runs on the CPU (WebAssembly with SIMD, 1 thread): WebGPU found other boxes', False]
    assert result == (expected if takes_over else [4, 'WebGPU', False])


def test_resize_of_opencv(browser):
    """Every pixel, for larger and smaller sizes, exact halves, and pictures of one row."""
    browser.call('Page.navigate', url='about:blank')
    sizes = [((640, 480), (192, 144)), ((1296, 968), (193, 144)), ((97, 301), (46, 144)), ((160, 120), (320, 240)),
             ((640, 480), (320, 240)), ((33, 500), (13, 192)), ((300, 1), (600, 2)), ((5, 5), (5, 5)), ((7, 3), (1, 1)),
             ((640, 480), (1067, 800))]
    for (width, height), target in sizes:
        image = np.random.default_rng(width).integers(0, 256, (height, width, 4), np.uint8)
        image[..., 3] = 255
        resized = browser.run(f'''(() => {{
            {DETECTOR}
            const data = Uint8ClampedArray.from(atob("{base64.b64encode(image).decode()}"), one => one.charCodeAt(0));
            const result = resize({{data, width: {width}, height: {height}}}, {target[0]}, {target[1]});
            return btoa(Array.from(result, value => String.fromCharCode(value)).join(""));
        }})()''')
        resized = np.frombuffer(base64.b64decode(resized), np.uint8).reshape(*target[::-1], 3)
        expected = cv2.resize(np.ascontiguousarray(image[..., 2::-1]), target, interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(resized, expected), (width, height, target)


@pytest.mark.slow
def test_photographs(address, browser, run_onnx, small_onnx, indoor_photos):
    visit(browser, address)
    detector = run_onnx.OnnxDetector(small_onnx, 1)
    for path in sorted(indoor_photos.rglob('*.jpg'))[:12]:
        found, error = detect(browser, path)
        assert error == ''
        check_equal(found, detector(run_onnx.read_image(path)))


def test_colours_of_the_demo(detector_files, detector, monkeypatch):
    """Classes without colours have those of mmdet's pictures, in every file."""
    monkeypatch.setitem(detector.visualizer.dataset_meta, 'palette', 'random')
    metadata = export._metadata(detector, Config.fromfile(detector_files[0]), detector_files[1], False)
    assert json.loads(metadata['palette']) == [list(colour) for colour in get_palette('random', 20)]


def test_builder_refuses_in_a_sentence(run, tmp_path):
    out = ('--out-dir', tmp_path / 'out')
    output = run(sys.executable, BUILD, 'none.onnx', *out, status=2)
    assert output == 'error: none.onnx: cannot be read (No such file or directory)\n'
    (tmp_path / 'model.onnx').touch()
    output = run(sys.executable, BUILD, 'model.onnx', *out, status=2)
    assert output == 'error: model.onnx: was not written by export_onnx.py, or was cut off\n'
    (tmp_path / 'model.onnx').write_text('resize_scale')
    output = run(sys.executable, BUILD, 'model.onnx', *out, '--runtime', tmp_path, status=2)
    assert '--runtime is the folder of onnxruntime-web@' in output
    (tmp_path / 'dist').mkdir()
    (tmp_path / 'dist/ort.wasm.bundle.min.mjs').write_text('another version')
    output = run(sys.executable, BUILD, 'model.onnx', *out, '--runtime', tmp_path, status=2)
    assert 'dist/ort.wasm.bundle.min.mjs: is not the file of onnxruntime-web@' in output
    output = run(sys.executable, BUILD, 'model.onnx', *out, status=2, PATH='nowhere')
    assert output.startswith('error: npm is not installed: install it, or give onnxruntime-web@')
    assert not (tmp_path / 'out').exists()
