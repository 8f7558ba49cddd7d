"""Weights & Biases, MLflow and SwanLab: the switches of docs/train.md, and MLflow in a folder."""

import re

import pytest
from mmengine.config import Config, DictAction
from mmengine.registry import VISBACKENDS, VISUALIZERS

import deit_detr  # noqa: F401 - registers the classes of the recipes
from tests.helpers.paths import REPO

RECIPE = REPO / 'projects/deit_detr/configs/lw-detr_deit-tiny_1xb4-16e_mini-scannet.py'
SWITCHES = dict(re.findall(
    r'^\| (Weights & Biases|MLflow|SwanLab) \|.*\| `(visualizer\..*)` \|$', (REPO / 'docs/train.md').read_text(), re.M))


def with_switch(name: str) -> Config:
    options = {}
    for pair in SWITCHES[name].split():
        key, value = pair.split('=', 1)
        options[key] = DictAction._parse_iterable(value.strip('"'))
    cfg = Config.fromfile(RECIPE)
    cfg.merge_from_dict(options)
    return cfg


@pytest.mark.parametrize('name, backend', [
    ('Weights & Biases', 'WandbVisBackend'), ('MLflow', 'MLflowVisBackend'), ('SwanLab', 'SwanlabVisBackend')])
def test_switch_adds_a_backend_to_the_local_files(name, backend):
    cfg = with_switch(name)
    assert [x.type for x in cfg.visualizer.vis_backends] == ['LocalVisBackend', backend]
    assert cfg.custom_imports.imports[0] == 'deit_detr'
    if name != 'SwanLab':  # its package has the backend
        assert VISBACKENDS.get(backend) is not None


@pytest.mark.slow
def test_mlflow_in_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow', reason='optional')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    cfg = with_switch('MLflow')
    cfg.work_dir = str(tmp_path)
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, name='mlflow', save_dir=str(tmp_path)))
    visualizer.add_config(cfg)
    visualizer.add_scalars(dict(loss=3.5, lr=1e-4), step=50)
    visualizer.add_scalars({'coco/bbox_mAP': 0.25}, step=1)
    visualizer.close()
    (run,) = mlflow.search_runs(output_format='list')
    assert run.info.status == 'FINISHED' and run.data.params['train_cfg.max_epochs'] == str(cfg.train_cfg.max_epochs)
    assert run.data.metrics == {'loss': 3.5, 'lr': 1e-4, 'coco/bbox_mAP': 0.25}
