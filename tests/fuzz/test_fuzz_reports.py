"""Work folders from anybody: the report reads what exists, runs no code, and says what is missing."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mmengine.config import Config

from deit_detr.pages.report import make_report
from deit_detr.pages.work_dir import read_run
from tests.helpers.fuzzing import ODD_VALUES, cases, contained, damaged
from tests.helpers.paths import REPO

RECIPE = REPO / 'projects/deit_detr/configs/detr_deit-tiny_1xb8-50e_mini-scannet.py'
START = '20260101_000000'
ROWS = [dict(lr=1e-4, loss=3.0, loss_cls=1.0, time=0.5, data_time=0.1, memory=100, epoch=1, iter=step, step=step)
        for step in range(1, 4)] + [{'coco/bbox_mAP': 0.1, 'step': 1}]
LOG = '''2026/01/01 00:00:00 - mmengine - INFO -
System environment:
    sys.platform: linux
    seed: 5
Config:
x
2026/01/01 00:01:00 - mmengine - INFO - Epoch(train)   [1][2/4]  lr: 1.0e-04
'''


def write_run(folder: Path, scalars: str, log: str, config: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / START / 'vis_data').mkdir(parents=True)
    (folder / START / 'vis_data/scalars.json').write_text(scalars, 'utf-8', 'surrogatepass')
    (folder / START / 'vis_data/config.py').write_text(config, 'utf-8', 'surrogatepass')
    (folder / START / f'{START}.log').write_text(log, 'utf-8', 'surrogatepass')


def report(folder: Path) -> None:
    with contained(folder):
        run = read_run(folder / 'run')
        assert all(isinstance(row['iter'], int) for row in run.train)
        assert run.duration is None or run.duration.days < 10 ** 7
        # without a config nothing is evaluated, but everything that was logged is shown
        for path in folder.glob('run/*/vis_data/config.py'):
            path.unlink()
        make_report([folder / 'run'], folder / 'report.html')
        (folder / 'report.html').unlink()


@pytest.mark.slow
def test_whole_configs_are_read(tmp_path):
    """The config that mmengine writes for a recipe is data."""
    for path in sorted(RECIPE.parent.glob('*_mini-scannet.py')):
        config = Config.fromfile(path)
        write_run(tmp_path / 'run', '\n'.join(map(json.dumps, ROWS)), LOG, config.pretty_text)
        run = read_run(tmp_path / 'run')
        assert run.config is not None and run.config._cfg_dict == config._cfg_dict, run.missing


@pytest.mark.parametrize('code', [
    'import os; os.mkdir("made")', 'x = __import__("os").mkdir("made")', 'raise SystemExit', 'x = "a" * 10 ** 10',
    '\0', '(', 'filename = 1', '_base_ = "x.py"', 'train_cfg = 5',
    'train_cfg = dict(max_epochs="x")', 'default_hooks = 5', 'default_hooks = dict(logger=5)',
    'train_cfg = dict(max_iters=10)\ndefault_hooks = dict(logger=dict(interval="x"))'])
def test_configs_are_not_run(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / 'run', '\n'.join(map(json.dumps, ROWS)), LOG, code)
    with contained(tmp_path):
        assert len(read_run('run').train) == 3
    assert not Path('made').exists()


LINES = st.one_of(
    st.sampled_from(ROWS).map(json.dumps),
    st.tuples(st.sampled_from(ROWS), st.sampled_from([*ROWS[0], *ROWS[-1], 'x/y']), ODD_VALUES).map(
        lambda parts: json.dumps({**parts[0], parts[1]: parts[2]})),
    ODD_VALUES.map(json.dumps), st.text(max_size=10),
    st.sampled_from(['[' * 10 ** 5, '[["iter", 1], ["lr", 1]]', '[[1, 2]]']))


@cases(100)
@given(st.lists(LINES, max_size=8).map('\n'.join))
@example('{"lr": 1, "iter": "x"}')
@example('{"lr": 1, "iter": NaN}')
@example('{"lr": "x", "iter": 1}')
@example('{"lr": 1e308, "iter": 1, "loss": -1e308}\n{"lr": 1, "iter": 2, "loss": 1e308}')
@example('{"lr": 1, "iter": 1, "loss": ' + '9' * 400 + '}')
@example('[[1, 2]]')
@example('[' * 100_000)
def test_scalars(tmp_path, scalars):
    write_run(tmp_path / 'run', scalars, LOG, 'x = 1')
    report(tmp_path)


@cases(50)
@given(st.lists(st.sampled_from(LOG.splitlines()) | st.text(max_size=20) | st.sampled_from([
    '2026/99/99 99:99:99 - x', 'Epoch(train) [1][1/' + '9' * 5000 + ']', '    GPU 0: <script>', '    Python: \ud800']),
    max_size=8).map('\n'.join))
def test_logs(tmp_path, log):
    write_run(tmp_path / 'run', '\n'.join(map(json.dumps, ROWS)), log, 'x = 1')
    report(tmp_path)


@cases(30)
@given(st.data())
def test_damaged_logs(tmp_path, data):
    write_run(tmp_path / 'run', '\n'.join(map(json.dumps, ROWS)), LOG, 'x = 1')
    for name in ('vis_data/scalars.json', f'{START}.log'):
        path = tmp_path / 'run' / START / name
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    report(tmp_path)
