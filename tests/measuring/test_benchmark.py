"""The benchmark's command line on images of a few patches: what it measures, not how fast that is."""

import json
import sys

import pytest

from deit_detr.errors import UserError
from deit_detr.machine import GB
from deit_detr.measuring import costs
from deit_detr.measuring.costs import forward_flops
from deit_detr.measuring.variants import Variant
from tests.helpers.paths import REPO

FAST = REPO / 'projects/deit_detr/configs/detr-fast_deit-tiny_8xb1-150e_scannet.py'
BENCHMARK = [sys.executable, '-W', 'ignore', REPO / 'tools/analysis_tools/benchmark.py']


@pytest.mark.slow
@pytest.mark.parametrize('task', ['train', 'infer', 'head', 'deformable'])
def test_variants_are_compared(task, run, tmp_path):
    path = tmp_path / 'a.json'
    out = run(*BENCHMARK, task, '--baseline', '--size', 64, 96, '--batch', 2, '--steps', 2, '--json', path,
              FORK_SPAWNED=1)
    assert '| fast |' in out and '| plain |' in out
    numbers = json.loads(path.read_text())
    fast, plain = numbers['results']
    for row in (fast, plain):
        assert len(row['seconds']) == 2 and min(row['seconds']) <= row['median'] <= max(row['seconds'])
        assert row['images_per_second'] == pytest.approx(2 / row['median'])
        assert row['empty_gb'] < row['peak_gb'] < 4
    assert plain['speedup'] == plain['memory_ratio'] == 1
    assert numbers['machine']['torch'] and list(tmp_path.iterdir()) == [path]
    if task in ('head', 'deformable'):
        return
    assert numbers['parameters'] == 17_803_225
    tokens, queries, width = 4 * 6, 100, 192
    attention, ffn = 4 * width**2, 2 * width * 2048
    by_hand = tokens * (768 * width + width**2)  # patches, neck
    by_hand += 12 * (tokens * (attention + 8 * width**2) + 2 * tokens**2 * width)  # backbone
    by_hand += 6 * (tokens * (attention + ffn) + 2 * tokens**2 * width)  # encoder
    by_hand += 6 * (queries * (1.5 * attention + ffn) + tokens * attention / 2)  # decoder
    by_hand += 6 * 2 * queries * (queries + tokens) * width  # its attention
    by_hand += 6 * queries * (width * 21 + 2 * width**2 + width * 4)  # head
    assert numbers['flops_per_image'] == pytest.approx(2 * by_hand * (3 if task == 'train' else 1), rel=1e-3)


def test_fused_attention_is_counted():
    fast, plain = (
        forward_flops(Variant('', 'infer', str(FAST), plain=plain, size=(64, 96)))
        for plain in (False, True))
    assert fast == plain


@pytest.mark.slow
def test_recipes_are_compared(run, tmp_path):
    path = tmp_path / 'a.json'
    out = run(*BENCHMARK, 'recipes', '--configs', FAST, '--size', 64, 96, '--steps', 1, '--json', path, FORK_SPAWNED=1)
    (row,) = json.loads(path.read_text())['recipes']
    assert row['parameters'] == 17_803_225 and row['size'] == [64, 96]
    assert row['infer_gb'] < row['train_gb'] < 4 and row['latency_ms'] > 0 and row['train_seconds'] > 0
    assert f'| {FAST.stem} | 17,803,225 | {row["gflops"]:.4g} | {row["latency_ms"]:.0f} |' in out
    assert run(*BENCHMARK, 'recipes', '--configs', 'no.py', status=2).endswith('error: no.py: no such config file\n')


@pytest.mark.slow
def test_batch_that_does_not_fit(run, tmp_path):
    out = run(*BENCHMARK, 'train', '--size', 64, 96, '--find-batch', 0.3)
    assert '| fast 0.3 GB | 0 |' in out


def test_largest_batch_is_searched_from_one_that_fits(monkeypatch):
    def measure(variants: list[Variant], **_) -> list[dict]:
        (trial,) = variants
        tried.append(trial.batch)
        if trial.batch > trial.memory_limit / GB:
            raise UserError('out of memory')
        return [dict(peak_gb=trial.batch)]

    monkeypatch.setattr(costs, 'measure', measure)
    for limit, known, batches in ((0, 0, [1]), (5, 0, [1, 2, 4, 8, 6, 5]), (13, 5, [6, 12, 24, 18, 15, 13, 14])):
        tried = []
        assert costs.largest_batch(Variant('', 'train', ''), limit, known) == limit
        assert tried == batches


@pytest.mark.slow
def test_data_pipeline(run, data_roots, tmp_path):
    run(*BENCHMARK, 'data', '--images', 8, '--workers', 0, 1, '--json', tmp_path / 'a.json')
    numbers = json.loads((tmp_path / 'a.json').read_text())
    *steps, total = numbers['pipeline']
    assert steps[0]['name'] == 'LoadImageFromFile' and total['name'] == 'sum'
    assert total['milliseconds'] == pytest.approx(sum(step['milliseconds'] for step in steps))
    assert set(numbers['images_per_second']) == {'0', '1'} and min(numbers['images_per_second'].values()) > 0


@pytest.mark.slow
def test_conversion(run, mini_frames):
    assert '| 1 |' in run(*BENCHMARK, 'convert', '--root', mini_frames, '--workers', 1)


def test_errors_are_one_line(run):
    assert run(*BENCHMARK, 'convert', status=2).endswith('error: convert needs --root: the folder scannet_frames_25k\n')
    assert run(*BENCHMARK, 'train', '--config', 'no.py', status=2) == 'error: no.py: no such config file\n'
