"""Weights & Biases, MLflow and SwanLab: the switches of docs/train.md, and what they write without a network."""

import argparse
import importlib.util
import re
import shlex

import pytest
from mmdet.registry import VISUALIZERS
from mmengine.config import Config
from mmengine.registry import VISBACKENDS

from deit_detr.config_file import Options, read_config
from deit_detr.errors import UserError
from tests.helpers.paths import REPO

RECIPE = REPO / 'projects/deit_detr/configs/lw-detr_deit-tiny_1xb4-16e_mini-scannet.py'
SWITCHES = dict(re.findall(
    r'^\| (Weights & Biases|MLflow|SwanLab) \|.*\| `(visualizer\..*)` \|$', (REPO / 'docs/train.md').read_text(), re.M))
#: Where each has its numbers.
FILES = {'Weights & Biases': 'wandb/offline-run-*/*.wandb', 'SwanLab': 'run-*/*.swanlab'}


def with_switch(name: str, *more: str) -> Config:
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=Options)
    options = parser.parse_args(['--cfg-options', *shlex.split(SWITCHES[name]), *more]).cfg_options
    return read_config(RECIPE, options)


def log_to(cfg: Config, folder) -> None:
    """Log a config and two rows of numbers, as a training does."""
    cfg.work_dir = str(folder)
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, name=folder.name, save_dir=str(folder)))
    visualizer.add_config(cfg)
    visualizer.add_scalars(dict(loss=3.5, lr=1e-4), step=50)
    visualizer.add_scalars({'coco/bbox_mAP': 0.25}, step=1)
    visualizer.close()


@pytest.mark.parametrize('name, backend', [
    ('Weights & Biases', 'WandbVisBackend'), ('MLflow', 'MLflowVisBackend'), ('SwanLab', 'SwanlabVisBackend')])
def test_switch_adds_a_backend_to_the_local_files(name, backend):
    if name == 'SwanLab' and not importlib.util.find_spec('swanlab'):  # its package has the backend
        with pytest.raises(UserError, match='custom_imports: no module swanlab: install it'):
            with_switch(name)
        return
    cfg = with_switch(name)
    assert [x.type for x in cfg.visualizer.vis_backends] == ['LocalVisBackend', backend]
    assert cfg.custom_imports.imports[0] == 'deit_detr'
    assert VISBACKENDS.get(backend) is not None


@pytest.mark.slow
def test_mlflow_in_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow', reason='optional')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    cfg = with_switch('MLflow')
    log_to(cfg, tmp_path)
    (run,) = mlflow.search_runs(output_format='list')
    assert run.info.status == 'FINISHED' and run.data.params['train_cfg.max_epochs'] == str(cfg.train_cfg.max_epochs)
    assert run.data.metrics == {'loss': 3.5, 'lr': 1e-4, 'coco/bbox_mAP': 0.25}


@pytest.mark.slow
@pytest.mark.parametrize('name, package, more', [
    ('Weights & Biases', 'wandb', []), ('SwanLab', 'swanlab', ['visualizer.vis_backends.1.init_kwargs.mode=offline'])])
def test_without_a_network(name, package, more, tmp_path, monkeypatch):
    module = pytest.importorskip(package, reason='optional')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    log_to(with_switch(name, *more), tmp_path)
    module.finish()
    (file,) = tmp_path.rglob(FILES[name])
    content = file.read_bytes()
    assert b'coco/bbox_mAP' in content and b'loss' in content
