"""``benchmark.py deploy``: its rows, what they hold, and that a row which fails hides no other."""

import importlib.util
import json
import sys

import pytest

from deit_detr.measuring import deploy
from deit_detr.measuring.gpu_check import commands
from deit_detr.measuring.gpu_check.rows import FAIL, OK, SKIPPED, Check, run_check
from deit_detr.measuring.gpu_check.setting import Setting
from tests.helpers.paths import REPO

BENCHMARK = [sys.executable, '-W', 'ignore', REPO / 'tools/analysis_tools/benchmark.py']
SETTINGS = ['ONNX Runtime']
if importlib.util.find_spec('openvino'):
    SETTINGS += ['OpenVINO float32', 'OpenVINO bfloat16']


@pytest.mark.slow
def test_a_trained_model(detector_files, mini_scannet, run, tmp_path):
    """It is exported in each precision; the float32 file has the AP of PyTorch."""
    path = tmp_path / 'a.json'
    output = run(
        *BENCHMARK, 'deploy', *detector_files, '--rows', 'PyTorch', '^float32', '^int8.*ONNX', '--size', 96, 128,
        '--steps', 2, '--json', path, '--ann-file', mini_scannet / 'scannet_objdet_val.json', '--image-root',
        mini_scannet / 'val')
    pytorch, *rows = json.loads(path.read_text())['deployed']
    names = [*(f'float32.onnx, {setting}' for setting in SETTINGS), 'int8.onnx, ONNX Runtime']
    assert pytorch['name'] == 'PyTorch' and [row['name'] for row in rows] == names
    for row in (pytorch, *rows):
        if 'bfloat16' in row['name'] and 'error' in row:
            assert 'this CPU cannot compute in it' in row['error']
            continue
        assert len(row['cpu_seconds']) == len(row['wall_seconds']) == 2
        assert 0 < row['cpu_ms'] < 1000 and 0 < row['peak_gb'] < 2 and 0 <= row['ap'] <= row['ap50']
        assert f'| {row["name"]} | {row["megabytes"]:.1f} |' in output
    first, last = rows[0], rows[-1]
    assert first['ap'] == pytest.approx(pytorch['ap'], abs=1e-3) and first['peak_gb'] < pytorch['peak_gb']
    assert last['megabytes'] < 0.6 * first['megabytes']
    assert first['score_difference'] < last['score_difference'] and 'score_difference' not in pytorch
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_row_that_fails_hides_no_other(tmp_path, run):
    (tmp_path / 'bad.onnx').write_text('text')
    (tmp_path / 'worse.onnx').write_text('text')
    output = run(*BENCHMARK, 'deploy', tmp_path / 'bad.onnx', tmp_path / 'worse.onnx', '--size', 96, 128, status=2)
    for name in ('bad', 'worse'):
        assert f'| {name}.onnx, ONNX Runtime | InputError: {tmp_path}/{name}.onnx: cannot be loaded (' in output


@pytest.mark.parametrize('words, message', [
    ([], 'deploy needs ONNX files, or a config and a checkpoint, or both'),
    (['a.pth'], 'deploy needs ONNX files, or a config and a checkpoint, or both'),
    (['none.onnx'], 'none.onnx: no such file'),
    (['a.onnx', '--ann-file', 'b.json'], '--ann-file and --image-root need each other'),
    (['a.onnx', '--size', '0', '9'], '--size 0 9: at least 1 1'),
    (['a.onnx', '--threads', '-1'], '--threads -1: 0 or more'),
    (['a.onnx', '--rows', '('], '--rows: missing ), unterminated subpattern at position 0'),
])
def test_errors_are_one_line(words, message, run):
    assert run(*BENCHMARK, 'deploy', *words, status=2).strip().endswith(f'error: {message}')


def test_wrong_annotations_are_named_before_anything_runs(run, tmp_path, mini_scannet):
    (tmp_path / 'a.onnx').touch()
    for ann_file, message in (
        ('none.json', 'none.json: no such annotation file'),
        (mini_scannet / 'scannet_objdet_val.json', ' of its 8 images are not in . (--image-root)')):
        output = run(*BENCHMARK, 'deploy', 'a.onnx', '--ann-file', ann_file, '--image-root', '.', status=2)
        assert output.strip().endswith(message)


def test_files_are_for_deploy(run):
    assert 'train takes no files: see --config' in run(*BENCHMARK, 'train', 'a.onnx', status=2)


def coco_results(*boxes: tuple[float, ...]) -> str:
    return json.dumps([dict(image_id=image, category_id=1, score=score, bbox=[left, 0, 5, 5])
                       for image, left, score in boxes])


def test_differences_of_results(tmp_path):
    (tmp_path / 'a').write_text(coco_results((1, 0, 0.9), (1, 50, 0.8), (2, 0, 0.9)))
    (tmp_path / 'b').write_text(coco_results((1, 51, 0.79), (1, 0, 0.9), (2, 0, 0.9)))
    found = deploy.result_differences(tmp_path / 'a', tmp_path / 'b')
    assert found == [pytest.approx((1, 0.01)), (0, 0)]


@pytest.mark.parametrize('apart, status', [([0, 0, 0], OK), ([0, 0, 30], OK), ([0, 2, 30], FAIL)])
def test_onnx_on_the_gpu_is_compared_with_the_cpu(apart, status, tmp_path, monkeypatch):
    """A near tie in one frame is allowed; without onnxruntime-gpu or the file, the row says so."""
    made = commands.Commands(Setting(REPO, tmp_path), tmp_path)
    row = run_check(Check('a', made.onnx_on_gpu))
    if 'cuda' not in deploy.onnx_providers():
        assert (row.status, row.detail) == (SKIPPED, 'onnxruntime-gpu is not installed')
    monkeypatch.setattr(commands, 'onnx_providers', lambda: ['cpu', 'cuda'])
    row = run_check(Check('a', made.onnx_on_gpu))
    assert (row.status, row.detail) == (SKIPPED, 'no model: see the row of export_onnx.py')

    def answer(self, name, *command, **env):
        lefts = apart if name == 'onnx-cuda' else [0, 0, 0]
        command[command.index('--coco-json') + 1].write_text(
            coco_results(*((image, left, 0.9) for image, left in enumerate(lefts))))

    monkeypatch.setattr(commands.Commands, 'run', answer)
    (tmp_path / 'model.onnx').touch()
    row = run_check(Check('a', made.onnx_on_gpu))
    assert row.status == status and ('within 0 px' in row.detail) == (status == OK), row
