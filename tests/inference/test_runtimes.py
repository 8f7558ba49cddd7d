"""The exported file in OpenVINO and other runtimes: PyTorch's numbers, the cache, calibrated int8, options."""

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

import deit_detr
from deit_detr.errors import UserError
from deit_detr.inference import export, runtimes
from deit_detr.inference.export import BOX_TOLERANCE, SCORE_TOLERANCE, compare, difference, export_onnx
from deit_detr.inference.quantize import CALIBRATION_IMAGES, calibration_images
from tests.helpers.paths import REPO
from tests.helpers.pictures import image_of
from tests.helpers.tiny_detector import save_tiny

RUN_ONNX = REPO / 'tools/deployment/run_onnx.py'
EXPORT_ONNX = REPO / 'tools/deployment/export_onnx.py'
needs_openvino = pytest.mark.skipif(not importlib.util.find_spec('openvino'), reason='needs openvino')


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Config and checkpoint of a small DINO with few queries: near ties of their scores are rare."""
    return save_tiny(tmp_path_factory.mktemp('dino'), model='num_queries=20, test_cfg=dict(max_per_img=20)')


@pytest.fixture(scope='module')
def model(files) -> Path:
    export_onnx(*files, files[0].with_name('model.onnx'))
    return files[0].with_name('model.onnx')


@pytest.fixture(scope='module')
def calibrated(files, mini_scannet) -> Path:
    path = files[0].with_name('calibrated.onnx')
    export_onnx(*files, path, int8=True, calibrate_with=[mini_scannet / 'train'])
    return path


@needs_openvino
def test_openvino_has_the_numbers_of_pytorch(files, model, run_onnx, indoor_photos):
    """For the first size, which has a model of its own, for others, and for photographs."""
    detector = deit_detr.load(*files, 'cpu')
    in_openvino = run_onnx.OnnxDetector(model, 1, 'openvino')
    photos = [run_onnx.read_image(path) for path in sorted(indoor_photos.glob('*/color/*.jpg'))[::5]]
    for image in (image_of(320, 240), image_of(150, 300), image_of(500, 260), *photos):
        boxes, scores = compare(detector, image, *in_openvino(image), score_thr=0.2)
        assert boxes <= BOX_TOLERANCE / 10 and scores <= SCORE_TOLERANCE / 10, (image.shape, boxes, scores)
    assert set(in_openvino.session.models) == {(1, 240, 320, 3), None}
    exact = run_onnx.OnnxDetector(model, 1)
    assert in_openvino.classes == exact.classes and in_openvino.colours == exact.colours

    batch = np.stack([in_openvino.resize(image_of(200, 150, seed)) for seed in range(2)])
    for a, b in zip(*(one.session.run(None, {'images': batch}) for one in (in_openvino, exact)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=BOX_TOLERANCE / 10 if a.ndim == 3 else SCORE_TOLERANCE / 10)


@pytest.mark.parametrize('runtime', ['onnxruntime', pytest.param('openvino', marks=needs_openvino)])
def test_fewer_patches_than_queries(model, runtime, run_onnx):
    """Refused as the first image and as a later one; images after it have the same boxes as without it."""
    image, upright, narrow = image_of(96, 80), image_of(80, 96), image_of(96, 8)
    exact, *others = (run_onnx.OnnxDetector(model, 1, name) for name in ('onnxruntime', runtime, runtime))
    exact.resize_scale = [96, 96]
    for detector, images in zip(others, ((image, upright, narrow, image), (narrow, narrow, image)), strict=True):
        detector.resize_scale = [96, 96]
        for picture in images:
            if picture is narrow:
                with pytest.raises(run_onnx.InputError, match='96x8 pixels become 96x8: fewer patches than the model'):
                    detector(picture)
            else:
                assert difference(exact(picture), detector(picture))[0] <= BOX_TOLERANCE


@needs_openvino
def test_there_is_one_core(model, run_onnx):
    """With several, a process would not survive Ctrl-C after they are gone."""
    first, second = (run_onnx.OnnxDetector(model, threads, 'openvino') for threads in (1, 2))
    assert first.session.core is second.session.core and runtimes._openvino_core() is runtimes._openvino_core()


@needs_openvino
def test_bfloat16_is_used_only_if_asked_for(model, run_onnx):
    session = run_onnx.OpenVinoSession(str(model), 1, 'float32', None)
    if 'BF16' not in session.core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        with pytest.raises(run_onnx.InputError, match='--precision bfloat16: this CPU cannot compute in it'):
            run_onnx.OnnxDetector(model, 1, 'openvino', 'bfloat16')
        return
    image = image_of(320, 240)
    exact = run_onnx.OnnxDetector(model, 1)(image)
    rounded = run_onnx.OnnxDetector(model, 1, 'openvino', 'bfloat16')(image)
    apart = difference(exact, rounded)
    assert SCORE_TOLERANCE < apart[1] < 0.5 and np.isfinite(rounded[0]).all()


@needs_openvino
def test_compiled_models_are_kept_and_not_mistaken(model, run_onnx, tmp_path):
    """A file with the same graph and one other weight is not served from the cache of the first."""
    image, cache = image_of(320, 240), tmp_path / 'new/cache'
    found = []
    for expected in (False, True):
        detector = run_onnx.OnnxDetector(model, 1, 'openvino', cache_dir=cache)
        found.append(detector(image))
        (compiled,) = detector.session.models.values()
        assert compiled.get_property('LOADED_FROM_CACHE') is expected
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))

    changed = onnx.load(model)
    largest = max((weight for weight in changed.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT),
                  key=lambda weight: np.prod(weight.dims))
    values = onnx.numpy_helper.to_array(largest).copy()
    values.flat[values.size // 2] += 50
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    onnx.save(changed, tmp_path / 'changed.onnx')
    detector = run_onnx.OnnxDetector(tmp_path / 'changed.onnx', 1, 'openvino', cache_dir=cache)
    assert not np.array_equal(detector(image)[1], found[0][1])


@needs_openvino
@pytest.mark.slow
def test_openvino_from_the_command_line(files, mini_scannet, run, tmp_path):
    """Export checked with both runtimes, with lines before long steps; nothing but the cache is written at home."""
    output = run(sys.executable, '-W', 'ignore', EXPORT_ONNX, *files, '--out', tmp_path / 'model.onnx', '--check-with',
                 'onnxruntime', 'openvino')
    steps = ['tracing', *(f'{verb} {name}{end}' for name in ('ONNX Runtime', 'OpenVINO') for verb, end in (
        ('running', ''), ('comparing', ' with PyTorch')))]
    assert [line.split(' s  ')[1] for line in output.split('\n') if ' s  ' in line] == steps
    assert 'ONNX Runtime and OpenVINO and PyTorch differ by' in output
    frame = next((mini_scannet / 'val').glob('*/color/*.jpg'))
    home = tmp_path / 'home'
    home.mkdir()
    output = run(sys.executable, RUN_ONNX, tmp_path / 'model.onnx', frame, '--runtime', 'openvino', '--score-thr', 0,
                 HOME=home)
    assert f'{frame}: 20 objects' in output
    written = [path for path in home.rglob('*') if path.is_file()]
    assert written and {path.parent for path in written} == {home / '.cache/run_onnx'}, 'no telemetry'


@pytest.mark.parametrize('options, message', [
    (dict(precision='bfloat16'), '--precision bfloat16 is for --runtime openvino alone'),
    (dict(runtime='openvino', provider='cuda'), '--provider cuda is for --runtime onnxruntime'),
    (dict(cache_dir='FILE/cache'), 'FILE/cache: cannot be written .*: see --cache-dir'),
])
def test_options_that_do_not_fit(options, message, model, run_onnx, tmp_path):
    (tmp_path / 'FILE').touch()
    options = {key: value.replace('FILE', str(tmp_path / 'FILE')) for key, value in options.items()}
    with pytest.raises(run_onnx.InputError, match=message.replace('FILE', str(tmp_path / 'FILE'))):
        run_onnx.OnnxDetector(model, **options)


def test_what_is_not_installed(model, run_onnx, files, tmp_path, monkeypatch):
    monkeypatch.setattr(run_onnx, 'openvino_core', run_onnx.openvino_core.__wrapped__)
    for runtime in ('openvino', 'onnxruntime'):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, runtime, None)
            with pytest.raises(run_onnx.InputError, match=f'pip install {runtime}'):
                run_onnx.OnnxDetector(model, runtime=runtime)
    if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
        with pytest.raises(run_onnx.InputError, match='--provider cuda: this onnxruntime only has .*CPUExecution'):
            run_onnx.OnnxDetector(model, provider='cuda')
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'openvino' else find(name))
    assert runtimes.installed() == ['onnxruntime']
    with pytest.raises(UserError, match='the export needs openvino: pip install'):
        export_onnx(*files, tmp_path / 'model.onnx', check_with=['openvino'])


def test_cuda_that_does_not_load_is_an_error(model, run_onnx, monkeypatch):
    """ONNX Runtime would go on with the CPU."""
    class Session:
        def __init__(self, path, settings, providers):
            assert [name for name, _ in providers] == ['CUDAExecutionProvider', 'CPUExecutionProvider']
            assert providers[0][1] == dict(use_tf32='0')

        def get_providers(self):
            return ['CPUExecutionProvider']

    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: list(run_onnx.PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, 'InferenceSession', Session)
    monkeypatch.setattr(onnxruntime, 'preload_dlls', lambda: None, raising=False)
    with pytest.raises(run_onnx.InputError, match='--provider cuda: ONNX Runtime cannot load it'):
        run_onnx.OnnxDetector(model, provider='cuda')


def test_each_runtime_has_to_agree(files, tmp_path, monkeypatch):
    """ONNX Runtime agrees, the other one does not: no file is written."""
    monkeypatch.setattr(export, 'need', lambda *packages: None)
    right = export.run_file

    def run_file(path, batches, runtime):
        results = right(path, batches, 'onnxruntime')
        return [[result[0] + 2, *result[1:]] for result in results] if runtime == 'openvino' else results

    monkeypatch.setattr(export, 'run_file', run_file)
    with pytest.raises(UserError, match='not written: OpenVINO and PyTorch disagree on a seeded image'):
        export_onnx(*files, tmp_path / 'model.onnx', check_with=['onnxruntime', 'openvino'])
    assert not list(tmp_path.iterdir())


def test_calibrated_int8(model, calibrated, run_onnx):
    graph = onnx.load(calibrated).graph
    assert {entry.key: entry.value for entry in onnx.load(calibrated).metadata_props}['precision'] == 'int8, calibrated'
    assert calibrated.stat().st_size < 0.7 * model.stat().st_size
    quantized = {node.output[0] for node in graph.node if node.op_type == 'DequantizeLinear'}
    layers = [node.name for node in graph.node if node.op_type == 'MatMul' and set(node.input) <= quantized]
    assert len(layers) > 15 and not [name for name in layers if 'backbone' in name], 'its first three layers are all'
    assert [output.name for output in graph.output] == ['boxes', 'scores', 'labels']
    image = image_of(320, 240)
    exact, found = (run_onnx.OnnxDetector(path, 1)(image) for path in (model, calibrated))
    assert 0 < np.abs(found[1] - exact[1]).max() < 0.5 and np.isfinite(found[0]).all()


@needs_openvino
def test_openvino_runs_calibrated_int8(calibrated, run_onnx):
    """For a fixed shape also, which OpenVINO 2026.4 does not compile if a quantized layer reads joined maps."""
    image = image_of(320, 240)
    exact, found = (run_onnx.OnnxDetector(calibrated, 1, runtime)(image) for runtime in ('onnxruntime', 'openvino'))
    assert np.abs(found[1] - exact[1]).max() < 0.5


def test_calibration_images(tmp_path):
    for name in ('scene/color/1.jpg', 'scene/color/2.JPG', 'scene/depth/1.png', 'scene/notes.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'linked').symlink_to(tmp_path / 'scene')
    found = calibration_images([tmp_path / 'linked'])
    assert found == [tmp_path / 'linked/color/1.jpg', tmp_path / 'linked/color/2.JPG'], 'depth maps are no images'
    assert calibration_images([tmp_path / 'scene/depth/1.png']) == [tmp_path / 'scene/depth/1.png']
    many = tmp_path / 'many'
    many.mkdir()
    for index in range(200):
        (many / f'{index:03}.png').touch()
    found = [path.stem for path in calibration_images([many])]
    assert len(set(found)) == len(found) == CALIBRATION_IMAGES and (found[0], found[-1]) == ('000', '199')
    with pytest.raises(UserError, match='none: no such image or folder of images'):
        calibration_images([tmp_path / 'none'])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='empty: no images to calibrate with'):
        calibration_images([tmp_path / 'empty'])


def test_calibration_needs_int8(files, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), image_of(64, 48))
    with pytest.raises(UserError, match='--calibrate-with is for --int8'):
        export_onnx(*files, tmp_path / 'model.onnx', calibrate_with=[tmp_path])
