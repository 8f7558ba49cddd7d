"""The race: its clock on a toy model against mmengine's loop, its command line, its tables computed by hand."""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cv2 import imread
from mmengine.config import Config, DictAction
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

from deit_detr.datasets.augmentation import Augmentation
from deit_detr.errors import UserError
from deit_detr.measuring import race, race_report
from deit_detr.measuring.budget import BudgetTrainLoop
from tests.helpers.fork_server import SERVER, start
from tests.helpers.paths import REPO, TINY_RUN

CONFIG = REPO / 'projects/deit_detr/configs/detr_deit-tiny_1xb8-50e_mini-scannet.py'
TRAIN = REPO / 'tools/train.py'
SIZE = list(Config.fromfile(CONFIG).val_dataloader.dataset.pipeline[1].scale[::-1])


class Points(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([float(index)]))


class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        outputs = self.linear(torch.stack(inputs))
        assert self.training == (mode == 'loss'), 'evaluation restores the training mode'
        return dict(loss=outputs.square().mean()) if mode == 'loss' else [outputs]


class ToyMetric(BaseMetric):
    default_prefix = 'coco'

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(bbox_mAP=0.25, bbox_mAP_50=0.5)


class Recorder(Hook):
    """The learning rate before each step."""

    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])


def toy_run(work_dir: Path, train_cfg: dict, accumulative_counts: int = 1) -> tuple[Runner, list[float]]:
    """Train 8 epochs of 5 steps, or as long as the loop does, with warm-up in steps and decay in epochs."""
    torch.manual_seed(0)
    recorder = Recorder()
    loader = dict(batch_size=2, sampler=dict(type='DefaultSampler', shuffle=True))
    by_loop = train_cfg['type'] is BudgetTrainLoop
    runner = Runner(
        ToyModel(), str(work_dir), train_dataloader=dict(loader, dataset=Points()),
        val_dataloader=dict(loader, dataset=Points()), val_evaluator=[ToyMetric()], val_cfg=dict(),
        train_cfg=dict(max_epochs=8, **train_cfg),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3), accumulative_counts=accumulative_counts),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, begin=0, end=10, by_epoch=False),
            dict(type='CosineAnnealingLR', begin=2, end=8, T_max=6, convert_to_iter_based=True)],
        default_hooks=dict(checkpoint=None, **(dict(param_scheduler=None) if by_loop else {})),
        custom_hooks=[recorder], default_scope='mmdet', experiment_name=work_dir.name,
        randomness=dict(seed=0), log_level='WARNING')
    runner.train()
    return runner, recorder.rates


@pytest.fixture(scope='module')
def ordinary(tmp_path_factory):
    """A run with mmengine's loop."""
    return toy_run(tmp_path_factory.mktemp('ordinary'), dict(type='EpochBasedTrainLoop', val_interval=2))


def test_without_a_budget_it_is_an_ordinary_run(ordinary, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('full')
    runner, rates = toy_run(work_dir, dict(type=BudgetTrainLoop, evals=4))
    assert rates == ordinary[1] and len(rates) == 40
    assert torch.equal(runner.model.linear.weight, ordinary[0].model.linear.weight)
    clock = json.loads((work_dir / 'clock.json').read_text())
    assert clock['finished'] and clock['minutes'] is None and clock['steps_per_epoch'] == 5
    assert [item['step'] for item in clock['evaluations']] == [10, 20, 30, 40]
    assert [item['epoch'] for item in clock['evaluations']] == [2, 4, 6, 8]
    assert {(item['AP'], item['AP50']) for item in clock['evaluations']} == {(0.25, 0.5)}


def test_augmentation_follows_the_clock(tmp_path_factory, monkeypatch):
    step = Augmentation.__new__(Augmentation)
    step.progress, step.mosaic, step.mixup, step.zoom_out, step.iou_crop, step.photometric = torch.zeros(()), *[0] * 5
    step.mix_until = step.until = 1.0
    monkeypatch.setattr(Points, 'pipeline', SimpleNamespace(transforms=[step]), raising=False)
    shares = []
    monkeypatch.setattr(Recorder, 'before_train_iter', lambda *args, **kwargs: shares.append(float(step.progress)))
    toy_run(tmp_path_factory.mktemp('shares'), dict(type=BudgetTrainLoop, minutes=0.1 / 60, evals=1))
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] < 1 and float(step.progress) == 1


