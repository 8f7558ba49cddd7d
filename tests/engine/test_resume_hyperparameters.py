"""Scale of the loss, rates that wait for a metric, several optimizers: what a resumed state overrides is said."""

import copy
import functools
from types import SimpleNamespace

import pytest
import torch
from mmdet.models import BaseDetector
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.optim.scheduler import MultiStepLR, ReduceOnPlateauLR
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

from deit_detr.engine.resume.hyperparameters import apply_config, find_overridden
from deit_detr.errors import UserError
from tests.helpers.interruptions import InterruptHook
from tests.helpers.tiny_training import differences, read_log, tiny_config, train

#: Without an evaluation, and without the hook that checks the gradients of one optimizer.
SHORT = {'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None, 'default_hooks.checkpoint.save_best': None}


def make_run(wrapper: OptimWrapper, schedulers: list, **optim_wrapper) -> SimpleNamespace:
    return SimpleNamespace(
        optim_wrapper=wrapper, param_schedulers=schedulers, cfg=Config(dict(optim_wrapper=optim_wrapper)))


def save(run: SimpleNamespace, epoch: int = 2) -> dict:
    return copy.deepcopy(dict(
        optimizer=run.optim_wrapper.state_dict(), param_schedulers=[one.state_dict() for one in run.param_schedulers],
        meta=dict(cfg=run.cfg.pretty_text, epoch=epoch, iter=10 * epoch)))


def make_optimizer(**more) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], **dict(dict(lr=1.0), **more))


# ---- scale of the loss

@pytest.fixture
def scaled(monkeypatch):
    """Make the run of a ``loss_scale``, also without a GPU."""
    def make(loss_scale) -> SimpleNamespace:
        wrapper = AmpOptimWrapper(loss_scale=loss_scale, dtype='float16', optimizer=make_optimizer())
        return make_run(wrapper, [], type='AmpOptimWrapper', loss_scale=loss_scale)

    if not torch.cuda.is_available():
        monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
        monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', functools.partial(torch.amp.GradScaler, 'cpu'))
    return make


@pytest.mark.parametrize('before, now, lines', [
    ('dynamic', dict(init_scale=1024.0, growth_interval=100), [
        'scale stays 4096.0, the config has 1024.0', 'growth_interval stays 2000, the config has 100']),
    (512.0, dict(init_scale=64.0), ['scale stays 4096.0, the config has 64.0']),
    ('dynamic', 128.0, []),  # mmengine sets a constant at each step
    ('dynamic', 'dynamic', []),
    (dict(init_scale=1024.0, growth_interval=100), dict(growth_interval=100, init_scale=1024.0), []),
])
def test_scale_of_the_loss(before, now, lines, scaled):
    old, new = scaled(before), scaled(now)
    checkpoint = save(old)
    checkpoint['optimizer']['loss_scaler']['scale'] = 4096.0  # it has grown or shrunk
    assert find_overridden(new, checkpoint) == [f'optim_wrapper.loss_scale: {line}' for line in lines]
    apply_config(new, checkpoint, 0)
    scale = checkpoint['optimizer']['loss_scaler']
    assert scale == (new.optim_wrapper.loss_scaler.state_dict() if lines else dict(scale, scale=4096.0))
    new.optim_wrapper.load_state_dict(checkpoint['optimizer'])


# ---- rates that wait for a metric

def waiting(monitor: str = 'ap', **optimizer) -> SimpleNamespace:
    wrapper = OptimWrapper(make_optimizer(**optimizer))
    return make_run(wrapper, [
        ReduceOnPlateauLR(wrapper, monitor=monitor, rule='greater', patience=1, factor=0.1),
        MultiStepLR(wrapper, milestones=[1], gamma=0.5)])


@pytest.fixture
def reduced() -> dict:
    """The checkpoint of a training whose rate was reduced once, by 0.1, and that has waited an evaluation since."""
    run = waiting()
    for _ in range(2):
        for scheduler in run.param_schedulers:
            scheduler.step()
    for metric in (0.5, 0.4, 0.3, 0.2):
        run.param_schedulers[0].step(dict(ap=metric))
    assert run.optim_wrapper.get_lr()['lr'] == [pytest.approx(0.05)]
    return save(run)


def test_another_decay_leaves_a_reduced_rate(reduced):
    run = waiting(weight_decay=0.5)
    before = copy.deepcopy(reduced['param_schedulers'])
    assert find_overridden(run, reduced) == ['optim_wrapper.optimizer: weight_decay stays 0.01, the config has 0.5']
    assert apply_config(run, reduced, 0) == []
    (group,) = reduced['optimizer']['param_groups']
    assert (group['lr'], group['initial_lr'], group['weight_decay']) == (pytest.approx(0.05), 1.0, 0.5)
    assert reduced['param_schedulers'] == before


