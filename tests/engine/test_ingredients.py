"""The ingredients of configs/_base_/ingredients.py in trainings of seconds: resumed to the last bit, right weights."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger

from deit_detr.engine.resume.early_stopping import ResumableEarlyStoppingHook
from tests.helpers.interruptions import InterruptHook
from tests.helpers.paths import REPO
from tests.helpers.tiny_training import RECIPE, assert_same_training, differences, read_log, tiny_config, train

INGREDIENTS = Config.fromfile(REPO / 'configs/_base_/ingredients.py')
WATCHED = 'backbone.pos_embed'
#: The weights after each step.
HISTORY = []


class History(Hook):
    priority = 'VERY_HIGH'  # before the moving average

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        HISTORY.append(runner.model.state_dict()[WATCHED].clone())


def config(work_dir, workers: int = 0, resume: bool | str = False) -> Config:
    """Everything on, for three epochs of four steps of which early stopping leaves two; the second has no mosaic."""
    cfg = tiny_config(work_dir, {
        'train_cfg.max_epochs': 3, 'train_dataloader.num_workers': workers,
        'train_dataloader.persistent_workers': workers > 0}, resume)
    cfg.train_dataloader.dataset.augment = dict(INGREDIENTS.strong_augment, mosaic=1.0, mix_until=0.3)
    cfg.default_hooks.ema = INGREDIENTS.ema
    cfg.default_hooks.early_stopping = dict(INGREDIENTS.early_stopping, patience=1, min_delta=2.0)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, end=2, by_epoch=False),
        dict(INGREDIENTS.flat_cosine, begin=1)]
    return cfg


@pytest.fixture(scope='module')
def data(mini_scannet):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
        yield mini_scannet


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    """Work folder, log and weights of an uninterrupted training."""
    work_dir = tmp_path_factory.mktemp('whole') / 'work'
    HISTORY.clear()
    log = train(config(work_dir), History())
    assert len(log.losses) == 8 and 'did not improve in the last 1 records' in read_log(work_dir)
    assert 'mosaic, mixup: off from here' in read_log(work_dir)
    return work_dir, log, list(HISTORY)


@pytest.mark.slow
@pytest.mark.parametrize('workers, interrupts', [(0, [3, 6]), (2, [6])])
def test_resumed_training_is_the_same(workers, interrupts, whole, tmp_path):
    """Interrupted in the epoch with mosaic and in the one without, and started again after it has stopped early."""
    work_dir, log, _ = whole
    losses = []
    for number, step in enumerate([*interrupts, None]):
        interrupt = InterruptHook(step=step, number='SIGTERM') if step else None
        losses += train(config(tmp_path / 'work', workers, resume=number > 0), interrupt).losses
        assert len(losses) == (step or 8)
    assert losses == log.losses
    assert_same_training(work_dir / 'epoch_2.pth', tmp_path / 'work/epoch_2.pth')
    if not workers:
        assert train(config(tmp_path / 'work', resume=True)).losses == []
        assert 'this training has stopped early' in read_log(tmp_path / 'work')


@pytest.mark.slow
def test_checkpoints_have_the_average_in_the_place_of_the_weights(whole):
    work_dir, _, history = whole
    average = history[0].clone()
    for step, weights in enumerate(history[1:], 1):
        average.lerp_(weights, 10 / (10 + step))
    last = torch.load(work_dir / 'epoch_2.pth', weights_only=True)
    torch.testing.assert_close(last['state_dict'][WATCHED], average, rtol=0, atol=1e-6)
    assert torch.equal(last['ema_state_dict'][f'module.{WATCHED}'], history[-1])
    best = torch.load(next(work_dir.glob('best_*.pth')), weights_only=True)
    epoch = torch.load(work_dir / f'epoch_{best["meta"]["epoch"]}.pth', weights_only=True)
    assert not differences(best['state_dict'], epoch['state_dict'])


@pytest.mark.slow
def test_without_the_average_training_continues_with_the_plain_weights(whole, tmp_path):
    work_dir, log, history = whole
    shutil.copytree(work_dir, tmp_path / 'work')
    cfg = config(tmp_path / 'work', resume=str(tmp_path / 'work/epoch_1.pth'))
    del cfg.default_hooks['ema']
    assert train(cfg).losses[:4] == log.losses[4:]
    assert 'continues with its plain weights and without a moving average' in read_log(tmp_path / 'work')
    last = torch.load(tmp_path / 'work/epoch_2.pth', weights_only=True)
    assert torch.equal(last['state_dict'][WATCHED], history[-1]) and 'ema_state_dict' not in last


def test_the_lines_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.delenv('MINI_SCANNET_ROOT', raising=False)
    text = (REPO / 'docs/train.md').read_text()
    lines = next(part for part in text.split('```')[1::2] if '_base_.strong_augment' in part).removeprefix('python\n')
    (tmp_path / 'own.py').write_text(
        lines.replace("'CONFIG'", repr(str(RECIPE))).replace('../../..', str(REPO)))
    cfg = Config.fromfile(tmp_path / 'own.py')
    assert cfg.train_dataloader.dataset.augment == INGREDIENTS.strong_augment
    assert (cfg.default_hooks.ema, cfg.default_hooks.early_stopping) == (INGREDIENTS.ema, INGREDIENTS.early_stopping)
    assert [scheduler.type for scheduler in cfg.param_scheduler] == ['LinearLR', 'CosineAnnealingLR']
    assert cfg.param_scheduler[1] == dict(INGREDIENTS.flat_cosine, begin=8)


@pytest.mark.parametrize('steps, share', [(200, 0.1), (1600, 0.1), (20_000, 0.1)])
def test_the_average_fits_the_length_of_a_training(steps, share):
    """The mean age of the weights in it, as a share of the training."""
    age = 0.0
    for step in range(1, steps):
        age = (age + 1) * (1 - max(INGREDIENTS.ema.momentum, INGREDIENTS.ema.gamma / (INGREDIENTS.ema.gamma + step)))
    assert 0.8 * share < age / steps < 1.2 * share


def test_early_stopping_counts_on_where_it_was():
    scores = [0.1, 0.3, 0.2, 0.3, 0.1, 0.9]
    stops = {}
    for interrupted in (False, True):
        hub = MessageHub(f'stopping {interrupted}')
        runner = SimpleNamespace(
            message_hub=hub, train_loop=SimpleNamespace(stop_training=False), logger=MMLogger.get_current_instance())
        hook = ResumableEarlyStoppingHook(patience=3, min_delta=0.05)
        for stops[interrupted], score in enumerate(scores, 1):
            hook.after_val_epoch(runner, {'coco/bbox_mAP': score})
            if runner.train_loop.stop_training:
                break
            if interrupted:
                hook = ResumableEarlyStoppingHook(patience=3, min_delta=0.05)
                hook.before_train(runner)
    assert stops == {False: 5, True: 5}
