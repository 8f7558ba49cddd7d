"""A variable that is set to nothing, as docker-compose sets those without a value, counts as unset."""

import os
import re
import sys

import pytest

from deit_detr import RECIPE_VARIABLES
from tests.helpers.fork_server import start
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


def test_every_variable_of_the_recipes_is_known():
    package = REPO / 'projects/deit_detr'
    files = [*(REPO / 'configs').rglob('*.py'), *CONFIGS.rglob('*.py'), *(package / 'deit_detr/migration').glob('*.py')]
    found = re.findall(r"(?:\{\{\$|environ\.get\(\s*')(\w+)", '\n'.join(path.read_text() for path in files))
    assert set(found) == set(RECIPE_VARIABLES)


@pytest.mark.slow
def test_configs_take_their_defaults(run):
    names = [
        'detr_deit-tiny_8xb1-150e_scannet', 'lw-detr_deit-tiny_1xb4-16e_mini-scannet',
        'detr_deit-tiny_8xb1-150e_scannet18', 'dino_deit-tiny_8xb2-12e_coco']
    output = run(sys.executable, '-c', READ, *(CONFIGS / f'{name}.py' for name in names), own_start=True, **EMPTY)
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