@pytest.mark.parametrize('monitor, best', [('ap', 0.5), ('recall', -10**9)])
def test_another_rate_undoes_reductions_and_says_so(monitor, best, reduced):
    run = waiting(monitor, lr=2.0)
    words = 'param_scheduler.0 (ReduceOnPlateauLR): its reductions of the rate so far are undone'
    if monitor != 'ap':
        words += '; its best value is dropped, because monitor or rule changed'
    assert apply_config(run, reduced, 0) == [words]
    assert reduced['optimizer']['param_groups'][0]['lr'] == 1.0, 'half of 2, by the milestone'
    state = reduced['param_schedulers'][0]
    assert (state['best'], state['num_bad_epochs'], state['_global_step']) == (best, 1 if monitor == 'ap' else 0, 2)


# ---- several optimizers

@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TwoOptimizers:
    """One optimizer for the backbone and one for the rest."""

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.cfg = optim_wrapper_cfg

    def __call__(self, model) -> OptimWrapperDict:
        parts = dict(backbone=model.backbone.parameters(), rest=[
            param for name, param in model.named_parameters() if not name.startswith('backbone.')])
        return OptimWrapperDict(**{
            name: OptimWrapper(torch.optim.AdamW(params, lr=self.cfg[name])) for name, params in parts.items()})


def train_step(self, data: dict, optim_wrapper: OptimWrapperDict) -> dict:
    """``BaseModel.train_step`` for several optimizers."""
    data = self.data_preprocessor(data, True)
    loss, log_vars = self.parse_losses(self._run_forward(data, mode='loss'))
    optim_wrapper.zero_grad()
    loss.backward()
    for wrapper in optim_wrapper.values():
        wrapper.step()
    return log_vars


@pytest.mark.slow
def test_several_optimizers(mini_scannet, monkeypatch, tmp_path):
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    monkeypatch.setattr(BaseModel, 'train_step', train_step)
    assert BaseDetector.train_step is train_step

    def config(name: str, resume: bool = False, hook: bool = False, **more) -> Config:
        cfg = tiny_config(tmp_path / name, SHORT | more, resume)
        if 'constructor' not in more:
            cfg.optim_wrapper = dict(constructor='TwoOptimizers', backbone=1e-4, rest=2e-4)
        if not hook:
            cfg.custom_hooks = [one for one in cfg.custom_hooks if one.type != 'NonFiniteHook']
        return cfg

    whole = train(config('whole'))
    first = train(config('work'), InterruptHook(step=6, number='SIGTERM'))
    cfg = config('work', resume=True)
    cfg.optim_wrapper.rest = 3e-4
    with pytest.raises(UserError, match='NonFiniteHook supports one OptimWrapper, not OptimWrapperDict'):
        train(config('hook', hook=True))
    assert 'schedule           unknown  not drawn for several optimizers' in read_log(tmp_path / 'work')
    second = train(cfg)
    assert first.losses + second.losses == whole.losses
    one, other = (torch.load(tmp_path / name / 'epoch_2.pth', weights_only=True) for name in ('whole', 'work'))
    assert not differences(one['optimizer'], other['optimizer']) and len(one['param_schedulers']['rest']) == 2
    line = 'optim_wrapper.rest.optimizer: lr stays 0.0002, the config has 0.0003'
    assert line in read_log(tmp_path / 'work')

    cfg.resume, cfg.load_from = True, str(tmp_path / 'work/epoch_1.pth')
    cfg.default_hooks.checkpoint.resume_hyperparameters = False
    train(cfg)
    changed = torch.load(tmp_path / 'work/epoch_2.pth', weights_only=True)['optimizer']
    assert [changed[name]['param_groups'][0]['initial_lr'] for name in ('backbone', 'rest')] == [1e-4, 3e-4]
    with pytest.raises(UserError, match=r"groups of \{'backbone': \[\d+\], 'rest': \[\d+\]\} tensors, but .* \[\d+"):
        train(config('work', resume=True, constructor='GroupedOptimWrapperConstructor'))


# ---- mmdet's own script

@pytest.mark.slow
@pytest.mark.parametrize('given', ['in the file', 'on the command line', 'not at all'])
def test_load_from_that_the_script_of_mmdet_drops_is_named(given, mini_scannet, monkeypatch, tmp_path):
    """It sets resume=True and load_from=None before anything of this project runs."""
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    cfg = tiny_config(tmp_path / 'work', SHORT | {'train_cfg.max_epochs': 1})
    if given == 'in the file':
        cfg.load_from = 'start.pth'
    cfg.dump(tmp_path / 'short.py')
    monkeypatch.setattr('sys.argv', ['train.py'] + ['load_from=start.pth'] * (given == 'on the command line'))
    cfg = Config.fromfile(tmp_path / 'short.py')
    cfg.resume, cfg.load_from = True, None
    train(cfg)
    words = 'without load_from=start.pth, which the script has cleared'
    assert (words in read_log(tmp_path / 'work')) == (given != 'not at all')
    assert 'no checkpoint to resume, the training starts from the beginning' in read_log(tmp_path / 'work')