@pytest.mark.parametrize('accumulative_counts', [1, 3])
def test_everything_follows_the_clock(accumulative_counts, ordinary, tmp_path_factory):
    """The schedule spans the budget, whatever its number of steps: here more than the recipe's 40."""
    work_dir = tmp_path_factory.mktemp('budget')
    minutes = 0.5 / 60
    runner, rates = toy_run(
        work_dir, dict(type=BudgetTrainLoop, minutes=minutes, evals=5), accumulative_counts)
    clock = json.loads((work_dir / 'clock.json').read_text())
    assert clock['finished'] and clock['steps'] == len(rates) == runner.iter
    assert clock['steps'] > 40, 'the toy is too slow for this test'
    evaluations = clock['evaluations']
    assert [item['number'] for item in evaluations] == [1, 2, 3, 4, 5]
    assert evaluations[-1]['step'] == clock['steps'] and evaluations[-1]['seconds'] == clock['seconds']
    for item in evaluations:
        share = item['seconds'] / (60 * minutes)
        assert share >= item['number'] / 5
        if share < 1:
            assert item['lr'] == ordinary[1][int(share * 40 + 1e-6)], 'the rate of the same share of the recipe'
    steps, seconds = ([item[key] for item in evaluations] for key in ('step', 'seconds'))
    assert steps == sorted(set(steps)) and seconds == sorted(set(seconds))
    assert set(rates) <= set(ordinary[1]) and rates[0] == ordinary[1][0]
    assert evaluations[-1]['lr'] == ordinary[1][-1], 'at its end'
    assert clock['peak_gb'] > 0 and clock['threads'] >= 1 and clock['cpu_seconds'] > 0


def test_a_step_longer_than_the_budget(ordinary, tmp_path_factory):
    """It is the only step; the evaluations that it made due happen once."""
    work_dir = tmp_path_factory.mktemp('short')
    toy_run(work_dir, dict(type=BudgetTrainLoop, minutes=1e-9, evals=5))
    clock = json.loads((work_dir / 'clock.json').read_text())
    assert clock['finished'] and clock['steps'] == 1
    (evaluation,) = clock['evaluations']
    assert evaluation['number'] == 5 and evaluation['lr'] == ordinary[1][-1]


@pytest.fixture(scope='module')
def raced(mini_scannet, tmp_path_factory):
    """A race with a recipe whose training fails, and its output."""
    folder = tmp_path_factory.mktemp('raced')
    (folder / 'broken.py').write_text(f"_base_ = '{CONFIG}'\noptim_wrapper = dict(optimizer=dict(type='Nonsense'))\n")
    result = start(
        sys.executable, '-W', 'ignore', REPO / 'tools/analysis_tools/race.py', CONFIG, 'broken.py', '--full', CONFIG,
        '--minutes', '0.03', '--evals', '2', '--out', 'out', *TINY_RUN, 'train_cfg.max_epochs=1',
        cwd=folder, env=SERVER.shell() | dict(MINI_SCANNET_ROOT=f'{mini_scannet}/', FORK_SPAWNED=1), merged=False)
    return folder / 'out', result


