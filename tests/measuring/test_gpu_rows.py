"""The benchmark's fixed rows for a GPU and its counts of operators, with tiny images on this machine."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from deit_detr.errors import UserError
from deit_detr.measuring.benchmark import measure_here
from deit_detr.measuring.device_use import summarize
from deit_detr.measuring.gpu import FAMILIES, RECIPES, compare_with, gpu_rows, read_results, select
from deit_detr.measuring.sampling import Sampling
from deit_detr.measuring.variants import Variant, build_model, load_model_config, plain_class
from tests.helpers.paths import REPO

CONFIGS = REPO / 'projects/deit_detr/configs'
BENCHMARK = [sys.executable, '-W', 'ignore', REPO / 'tools/analysis_tools/benchmark.py']
NO_GPU = dict(CUDA_VISIBLE_DEVICES='')
DECODER = Sampling(queries=5, strides=(16,))


def sampling(name: str, batch: int = 1, **settings) -> Variant:
    return Variant(name, 'deformable', '', batch=batch, size=(32, 48), sampling=DECODER, **settings)


def test_rows_are_measured_and_compared_with_an_earlier_run(run, tmp_path):
    before, after = tmp_path / 'before.json', tmp_path / 'after.json'
    rows = ['--rows', '^head', r'(chosen|pytorch).*50 queries', 'infer lw-detr, bfloat16, 1']
    run(*BENCHMARK, 'gpu', '--dry-run', *rows, '--json', before, **NO_GPU)
    earlier = json.loads(before.read_text())
    assert len(earlier['results']) == 6 and earlier['machine']['commit'] and earlier['command']['dry_run']
    for row in earlier['results']:
        if 'error' in row:
            assert row['error'] == 'a CUDA graph needs a GPU' and 'in a graph' in row['name']
            continue
        assert len(row['seconds']) == 1 and row['median'] == row['seconds'][0] > 0 and row['peak_gb'] >= 0
        assert row['images_per_second'] == pytest.approx(row['batch'] / row['median'])
        assert [row[key] for key in ('launches', 'waits', 'pageable_copies', 'busy')] == [0] * 4  # of a GPU
        row['median'] = 10.0
    plain = earlier['results'][2]
    assert plain['name'] == 'head plain detr-fast, float32, 2 x 160x224' and plain['speedup'] == 1

    before.write_text(json.dumps(earlier))
    out = run(*BENCHMARK, 'gpu', '--dry-run', *rows[:2], '--json', after, '--against', before, **NO_GPU)
    for row in json.loads(after.read_text())['results']:
        assert row['times_before'] == pytest.approx(10 / row['median'])
        assert f'| {row["name"]} | {1000 * row["median"]:.3g} |' in out and f'| {row["times_before"]:.2f} |' in out
    assert '[2/2, ' in out and ' s left] head detr-fast' in out


def test_without_a_gpu_a_sentence_says_so(run):
    assert run(*BENCHMARK, 'gpu', status=2, **NO_GPU).endswith(
        'error: gpu needs a GPU, and PyTorch finds none; --dry-run tries the same rows with tiny images\n')
    assert run(*BENCHMARK, 'gpu', '--dry-run', '--rows', 'vgg', status=2).endswith('no row has such a name\n')


@pytest.mark.skipif(torch.cuda.is_available(), reason='the limit is that of the GPU, the inputs are made on the CPU')
def test_rows_out_of_memory_do_not_end_the_others():
    # 40 GB is more than this process has reserved, and less than what ten million images take
    small, large = measure_here(
        [sampling('small', memory_limit=40e9), sampling('large', 10**7)], steps=2, warmup=1)
    assert len(small['seconds']) == 2 and small['speedup'] == 1
    assert large['error'] == 'out of memory' and 'median' not in large


def test_errors_stand_in_their_row():
    bad, good = measure_here([sampling('bad', -1), sampling('good')], steps=1, warmup=1)
    assert bad['error'].startswith('RuntimeError: ') and '-1' in bad['error'] and good['median'] > 0


def test_names_are_unique_and_the_measured_commit_has_namesakes():
    for dry_run in (False, True):
        names = [row.name for group in gpu_rows(CONFIGS, dry_run) for row in group]
        assert len(set(names)) == len(names)
    before = read_results(REPO / 'docs/gpu_60cee77.json')
    rows = {row.name: row for group in gpu_rows(CONFIGS) for row in group}
    assert len(before) == 47 and all(result['name'] in rows for result in before)
    for result in before:
        if 'images_per_second' in result:
            batch = rows[result['name']].batch
            assert result['batch'] == batch and result['images_per_second'] * result['median'] == pytest.approx(
                batch, rel=0.03)
    assert [[row.name for row in group] for group in select(gpu_rows(CONFIGS), ['^head'])] == [
        ['head detr-fast, float32, 16 x 800x1072', 'head plain detr-fast, float32, 16 x 800x1072']]


def test_ratios_to_an_earlier_run():
    failed = dict(error='out of memory')
    results = [dict(name='a', median=1.0, peak_gb=3.0), dict(name='b', **failed), dict(name='c', median=1.0)]
    compare_with(results, [
        dict(name='a', median=2.0, peak_gb=4.0), dict(name='b', median=1.0), dict(name='c', **failed)])
    assert results[0]['times_before'] == 2 and results[0]['memory_before'] == 0.75
    assert not any('times_before' in row for row in results[1:])


def test_an_earlier_run_that_is_none(tmp_path):
    path = tmp_path / 'a.json'
    for content in (None, 'no', '[]', '{}'):
        if content:
            path.write_text(content)
        with pytest.raises(UserError, match=r'a\.json: not the --json file of an earlier run'):
            read_results(path)


def test_use_of_the_device():
    def event(name: str, start: float, end: float, on: DeviceType, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, time_range=SimpleNamespace(start=start, end=end), device_type=on, is_user_annotation=annotation)

    use = summarize([
        event('gemm', 100, 200, DeviceType.CUDA),
        event('copy on another stream', 150, 250, DeviceType.CUDA),
        event('inside', 160, 170, DeviceType.CUDA),
        event('Memcpy HtoD (Pageable -> Device)', 400, 450, DeviceType.CUDA),
        event('Memcpy HtoD (Pinned -> Device)', 500, 550, DeviceType.CUDA),
        event('Optimizer.step', 0, 1000, DeviceType.CUDA, annotation=True),
        *(event(name, 0, 10, DeviceType.CPU) for name in (
            'cudaLaunchKernel', 'cudaLaunchKernelExC', 'cuLaunchKernelEx', 'cudaGraphLaunch', 'cudaStreamSynchronize',
            'cudaEventSynchronize', 'cudaDeviceSynchronize', 'cudaMemcpyAsync', 'aten::launch')),
    ], seconds=1e-3)
    assert use == dict(busy=pytest.approx(0.25), launches=4, waits=2, pageable_copies=1)


@pytest.mark.parametrize('family', FAMILIES)
def test_plain_twins_are_made_of_mmdet_classes(family):
    recipe = str(CONFIGS / RECIPES[family])
    if family in ('lw-detr', 'ec-detr'):
        with pytest.raises(UserError, match='(LW|EC)DETR has no plain twin in mmdet'):
            load_model_config(Variant('', 'train', recipe, plain=True))
        return
    model = build_model(load_model_config(Variant('', 'train', recipe, plain=True)), dropout=True)
    name = dict(zip(
        FAMILIES, ('DETR', None, None, 'DINO', 'DeformableDETR', 'ConditionalDETR', 'DABDETR'), strict=True))
    for part, of_mmdet in (
            (model, name[family]), (model.bbox_head, f'{name[family]}Head'),
            (model.data_preprocessor, 'DetDataPreprocessor')):
        assert type(part).__name__ == of_mmdet == plain_class(of_mmdet) and type(part).__module__.startswith('mmdet.')


@pytest.mark.slow
def test_operators_are_counted(run, tmp_path):
    path = tmp_path / 'a.json'
    out = run(*BENCHMARK, 'operators', '--configs', CONFIGS / RECIPES['lw-detr'], '--out', path)
    (row,) = json.loads(path.read_text())['operators']
    assert row['name'] == 'lw-detr_deit-tiny_8xb4-12e_scannet'
    for counts in (row['batch_2'], row['batch_8']):
        assert 1000 < counts['operators'] < 4500 and counts['casts'] < counts['operators'] and counts['reads'] <= 3
    assert f'| {row["name"]} | {row["batch_2"]["operators"]:,} / ' in out
