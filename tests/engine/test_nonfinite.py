"""NaN in a real run: all processes stop or skip alike, the weights stay, and the batch that did it is kept."""

import sys

import numpy as np
import pytest
import torch
from mmdet.models.task_modules.assigners import hungarian_assigner
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner

from deit_detr.engine.watch.hints import HintHook
from deit_detr.engine.watch.nonfinite import NonFiniteHook, load_batch
from deit_detr.errors import UserError
from deit_detr.models.matching import assign
from tests.helpers.interruptions import Breaker
from tests.helpers.paths import REPO

CONFIGS = REPO / 'projects/deit_detr/configs'
DETR, FAST, DINO = (
    CONFIGS / f'{name}_mini-scannet.py'
    for name in ('detr_deit-tiny_1xb8-50e', 'detr-fast_deit-tiny_1xb8-50e', 'dino_deit-tiny_1xb4-8e'))


@pytest.fixture
def build_runner(tmp_path, mini_scannet, monkeypatch):
    """A runner for 8 steps of 2 images, without validation."""
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    # the guard replaces it for the rest of the process
    monkeypatch.setattr(hungarian_assigner, 'linear_sum_assignment', hungarian_assigner.linear_sum_assignment)

    def build_runner(recipe, *hooks, **optim_wrapper) -> Runner:
        cfg = Config.fromfile(recipe)
        cfg.merge_from_dict({
            'model.backbone.arch': dict(
                _delete_=True, embed_dims=192, num_layers=1, num_heads=3, feedforward_channels=64),
            'model.backbone.init_cfg': None, 'model.encoder.num_layers': 1, 'model.decoder.num_layers': 2,
            'train_dataloader': dict(batch_size=2, num_workers=0, persistent_workers=False),
            'train_cfg': dict(max_epochs=1), 'default_hooks': dict(checkpoint=None),
            'optim_wrapper': optim_wrapper, 'randomness': dict(seed=0), 'launcher': 'none',
            'work_dir': str(tmp_path / 'work'), 'visualizer.vis_backends': []})
        cfg.custom_hooks = []
        cfg.default_hooks.pop('visualization')
        for name in ('val', 'test'):
            cfg[f'{name}_dataloader'] = cfg[f'{name}_cfg'] = cfg[f'{name}_evaluator'] = None
        cfg.experiment_name = f'{tmp_path.name}_{recipe.stem}'
        runner = Runner.from_cfg(cfg)
        for hook in hooks:
            runner.register_hook(hook)
        return runner
    return build_runner


def log_of(runner) -> str:
    return next((REPO / runner.work_dir).rglob('*.log')).read_text()


@pytest.mark.parametrize('recipe', [DETR, FAST, DINO], ids=['mmdet', 'fast', 'dino'])
def test_run_stops_before_weights_are_lost(recipe, build_runner, tmp_path):
    breaker = Breaker(2, by='weight')
    runner = build_runner(recipe, breaker, NonFiniteHook())
    with pytest.raises(UserError, match='loss or gradients of step 2 are not finite') as caught:
        runner.train()
    path = tmp_path / 'work/nonfinite/iter_2_rank_0.pth'
    assert str(path) in str(caught.value)
    saved = torch.load(path, weights_only=True)
    assert len(saved['images']) == 2 and saved['losses']['loss'].isnan()
    assert all(name in str(caught.value) for name in saved['img_paths'])
    assert breaker.changed == [True, False]
    assert all(param.isfinite().all() for param in runner.model.parameters())


def test_saved_batch_shows_it_again(build_runner, tmp_path):
    """Gradients are accumulated over two batches, of which the first is broken; nothing is clipped."""
    runner = build_runner(DETR, Breaker(3), NonFiniteHook(), accumulative_counts=2, clip_grad=None)
    with pytest.raises(UserError, match='step 4'):
        runner.train()
    (path,) = (tmp_path / 'work/nonfinite').iterdir()
    assert path.name == 'iter_3_rank_0.pth', 'not the batch that was the last'

    def loss(batch) -> torch.Tensor:
        with torch.no_grad():
            return sum(runner.model(**runner.model.data_preprocessor(batch, training=True), mode='loss').values())

    batch = load_batch(path)
    assert batch['data_samples'][0].gt_instances.bboxes.shape[1] == 4
    assert not loss(batch).isfinite()
    assert loss({name: value[1:] for name, value in batch.items()}).isfinite(), 'the other image was fine'


