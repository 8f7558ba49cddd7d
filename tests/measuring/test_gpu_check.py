"""tools/check_gpu.sh on this machine: its checks pass, failures are reported, and a wrong device is found."""

import io
import json
import subprocess
import sys
import threading

import pytest
import torch

from deit_detr.errors import UserError
from deit_detr.measuring.gpu_check import commands, losses, rows, training
from deit_detr.measuring.gpu_check import run as checks
from deit_detr.measuring.gpu_check.rows import (
    FAIL,
    OK,
    SKIPPED,
    Check,
    Failed,
    Row,
    Skipped,
    in_turn,
    run_check,
    side_by_side,
)
from deit_detr.measuring.gpu_check.setting import FAMILIES, Setting, variables
from tests.helpers.fork_server import SERVER
from tests.helpers.paths import REPO

SCRIPT = REPO / 'tools/misc/check_gpu.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder of the rooms, which are rendered once."""
    return tmp_path_factory.mktemp('check_gpu')


@pytest.fixture(scope='module')
def setting(folder) -> Setting:
    setting = Setting(REPO, folder)
    checks.render_rooms(setting)
    return setting


def statuses(found: list[Row]) -> dict[str, str]:
    return {row.name: row.status for row in found}


@pytest.mark.slow
def test_losses_of_two_families(setting, run, tmp_path):
    """The command as a user runs it: its lines, its table and its file have the same rows."""
    path = tmp_path / 'a.json'
    families = 'lw-detr', 'deformable-detr'
    output = run(sys.executable, '-W', 'ignore', SCRIPT, '--only', 'losses', '--families', *families, '--work-dir',
                 setting.folder, '--json', path)
    found = [Row(**row) for row in json.loads(path.read_text())['rows']]
    assert statuses(found) == {'machine': OK, 'rooms': OK} | {f'losses {family}': OK for family in families}
    first, *lines = output.strip().split('\n')
    assert first.startswith('GPU: ' if torch.cuda.is_available() else 'No GPU: ')
    assert lines == [*map(str, found), '', *map(str, found), '', lines[-1]] and lines[-1].startswith('4 ok in ')
    assert not list(tmp_path.glob('**/runs'))


@pytest.mark.slow
def test_a_failing_check_hides_no_other(setting, monkeypatch, capsys, tmp_path):
    def check(setting, family, amp=None):
        if family == 'dino':
            raise RuntimeError('CUDA error: no kernel\nadvice')
        if family == 'lw-detr':
            raise Failed('loss_cls differs')
        return 'fine'

    monkeypatch.setattr(checks, 'check_training', check)
    monkeypatch.setattr(checks, 'check_losses', check)
    folder = tmp_path / 'work'
    folder.mkdir()
    (folder / setting.rooms.name).symlink_to(setting.rooms)
    arguments = dict(only=('training', 'losses'), families=('dino', 'lw-detr', 'dab-detr'))
    assert checks.check_gpu(REPO, folder, folder / 'a.json', **arguments) == 1
    found = json.loads((folder / 'a.json').read_text())['rows']
    for row in found[2:]:
        expected = dict(dino='RuntimeError: CUDA error: no kernel', lwdetr='loss_cls differs').get(
            row['name'].split()[1].replace('-', ''), 'fine')
        assert (row['status'], row['detail']) == (OK if expected == 'fine' else FAIL, expected)
    assert len(found) == 2 + 6 + 3
    output = capsys.readouterr().out
    log = folder / 'check_gpu.log'
    assert output.strip().endswith(f'The tracebacks are in {log}') and '5 ok, 6 FAIL in ' in output
    assert log.read_text().count('in check\n    raise RuntimeError') == 3, 'expected failures have no traceback'


@pytest.mark.slow
def test_every_check_has_its_row(setting, monkeypatch):
    for name in ('check_training', 'check_losses', 'check_memory'):
        monkeypatch.setattr(checks, name, lambda *args: '')
    monkeypatch.setattr(checks, 'check_commands', lambda *args: [Row('commands', OK, '', 0)])
    found = list(checks._rows(setting, checks.GROUPS, (setting.folder / 'log').open('w')))
    memory = len(FAMILIES) if torch.cuda.is_available() else 2
    assert [row.status for row in found] == [OK] * (2 + 3 * len(FAMILIES) + memory + 1)
    assert {row.name.split()[1] for row in found[2:-1]} == set(FAMILIES)