@pytest.mark.slow
def test_race_writes_what_it_measured(raced):
    out_dir, result = raced
    assert result.returncode == 2, result.stderr
    assert {path.name for path in out_dir.iterdir()} == {'race.json', 'race.md', 'race.png', 'race.svg', 'runs'}
    results = json.loads((out_dir / 'race.json').read_text())
    assert results['minutes'] == 0.03 and '--minutes 0.03' in results['command'] and results['machine']['torch']
    timed, full = results['contestants']
    assert results['reference'] == timed['name'] == CONFIG.stem and full['name'] == f'{CONFIG.stem} (full)'
    for entry in (timed, full):
        (run,) = entry['runs']
        assert run['finished'] and run['seed'] == 0 and run['cost']['size'] == SIZE
        assert run['cost']['gflops'] > 0.1 and run['cost']['latency_ms'] > 0 and 0.1 < run['cost']['infer_gb'] < 4
        assert f'| {entry["name"]} | {run["evaluations"][-1]["AP"]:.3f} |' in (out_dir / 'race.md').read_text()
    assert timed['runs'][0]['seconds'] >= 1.8
    assert full['runs'][0]['steps'] == 4 and full['runs'][0]['epochs'] == 1
    assert list(out_dir.glob('runs/*_full/seed0/*.pth')) == [out_dir / f'runs/{CONFIG.stem}_full/seed0/epoch_1.pth']


@pytest.mark.slow
def test_a_failed_run_does_not_count(raced):
    out_dir, result = raced
    log = out_dir / 'runs/broken/seed0/log.txt'
    assert 'error: 1 of 3 runs failed:\nbroken, seed 0: status 1: see' in result.stderr
    assert 'Nonsense' in log.read_text()
    assert 'broken' not in (out_dir / 'race.md').read_text().split('Each run')[0]


def test_a_model_that_cannot_be_measured_is_a_failed_run(tmp_path):
    run = race.RaceRun(str(CONFIG), 0, 1, 2, tmp_path / 'seed0')
    (tmp_path / 'seed0.py').write_text('nonsense')
    with pytest.raises(UserError, match='the model cannot be measured: .*seed0.py, line 1: NameError: name .nonsense'):
        run.cost()


@pytest.mark.slow
def test_finished_runs_are_kept_and_checked(raced, mini_scannet, monkeypatch, tmp_path):
    out_dir, _ = raced
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    before = {path: path.stat().st_mtime_ns for path in out_dir.glob('runs/**/*') if path.is_file()}
    runs = race.plan([str(CONFIG)], [str(CONFIG)], 0.03, 2, [0], out_dir)
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    options = parser.parse_args([*TINY_RUN, 'train_cfg.max_epochs=1']).cfg_options
    results = race.race(runs, options, TRAIN, tmp_path, 'again')
    assert results['contestants'] == json.loads((out_dir / 'race.json').read_text())['contestants']
    with pytest.raises(UserError, match='2 of 2 runs failed:\n.*finished with other settings'):
        race.race(runs, options | {'train_cfg.max_epochs': 2}, TRAIN, tmp_path, 'again')
    assert before == {path: path.stat().st_mtime_ns for path in out_dir.glob('runs/**/*') if path.is_file()}


@pytest.mark.parametrize(
    'text, message',
    [
        (None, 'no such config file'),
        ("train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=9)", 'train_cfg.type: only'),
        ("train_dataloader = dict(dataset=dict(ann_file='other.json'))", 'other data than'),
    ],
    ids=['missing', 'no-epochs', 'other-data'])
def test_what_cannot_race_stops_it_at_once(text, message, tmp_path):
    recipe = tmp_path / 'recipe.py'
    if text:
        recipe.write_text(f"_base_ = '{CONFIG}'\n{text}\n")
    runs = race.plan([str(CONFIG), str(recipe)], [], 1, 2, [0], tmp_path / 'out')
    with pytest.raises(UserError, match=message):
        race.race(runs, {}, TRAIN, tmp_path / 'out', '')
    assert not (tmp_path / 'out').exists()


def test_plan():
    runs = race.plan(['a/x.py', 'b/y.py'], ['a/x.py'], 1, 2, [3, 1, 3], 'out')
    assert [(run.name, run.seed) for run in runs] == [
        ('x', 3), ('y', 3), ('x', 1), ('y', 1), ('x (full)', 3)]
    assert len({run.folder for run in runs}) == len(runs)
    with pytest.raises(UserError, match='x: more than one CONFIG has this name'):
        race.plan(['a/x.py', 'b/x.py'], [], 1, 2, [0], 'out')