def test_bounded_number_of_steps_is_skipped(build_runner):
    breaker = Breaker(2, 5)
    runner = build_runner(FAST, breaker, NonFiniteHook(max_skips=1))
    with pytest.raises(UserError, match='step 5'):
        runner.train()
    assert breaker.changed == [True, False, True, True, False]
    assert 'Step skipped, 1 of at most 1' in log_of(runner)


def test_under_autocast(build_runner, monkeypatch):
    """mmengine's wrapper asks for a GPU; PyTorch also does bfloat16 on a CPU."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    breaker = Breaker(1, 3)
    runner = build_runner(FAST, breaker, NonFiniteHook(max_skips=1), type='AmpOptimWrapper', dtype='bfloat16')
    with pytest.raises(UserError, match='step 3'):
        runner.train()
    assert breaker.changed == [False, True, False]


def test_gradients_that_are_clipped_by_value_are_checked_before(build_runner):
    """Clipping makes infinite gradients finite."""
    breaker = Breaker(2, 5)
    runner = build_runner(
        FAST, breaker, NonFiniteHook(max_skips=1), clip_grad=dict(_delete_=True, type='value', clip_value=0.1))
    with pytest.raises(UserError, match='step 5'):
        runner.train()
    assert breaker.changed == [True, False, True, True, False]


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_broken_query_is_matched(bad):
    """SciPy raises here, or leaves the query aside; then no loss would show it."""
    costs = np.random.default_rng(0).random((6, 3)).astype(np.float32)
    queries, boxes = assign(costs)
    unmatched = ({*range(6)} - {*queries}).pop()
    costs[unmatched, 1] = bad
    queries, boxes = assign(torch.from_numpy(costs))
    assert boxes[list(queries).index(unmatched)] == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_agree_when_one_has_it(run, tmp_path, mini_scannet):
    """Rank 1 alone has a broken image in steps 2 and 3: both skip the one and stop at the other."""
    output = run(
        sys.executable, REPO / 'tests/helpers/processes/nonfinite.py', FAST, '--work-dir', tmp_path / 'work',
        '--launcher', 'pytorch',
        '--cfg-options', 'model.backbone.init_cfg=None', 'model.encoder.num_layers=1', 'model.decoder.num_layers=1',
        'train_dataloader.batch_size=2', 'train_dataloader.num_workers=0', 'train_cfg.max_epochs=1',
        'train_dataloader.persistent_workers=False', 'randomness.seed=0',
        MINI_SCANNET_ROOT=f'{mini_scannet}/', CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS=1)
    saved = sorted(path.name for path in (tmp_path / 'work/nonfinite').iterdir())
    assert saved == ['iter_2_rank_1.pth', 'iter_3_rank_1.pth']
    lines = [line for line in output.splitlines() if line.startswith('RANK')]
    assert sorted(lines) == [
        f'RANK {rank} changed [True, False, False] stopped at step 3, iter_3_rank_1.pth' for rank in (0, 1)]


class Explosion(Hook):
    """From step 5 on, weights that no training would reach."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter + 1 == 5:
            for param in runner.model.bbox_head.fc_cls.parameters():
                param.data.mul_(1000)


@pytest.mark.slow
def test_divergence_is_explained_once(build_runner):
    runner = build_runner(DETR, Explosion(), HintHook(window=2))
    runner.train()
    (line,) = [line for line in log_of(runner).splitlines() if 'the loss diverges' in line]
    assert 'a learning rate of 0.0001 with 2 images per step, while the rate is meant for 8 (--auto-scale-lr' in line


def test_ap_of_zero_is_explained_once(build_runner):
    runner = build_runner(DETR)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    learns, fails = HintHook(), HintHook()
    learns.after_val_epoch(runner, {'coco/bbox_mAP': 0.01})
    for _ in range(7):
        for hook in (learns, fails):
            hook.after_val_epoch(runner, {'coco/bbox_mAP': 0.0})
    (line,) = [line for line in log_of(runner).splitlines() if 'AP is 0' in line]
    assert 'in 5 evaluations' in line and '--show-dir' in line