def test_lost_gpu_skips_the_rest(monkeypatch, tmp_path):
    monkeypatch.setattr(rows, '_gpu_answers', lambda: False)

    def broken():
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    with (tmp_path / 'log').open('w') as log:
        found = list(in_turn([Check('a', lambda: 'x'), Check('b', broken), Check('c', lambda: 'x')], log))
    assert [row.status for row in found] == [OK, FAIL, SKIPPED]
    assert 'lost in "b"' in found[2].detail


def test_output_of_checks_and_their_processes_goes_to_the_log(tmp_path, capfd):
    def talk():
        print('from Python')
        subprocess.run([sys.executable, '-c', 'print("from a process")'], check=True)
        return 'x'

    with (tmp_path / 'log').open('w', buffering=1) as log:
        list(in_turn([Check('a', talk)], log))
    print('afterwards')
    assert capfd.readouterr().out == 'afterwards\n'
    assert (tmp_path / 'log').read_text().split('\n')[1:] == ['== a', 'from Python', 'from a process', '']


def test_side_by_side_runs_at_the_same_time():
    barrier = threading.Barrier(2, timeout=20)
    met = Check('a', lambda: f'{barrier.wait() >= 0}')
    found = list(side_by_side([met, met, Check('b', lambda: 1 / 0)], 3))
    assert sorted(row.status for row in found) == [FAIL, OK, OK]


@pytest.mark.parametrize('error, status', [(Skipped('x'), SKIPPED), (UserError('a\nb'), FAIL)])
def test_what_checks_raise(error, status):
    def check():
        raise error

    row = run_check(Check('a', check))
    assert row.status == status and not row.trace and '\n' not in str(row)


@pytest.mark.slow
@pytest.mark.parametrize('family', ['detr-fast', 'dino'])
def test_a_wrong_weight_on_the_device_is_found(setting, family):
    """Equal weights give equal results in float32; one other weight exceeds the bounds."""
    with variables(setting.environment):
        cfg = setting.load(family)
        batch = losses.make_padded_batch(cfg, large=False)
    model = losses.make_model(cfg, seed=1)
    cpu = torch.device('cpu')
    reference = losses.run(model, batch, cpu, 'float32')
    assert losses.compare(losses.run(model, batch, cpu, 'float32'), reference).loss < 1e-6, 'nothing is random'
    with torch.no_grad():
        next(param for name, param in model.named_parameters() if name.startswith('encoder'))[0, 0] += 0.5
    found = losses.compare(losses.run(model, batch, cpu, 'float32'), reference)
    assert found.loss > losses.LOSS_BOUND or found.gradient > losses.GRADIENT_BOUND


@pytest.mark.slow
def test_losses_beyond_the_bounds_fail_after_all_tries(setting, monkeypatch):
    wrong = losses.Difference('loss_cls', 1e-2, 1e-2, 1e-2)
    monkeypatch.setattr(losses, 'run', lambda *args: None)
    monkeypatch.setattr(losses, 'compare', lambda *args: wrong)
    with variables(setting.environment):
        with pytest.raises(Failed, match='each of 3 weights: .*loss_cls 1.0e-02'):
            losses.check_losses(setting, 'lw-detr')
        answers = iter([wrong, wrong, *[losses.Difference('a', 1e-6, 1e-6, 1e-6)] * 2])
        monkeypatch.setattr(losses, 'compare', lambda *args: next(answers))
        assert losses.check_losses(setting, 'lw-detr').endswith('weights 2 of 3'), 'a near tie may turn'


def test_nan_is_beyond_every_bound():
    reference = losses.Outcome(dict(loss=2.0, a=1.0, b=1.0), torch.ones(2))
    found = losses.compare(losses.Outcome(dict(loss=2.0, a=float('nan'), b=5.0), torch.ones(2)), reference)
    assert found.term == 'a' and not found.loss <= losses.LOSS_BOUND


