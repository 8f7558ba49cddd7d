"""Translate how a 2.x config trains: schedule, optimizer, hooks and runtime."""

from deit_detr.errors import UserError
from deit_detr.migration.untranslated import take, take_if

_WARM_UPS = ('linear', 'constant', 'exp')


def translate_schedule(old: dict) -> dict:
    """Translate loops, optimizer and learning rates.

    Raises:
        UserError: If the config does not train by epochs.
    """
    evaluation, runner = old.get('evaluation', {}), old.get('runner', {})
    take_if(runner, 'type', 'EpochBasedRunner')
    max_epochs = runner.pop('max_epochs', None) or old.pop('total_epochs', None)
    if max_epochs is None:
        raise UserError('field runner.max_epochs: missing; only training by epochs can be translated')
    train_cfg = dict(
        type='ResumableTrainLoop', max_epochs=max_epochs, val_interval=evaluation.pop('interval', 1))
    if 'start' in evaluation:
        train_cfg['val_begin'] = evaluation.pop('start')

    optimizer = old['optimizer']
    wrapper = dict(type='OptimWrapper', constructor='GroupedOptimWrapperConstructor')
    take_if(optimizer, 'constructor', 'DefaultOptimizerConstructor')
    paramwise_cfg = optimizer.pop('paramwise_cfg', None)
    fp16 = old.get('fp16') or {}
    if 'loss_scale' in fp16:
        wrapper |= dict(type='AmpOptimWrapper', loss_scale=fp16.pop('loss_scale'))
    constructor = take(optimizer, 'constructor')
    wrapper['optimizer'] = dict(optimizer)
    optimizer.clear()
    optimizer |= constructor  # an unknown constructor is not translated
    grad_clip = old.get('optimizer_config', {}).pop('grad_clip', None)
    if grad_clip:
        wrapper['clip_grad'] = grad_clip
    if paramwise_cfg:
        wrapper['paramwise_cfg'] = paramwise_cfg
    return dict(
        train_cfg=train_cfg, val_cfg=dict(type='ValLoop'), test_cfg=dict(type='TestLoop'), optim_wrapper=wrapper,
        param_scheduler=_learning_rate(old.get('lr_config', {}), max_epochs))


def _learning_rate(old: dict, max_epochs: int) -> list[dict]:
    schedulers = []
    # a warm-up by epochs needs the number of iterations of an epoch, which only the data knows
    if old.get('warmup') in _WARM_UPS and take_if(old, 'warmup_by_epoch', False):
        schedulers += _warm_up(old.pop('warmup'), old.pop('warmup_iters'), old.pop('warmup_ratio', 0.1))
    take_if(old, 'warmup', None)
    if old.get('policy') == 'step' and old.get('by_epoch', True):
        del old['policy']
        old.pop('by_epoch', None)
        steps = old.pop('step')
        span = dict(begin=0, end=max_epochs, by_epoch=True)
        gamma = dict(gamma=old.pop('gamma', 0.1))
        if isinstance(steps, int):
            schedulers.append(dict(type='StepLR', **span, step_size=steps, **gamma))
        else:
            schedulers.append(dict(type='MultiStepLR', **span, milestones=list(steps), **gamma))
    return schedulers


def _warm_up(kind: str, iters: int, ratio: float) -> list[dict]:
    """Translate a warm-up whose factor is ``ratio`` at iteration 0 and 1 from iteration ``iters`` on.

    The schedulers of 3.x reach their last value one iteration before ``end``.
    """
    span = dict(by_epoch=False, begin=0, end=iters + 1)
    if kind == 'linear':
        return [dict(type='LinearLR', start_factor=ratio, **span)]
    if kind == 'constant':
        return [dict(type='ConstantLR', factor=ratio, **span)]
    return [
        dict(type='ConstantLR', factor=ratio, by_epoch=False),  # without an end
        dict(type='ExponentialLR', gamma=ratio ** (-1 / iters), **span)]


def translate_runtime(old: dict) -> dict:
    """Translate hooks, logging, checkpoints and the environment; the new config has the hooks of this project."""
    log, checkpoint, evaluation = old.get('log_config', {}), old.get('checkpoint_config', {}), old.get('evaluation', {})
    interval = log.pop('interval', 50)
    vis_backends = [dict(type='LocalVisBackend')]
    for hook in log.get('hooks', []):
        if hook == dict(type='TensorboardLoggerHook'):
            vis_backends.append(dict(type='TensorboardVisBackend'))
        if hook in (dict(type='TensorboardLoggerHook'), dict(type='TextLoggerHook')):
            hook.clear()
    save_best = evaluation.pop('save_best', None)
    checkpoint_hook = dict(type='SafeCheckpointHook', interval=checkpoint.pop('interval', 1)) | take(
        checkpoint, 'by_epoch', 'max_keep_ckpts', 'save_optimizer', 'save_last', 'out_dir')
    if save_best:
        checkpoint_hook['save_best'] = save_best if save_best == 'auto' else f'coco/{save_best}'

    for hook in old.get('custom_hooks', []):
        take_if(hook, 'type', 'NumClassCheckHook')  # ClassCheckHook also compares the names and their order

    resume_from, load_from = old.pop('resume_from', None), old.pop('load_from', None)
    take_if(old, 'workflow', [('train', 1)])
    new = dict(
        default_hooks=dict(
            timer=dict(type='IterTimerHook'),
            logger=dict(type='LoggerHook', interval=interval),
            param_scheduler=dict(type='ParamSchedulerHook'),
            checkpoint=checkpoint_hook,
            preemption=dict(type='PreemptionHook'),
            record=dict(type='RunRecordHook'),
            sampler_seed=dict(type='DistSamplerSeedHook'),
            visualization=dict(type='SceneVisualizationHook')),
        custom_hooks=[
            dict(type='PreflightHook'), dict(type='PretrainedCheckHook'), dict(type='ClassCheckHook'),
            dict(type='NonFiniteHook', max_skips=0), dict(type='HintHook')],
        env_cfg=dict(
            cudnn_benchmark=old.pop('cudnn_benchmark', False),
            mp_cfg=dict(
                mp_start_method=old.pop('mp_start_method', 'fork'),
                opencv_num_threads=old.pop('opencv_num_threads', 0)),
            dist_cfg=dict(backend='nccl', timeout=600) | old.pop('dist_params', {})),
        vis_backends=vis_backends,
        visualizer=dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer'),
        log_processor=dict(type='LogProcessor', window_size=interval, by_epoch=True),
        log_level=old.pop('log_level', 'INFO'),
        load_from=resume_from or load_from,
        resume=bool(resume_from))
    if 'seed' in old or 'deterministic' in old:
        new['randomness'] = dict(seed=old.pop('seed', None), deterministic=old.pop('deterministic', False))
    return new | take(old, 'auto_scale_lr', 'find_unused_parameters', 'work_dir')
