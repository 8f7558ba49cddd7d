"""What version 0.1 wrote still works: its configs, its checkpoints and its registered names.

``data/version_0_1/make.py`` ran version 0.1 and wrote the checkpoint, in the middle of its first epoch.
"""

import lzma

import pytest
import torch
from mmdet.registry import DATASETS, HOOKS, LOOPS, METRICS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.config import Config

import deit_detr
from tests.helpers.drawn_coco import draw_scannet
from tests.helpers.paths import REPO
from tests.helpers.tiny_training import read_log, train

#: Losses of steps 4 to 8 of the same training, had nothing interrupted it.
LOSSES_OF_0_1 = [
    9.36685848236084, 8.676512718200684, 9.028122901916504, 8.909613609313965, 8.824239730834961]
NAMES_OF_0_1 = {
    DATASETS: 'CheckedCocoDataset ScanNet18Dataset ScanNetDataset',
    HOOKS: 'ClassCheckHook HintHook NonFiniteHook PreemptionHook PreflightHook PretrainedCheckHook RunRecordHook '
           'SafeCheckpointHook SceneVisualizationHook',
    LOOPS: 'ResumableTrainLoop',
    METRICS: 'Pri3DMetric',
    MODELS: 'BatchRandomResize FastConditionalDETR FastDABDETR FastDETR FastDETRHead FastDINO FastDeformableDETR '
            'IoUAwareBCELoss LWDETR LWDETRHead LWDETRProjector SimpleFPN WindowedViT',
    OPTIM_WRAPPER_CONSTRUCTORS: 'GroupedOptimWrapperConstructor',
}


@pytest.fixture
def work_dir(tmp_path, monkeypatch):
    """The work folder of a training of version 0.1 that was asked to stop after 3 of 8 steps, beside its data."""
    monkeypatch.chdir(tmp_path)
    draw_scannet(tmp_path / 'rooms')
    packed = REPO / 'tests/data/version_0_1/preempted_iter_3.pth.xz'
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/preempted_iter_3.pth').write_bytes(lzma.decompress(packed.read_bytes()))
    return tmp_path / 'work'


@pytest.mark.parametrize('resume', ['auto', 'file'])
def test_training_of_0_1_is_resumed_in_the_middle_of_an_epoch(resume, work_dir):
    path = work_dir / 'preempted_iter_3.pth'
    text = torch.load(path, weights_only=True)['meta']['cfg']
    cfg = Config.fromstring(text, '.py')
    assert cfg.custom_imports.imports == ['mmpretrain.models', 'deit_detr']
    cfg.work_dir, cfg.experiment_name, cfg.resume = str(work_dir), f'resumed_{resume}', True
    cfg.load_from = str(path) if resume == 'file' else None
    assert train(cfg).losses == pytest.approx(LOSSES_OF_0_1, rel=1e-4)
    assert {path.name for path in work_dir.glob('epoch_*.pth')} == {'epoch_1.pth', 'epoch_2.pth'}
    assert 'the config is not the one' not in read_log(work_dir)


def test_checkpoint_of_0_1_predicts(work_dir):
    (work_dir / 'config.py').write_text(torch.load(work_dir / 'preempted_iter_3.pth', weights_only=True)['meta']['cfg'])
    detector = deit_detr.load(work_dir / 'config.py', work_dir / 'preempted_iter_3.pth')
    (found,) = detector([work_dir.parent / 'rooms/val/000000000000.jpg'], score_thr=0)
    assert len(found.pred_instances) == 10


@pytest.mark.parametrize('registry', NAMES_OF_0_1, ids=lambda registry: registry.name)
def test_registered_names_of_0_1(registry):
    assert set(NAMES_OF_0_1[registry].split()) <= set(registry.module_dict)