def test_gradients_are_watched():
    model = torch.nn.ModuleDict(dict(used=torch.nn.Linear(2, 1), unused=torch.nn.Linear(2, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = training.GradientWatch(model, optimizer)
    with pytest.raises(Failed, match='1 of 1 steps were skipped'):
        watch.require(1)
    model['used'](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(Failed, match='step 1: 2 parameters have no gradient, e.g. unused.weight'):
        watch.require(1)
    watch.problems.clear()
    for param in model.parameters():
        param.grad = torch.full_like(param, float('inf'))
    optimizer.step()
    with pytest.raises(Failed, match='step 2: 4 parameters have a gradient that is not finite'):
        watch.require(2)


@pytest.mark.slow
def test_training_steps(setting):
    with variables(setting.environment):
        assert ' s/step' in training.check_training(setting, 'lw-detr', amp=True)


@pytest.mark.slow
@pytest.mark.parametrize('peak, passes', [(1.1, True), (9.0, False)])
def test_memory_is_compared(setting, monkeypatch, peak, passes):
    monkeypatch.setattr(training, 'announced_memory', lambda cfg: (1e9, 4, (144, 192)))
    monkeypatch.setattr(training, 'used_memory', lambda variant: peak * 1e9)
    with variables(setting.environment):
        if passes:
            assert training.check_memory(setting, 'lw-detr').startswith('announced 1.00 GB, used 1.10 GB: 0.91')
            return
        with pytest.raises(Failed, match='used 9.00 GB'):
            training.check_memory(setting, 'lw-detr')


@pytest.mark.slow
def test_commands_train_and_load(setting, tmp_path, monkeypatch):
    made = commands.Commands(setting, tmp_path)
    shell = SERVER.shell() if not torch.cuda.is_available() else {}
    monkeypatch.setattr(sys, 'executable', shell.get('PYTHON_EXEC', sys.executable))
    with variables(setting.environment | dict(OMP_NUM_THREADS='1') | shell):
        assert run_check(Check('a', made.resume)).status == SKIPPED, 'no checkpoint yet'
        row = run_check(Check('a', made.train))
        assert row.status == OK, row
        assert ('NCCL' if torch.cuda.is_available() else 'backend gloo') in row.detail
        assert made.load().startswith('60 boxes on ')
        with pytest.raises(Failed, match=r'status 2: error: no\.py: no such config file; see .*bad\.txt'):
            made.run('bad', *made.python('train.py', 'no.py'))


@pytest.mark.parametrize(
    'output, expected',
    [
        ('a\nRuntimeError: x does not\nhint\n', 'RuntimeError: x does not'),
        ('[rank0]: torch.OutOfMemoryError: CUDA out of memory\n=====\n', 'torch.OutOfMemoryError: CUDA out of memory'),
        ('error: no.py: no such config file\n', 'error: no.py: no such config file'),
        ('a\nb\n\n', 'b'),
        ('', 'nothing was printed'),
    ])
def test_last_words(output, expected):
    assert commands.last_words(output) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    'ending, status, detail',
    [
        ('RuntimeError: cumsum does not have a deterministic implementation, but', SKIPPED, 'this device: cumsum does'),
        ('RuntimeError: something else', FAIL, 'RuntimeError: something else; see '),
    ])
def test_deterministic_training_that_stops(setting, monkeypatch, tmp_path, ending, status, detail):
    monkeypatch.setattr(commands.Commands, 'run', lambda *args, **kwargs: f'Traceback\n{ending}\n')
    made = commands.Commands(setting, tmp_path)
    row = run_check(Check('a', lambda: made.deterministic('lw-detr')))
    assert row.status == status and detail in row.detail


@pytest.mark.slow
def test_deterministic_trainings_are_compared(setting, monkeypatch, tmp_path):
    monkeypatch.setattr(commands.Commands, 'run', lambda *args, **kwargs: '')
    made = commands.Commands(setting, tmp_path)
    for index in (1, 2):
        path = tmp_path / f'deterministic-dino-{index}/epoch_1.pth'
        path.parent.mkdir()
        torch.save(dict(state_dict=dict(a=torch.ones(1), b=torch.tensor([float(index)]))), path)
    with pytest.raises(Failed, match='1 of 2 tensors differ after two equal trainings, e.g. b'):
        made.deterministic('dino')


def test_the_shell_script_says_what_it_does(run):
    assert 'bash tools/check_gpu.sh' in run('bash', REPO / 'tools/check_gpu.sh', '--help')


@pytest.mark.slow
def test_unwritable_folder_ends_in_one_line(run, tmp_path):
    (tmp_path / 'file').touch()
    output = run(sys.executable, SCRIPT, '--work-dir', tmp_path / 'file/x', status=2)
    assert output.strip().split('\n')[-1].startswith(f'error: {tmp_path / "file/x"}: cannot be written')


def test_streams_are_restored_when_a_check_dies(tmp_path):
    with (tmp_path / 'log').open('w') as log, pytest.raises(KeyboardInterrupt), rows.quiet(log):
        raise KeyboardInterrupt
    assert not isinstance(sys.stdout, io.TextIOWrapper) or sys.stdout.name != log.name
