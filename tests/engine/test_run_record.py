"""The record of a run, and that it is enough to do the run again: the same weights to the last bit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deit_detr.datasets.scannet import ScanNetDataset
from deit_detr.engine.watch.run_record import MAX_DIFF, code_state, fingerprint
from tests.helpers.paths import REPO
from tests.helpers.tiny_training import TINY, assert_same_training

NO_EVALUATION = ['val_cfg=None', 'val_dataloader=None', 'val_evaluator=None', 'train_cfg.max_epochs=1']


@pytest.fixture
def first(mini_scannet, run, tmp_path):
    """A deterministic training without a seed of its own: its work folder and record."""
    (tmp_path / 'tiny.py').write_text(TINY.replace('randomness', 'unused'))
    run(sys.executable, REPO / 'tools/train.py', 'tiny.py', '--work-dir', 'first', '--deterministic', '--cfg-options',
        *NO_EVALUATION, MINI_SCANNET_ROOT=f'{mini_scannet}/', OMP_NUM_THREADS=1)
    (path,) = tmp_path.glob('first/*/run.json')
    return tmp_path / 'first', json.loads(path.read_text())


@pytest.mark.slow
def test_run_is_repeated_from_its_record(first, mini_scannet, run, tmp_path):
    work_dir, record = first
    assert record['deterministic'] and record['resumed'] is None
    assert record['versions']['torch'] == torch.__version__.split('+')[0]
    assert record['data']['train']['images'] == 8
    assert os.uname().nodename not in json.dumps({key: record[key] for key in record if key != 'code'})

    run(sys.executable, REPO / 'tools/train.py', work_dir / 'tiny.py', '--work-dir', 'second', '--cfg-options',
        f'randomness.seed={record["seed"]}', 'randomness.deterministic=True', MINI_SCANNET_ROOT=f'{mini_scannet}/',
        OMP_NUM_THREADS=1)
    assert_same_training(work_dir / 'epoch_1.pth', tmp_path / 'second/epoch_1.pth')


def test_fingerprint_changes_with_annotations_and_images(mini_scannet, tmp_path):
    root = Path(shutil.copytree(mini_scannet, tmp_path / 'data', symlinks=False))

    def read() -> dict:
        return fingerprint(ScanNetDataset(
            data_root=str(root), ann_file='scannet_objdet_val.json', data_prefix=dict(img='val/'), test_mode=True))

    before = read()
    assert before == read() and before['files'] == before['images'] == 8
    next(root.glob('val/*/color/*.jpg')).open('ab').write(b'0')
    assert read()['files_sha256'] != before['files_sha256'] and read()['sha256'] == before['sha256']
    (root / 'scannet_objdet_val.json').open('a').write(' ')
    assert read()['sha256'] != before['sha256']


def test_code_state_knows_commit_and_changes(tmp_path):
    def git(*arguments: str) -> str:
        return subprocess.run(
            ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments], cwd=tmp_path, check=True,
            capture_output=True, text=True).stdout.strip()

    assert code_state(tmp_path)['commit'] is None
    git('init', '-q')
    (tmp_path / 'code.py').write_text('one\n')
    git('add', '.')
    git('commit', '-qm', 'first')
    assert code_state(tmp_path) == dict(
        commit=git('rev-parse', 'HEAD'), changed=False, diff='', diff_cut=False, untracked=[])
    (tmp_path / 'code.py').write_text('two\n' * MAX_DIFF)
    (tmp_path / 'new.py').write_text('')
    state = code_state(tmp_path)
    assert state['changed'] and '-one\n+two' in state['diff'] and state['diff_cut']
    assert len(state['diff']) == MAX_DIFF and state['untracked'] == ['new.py']
