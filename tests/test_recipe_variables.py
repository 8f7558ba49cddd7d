"""The variables that the recipes read: their names, the old one, and values of nothing, as docker-compose sets them."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.utils import update_data_root
from mmengine.config import Config
from mmengine.fileio import dump

from deit_detr import RECIPE_VARIABLES
from tests.helpers.fork_server import ForkServer, start
from tests.helpers.paths import REPO

EMPTY = dict.fromkeys(RECIPE_VARIABLES, '')
CONFIGS = REPO / 'projects/deit_detr/configs'
#: Prints data root and checkpoint of each config.
READ = '''
import sys
import deit_detr
from mmengine.config import Config
for path in sys.argv[1:]:
    cfg = Config.fromfile(path)
    print(cfg.train_dataloader.dataset.data_root, cfg.model.backbone.init_cfg.checkpoint)
'''


@pytest.fixture(scope='module')
def without_us() -> Iterator[ForkServer]:
    """A server that has imported mmdet, and not this project."""
    server = ForkServer(['mmdet.apis'])
    yield server
    server.end()


def test_every_variable_of_the_recipes_is_known():
    package = REPO / 'projects/deit_detr'
    files = [*(REPO / 'configs').rglob('*.py'), *CONFIGS.rglob('*.py'), *(package / 'deit_detr/migration').glob('*.py')]
    found = re.findall(r"(?:\{\{\$|environ\.get\(\s*')(\w+)", '\n'.join(path.read_text() for path in files))
    assert set(found) == set(RECIPE_VARIABLES)


@pytest.mark.slow
def test_configs_take_their_defaults(without_us, run):
    names = [
        'detr_deit-tiny_8xb1-150e_scannet', 'lw-detr_deit-tiny_1xb4-16e_mini-scannet',
        'detr_deit-tiny_8xb1-150e_scannet18', 'dino_deit-tiny_8xb2-12e_coco']
    output = run('python', '-c', READ, *(CONFIGS / f'{name}.py' for name in names), **EMPTY, **without_us.shell())
    roots, checkpoints = zip(*(line.split() for line in output.splitlines()[-len(names):]), strict=True)
    assert all(checkpoint.startswith('https://download.openmmlab.com/') for checkpoint in checkpoints)
    assert roots == ('data/scannet-frames/', 'data/mini-scannet/', 'data/scannet-frames-18/', 'data/coco/')


def test_quickstart_passes_no_empty_variable_on(tmp_path):
    names = ' '.join(f'$1 {name}=${{{name}-unset}}' for name in EMPTY)
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\necho "{names}"; [ "$1" != - ] || cat > /dev/null\n')
    python.chmod(0o755)
    env = EMPTY | dict(PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    output = start('bash', REPO / 'tools/quickstart.sh', cwd=tmp_path, env=env).stdout
    lines = [line for line in output.splitlines() if 'MINI_SCANNET_ROOT=' in line]
    assert any(line.startswith('tools/train.py') for line in lines), output
    assert all('DEIT_CHECKPOINT=unset' in line and 'MINI_SCANNET_ROOT=unset' in line for line in lines)
    assert 'Pretrained weights: DeiT-tiny pretrained on ImageNet, downloaded' in output


# ---- DEIT_DATASETS, whose old name mmdet's tools read

TEXT = CONFIGS / 'detr_deit-tiny_8xb1-150e_scannet.py'
PURE = CONFIGS / 'pure_python/detr_deit_tiny_8xb1_150e_scannet.py'
OLD_NAME = 'MMDET_DATASETS is now called DEIT_DATASETS'
#: mmdet's tools, which import this project only because the config says so, and after they have read it.
LATE = READ.replace('import deit_detr\n', '')


@pytest.fixture
def unset(monkeypatch):
    for name in RECIPE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize('path', [TEXT, PURE], ids=['text', 'pure Python'])
def test_first_name_that_is_set_counts(path, unset, monkeypatch):
    def roots() -> set[str]:
        cfg = Config.fromfile(path)
        return {cfg.train_dataloader.dataset.data_root, f'{Path(cfg.val_evaluator.ann_file).parent}/'}

    assert roots() == {'data/scannet-frames/'}
    monkeypatch.setenv('MMDET_DATASETS', '/old/')
    assert roots() == {'/old/'}
    monkeypatch.setenv('DEIT_DATASETS', '/new/')
    assert roots() == {'/new/'}


def test_mmdet_leaves_the_config_alone(unset, monkeypatch):
    monkeypatch.setenv('DEIT_DATASETS', '/elsewhere/')
    cfg = Config.fromfile(TEXT)
    update_data_root(cfg)
    assert cfg.test_dataloader.dataset.data_root == '/elsewhere/'


@pytest.mark.slow
def test_confusion_matrix_of_mmdet(mini_scannet, run, tmp_path):
    tool = Path(mmdet.__file__).parent / '.mim/tools/analysis_tools/confusion_matrix.py'
    if not tool.is_file():
        pytest.skip('this mmdet comes without its tools')
    truth = json.loads((mini_scannet / 'scannet_objdet_val.json').read_text())
    empty = torch.zeros(0)
    found = dict(bboxes=torch.zeros(0, 4), scores=empty, labels=empty.long())
    dump([dict(img_id=image['id'], pred_instances=found) for image in truth['images']], tmp_path / 'found.pkl')
    run(sys.executable, tool, TEXT, 'found.pkl', tmp_path / 'out', DEIT_DATASETS=f'{mini_scannet}/', MPLBACKEND='Agg')
    assert (tmp_path / 'out/confusion_matrix.png').is_file()


@pytest.mark.parametrize('code, env, says', [
    (READ, dict(MMDET_DATASETS='/old/'), 1), (LATE, dict(MMDET_DATASETS='/old/'), 1),
    pytest.param(READ, dict(MMDET_DATASETS='/old/', RANK='1'), 0, marks=pytest.mark.slow),
    pytest.param(READ, dict(MMDET_DATASETS='/new/', DEIT_DATASETS='/old/'), 0, marks=pytest.mark.slow),
], ids=['ours', "mmdet's", 'second process', 'both'])
def test_old_name_is_answered_once(code, env, says, unset, without_us, run, tmp_path):
    """The first case has a new interpreter."""
    (tmp_path / 'own.py').write_text(
        f"_base_ = {str(TEXT)!r}\ntrain_dataloader = dict(dataset=dict(data_root='{{{{$MMDET_DATASETS:data/}}}}'))\n")
    shell = {} if says and code == READ else without_us.shell()
    output = run('python', '-c', code, TEXT, PURE, 'own.py', **env, **shell)
    roots = [line.split()[0] for line in output.splitlines() if line.startswith('/')]
    assert roots == ['/old/', '/old/', env['MMDET_DATASETS']]
    assert output.count(OLD_NAME) == says, output


def test_pure_python_configs_take_empty_variables_for_unset(unset, monkeypatch):
    """mmengine reads them without this project."""
    for name in RECIPE_VARIABLES:
        monkeypatch.setenv(name, '')
    cfg = Config.fromfile(PURE)
    assert cfg.train_dataloader.dataset.data_root == 'data/scannet-frames/'
    assert cfg.model.backbone.init_cfg.checkpoint.startswith('https://')