def made_up(name: str, full: bool, *curves: list[tuple[float, float, float]]) -> dict:
    """An entry with a curve of (minutes, epochs, AP) for each seed."""
    runs = []
    for seed, curve in enumerate(curves):
        minutes, epochs, _ = curve[-1]
        runs.append(dict(
            seed=seed, seconds=60 * minutes, cpu_seconds=57 * minutes, epochs=epochs, steps=round(50 * epochs),
            peak_gb=2.0 + seed, threads=1, machine=dict(device='a CPU', torch='2', commit='c0ffee', date='today'),
            cost=dict(size=[240, 320], parameters=1234567, gflops=9.654, latency_ms=30.0 + seed, infer_gb=0.9),
            evaluations=[
                dict(number=number, seconds=60 * minutes, epoch=epoch, AP=ap, AP50=ap + 0.1)
                for number, (minutes, epoch, ap) in enumerate(curve, 1)]))
    return dict(name=name, config=f'{name.split()[0]}.py', full=full, runs=runs)


RESULTS = dict(
    command='python race.py', machine={}, minutes=10, reference='slow', contestants=[
        made_up('slow', False, [(5, 4, 0.01), (10, 8, 0.04)], [(5, 4, 0.02), (10, 8, 0.06)]),
        made_up('quick', False, [(5, 2, 0.05), (10, 4, 0.2)], [(5, 3, 0.04), (10, 5, 0.3)]),
        made_up('slow (full)', True, [(30, 25, 0.1), (60, 50, 0.25)])])


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()]


def test_learning_table_by_hand():
    head, _, slow, quick, full = rows(race_report.learning_table(RESULTS))
    assert head[-2:] == ['reaches 0.050 of slow', 'reaches 0.250 of slow (full)']
    assert slow == [
        'slow', '0.050 (0.040 .. 0.060)', '0.150 (0.140 .. 0.160)', '1.00', '10.0', '8.0', '400', '-', '-']
    # one seed has 0.05 after 5 minutes and 2 epochs, the other after 10 and 5; 0.25 has only one of them
    assert quick[3] == '5.00' and quick[-2:] == ['10.0 min, 5.0 epochs (62%)', '-']
    assert full[1] == '0.250' and full[-2:] == ['30.0 min, 25.0 epochs (312%)', '60.0 min, 50.0 epochs (100%)']


def test_cost_table_by_hand():
    _, _, slow, quick = rows(race_report.cost_table(RESULTS))
    assert slow == ['slow', '1,234,567', '9.65', '30 (30 .. 31)', '0.90', '1.50', '3.00']
    assert quick[5] == '2.70 (2.40 .. 3.00)'


def test_reference_that_found_nothing_or_has_not_run():
    nothing = dict(RESULTS, contestants=[made_up('slow', False, [(5, 4, 0.0)]), RESULTS['contestants'][1]])
    for contestants in (nothing['contestants'], nothing['contestants'][1:]):
        quick = rows(race_report.learning_table(dict(nothing, contestants=contestants)))[-1]
        assert quick[3] == '-' and quick[7:] in ([], ['-'])


def test_report_is_drawn_again(tmp_path, run):
    (tmp_path / 'race.json').write_text(json.dumps(RESULTS))
    out = run(sys.executable, REPO / 'tools/analysis_tools/race.py', '--plot-only', tmp_path)
    report = (tmp_path / 'race.md').read_text()
    assert report in out and race_report.learning_table(RESULTS) in report and race_report.cost_table(RESULTS) in report
    assert 'a CPU, 1 thread(s), torch 2, commit c0ffee, today. CPU time in a second of training: 0.95 .. 0.95' in report
    assert {path.name for path in tmp_path.iterdir()} == {'race.json', 'race.md', 'race.png', 'race.svg'}
    width, height = imread(tmp_path / 'race.png').shape[1::-1]
    assert (width, height) == (1500, 780)


def test_errors_are_one_line(run):
    tool = REPO / 'tools/analysis_tools/race.py'
    assert run(sys.executable, tool, '--plot-only', 'nowhere', status=2) == 'error: nowhere/race.json: no such file\n'
