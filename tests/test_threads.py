"""Threads beside other programs: one for each free core, unless the user has set their number."""

import os
import sys
import time

import pytest
import torch

from deit_detr import threads
from deit_detr.threads import Load


@pytest.fixture
def four_cores(monkeypatch):
    before = torch.get_num_threads()
    for name in (*threads.THREADS, *threads.WAITING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1, 2, 3}, raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('busy, own, seconds, expected', [
    (2.0, 2.0, 2.0, 4),  # nobody else
    (4.0, 2.0, 2.0, 3),  # one other program
    (5.6, 2.0, 2.0, 2),  # nearly two
    (8.0, 2.0, 2.0, 1),
    (16.0, 0.5, 2.0, 1),  # more than there are cores
    (8.0, 0.1, 0.2, 4),  # too short to tell
])
def test_cores_of_others_are_left_to_them(busy, own, seconds, expected, four_cores, monkeypatch):
    monkeypatch.setattr(threads, 'read_load', lambda: Load(100 + busy, own, 50 + seconds))
    threads.fit_threads(Load(100.0, 0.0, 50.0))
    assert torch.get_num_threads() == expected
    assert threads.describe().startswith(f'{expected} threads on 4 cores')


def test_what_the_user_says_counts(four_cores, monkeypatch):
    monkeypatch.setattr(threads, 'read_load', lambda: Load(8.0, 0.0, 2.0))
    monkeypatch.setenv('OMP_NUM_THREADS', '4')
    threads.fit_threads(Load(0.0, 0.0, 0.0))
    threads.fit_threads(None)
    assert torch.get_num_threads() == 4


@pytest.mark.slow
def test_waiting_is_bounded_before_torch_is_imported(run, monkeypatch):
    for name in threads.WAITING:
        monkeypatch.delenv(name, raising=False)
    code = 'import os, deit_detr; print(os.environ.get("GOMP_SPINCOUNT"))'
    assert run('python', '-W', 'ignore', '-c', code).strip() == threads.SPINS


@pytest.mark.parametrize('env, imported, expected', [
    ({}, False, threads.SPINS), ({}, True, None), (dict(GOMP_SPINCOUNT='7'), False, '7'),
    (dict(GOMP_SPINCOUNT='7'), True, '7'), (dict(OMP_WAIT_POLICY='active'), False, None)])
def test_waiting_is_bounded_only_if_that_has_an_effect(env, imported, expected, monkeypatch):
    """The user's settings count, and torch reads the variable only when it is imported."""
    if not imported:
        monkeypatch.delitem(sys.modules, 'torch')
    variables = {name: value for name, value in os.environ.items() if name not in threads.WAITING} | env
    monkeypatch.setattr(os, 'environ', variables)
    threads.bound_waiting()
    assert variables.get('GOMP_SPINCOUNT') == expected


@pytest.mark.skipif(not os.path.exists('/proc/stat'), reason='unknown on this system')
def test_load_is_that_of_the_system():
    before, end = threads.read_load(), time.perf_counter() + 0.5
    while time.perf_counter() < end:
        pass
    after = threads.read_load()
    own = after.own - before.own
    assert own > 0.1 and after.busy - before.busy > 0.8 * own - 0.05
    assert after.busy - before.busy < 1.1 * len(os.sched_getaffinity(0)) * (after.clock - before.clock) + 0.1
