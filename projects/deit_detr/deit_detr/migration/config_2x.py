"""A DETR config of mmdet 2.x to one of mmdet 3.x.

Every function here takes what it translates out of the old config, piece by piece. What is left when all are done
was not translated, and is listed: nothing is dropped silently.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from deit_detr.errors import UserError
from deit_detr.migration.config_text import config_text
from deit_detr.migration.pipeline_2x import translate_transforms
from deit_detr.migration.read_2x import LegacyConfig, read_config_2x
from deit_detr.migration.untranslated import holds, leaves, shortened, take, take_if, unshared

#: mmdet backbones whose arguments are the same in 3.x.
_SAME_BACKBONES = {'ResNet', 'ResNetV1d', 'ResNeXt', 'Res2Net', 'SwinTransformer', 'PyramidVisionTransformer'}
#: Arguments of mmcls' VisionTransformer that mmpretrain's has under the same name.
_SAME_VIT_ARGUMENTS = (
    'arch', 'img_size', 'patch_size', 'in_channels', 'out_indices', 'drop_rate', 'drop_path_rate', 'qkv_bias',
    'norm_cfg', 'final_norm', 'with_cls_token', 'interpolate_mode', 'patch_cfg', 'layer_cfgs', 'init_cfg')
_TEST_META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
#: Top-level names with a meaning in 2.x; another one that the config reads again is a variable of its author.
_SETTINGS = {
    'model', 'data', 'evaluation', 'optimizer', 'optimizer_config', 'fp16', 'lr_config', 'momentum_config', 'runner',
    'total_epochs', 'checkpoint_config', 'log_config', 'custom_hooks', 'custom_imports', 'dist_params', 'log_level',
    'load_from', 'resume_from', 'workflow', 'opencv_num_threads', 'mp_start_method', 'cudnn_benchmark',
    'find_unused_parameters', 'auto_scale_lr', 'work_dir', 'seed', 'deterministic', 'gpu_ids', 'device',
}


@dataclass
class ConvertedConfig:
    """A translated config.

    Attributes:
        text (str): The 3.x config as Python source, with all the notes as a comment at its top.
        by_hand (list[str]): What was not translated, one path of the 2.x config each, with its value or a reason.
        notes (list[str]): Where base files were taken from that were not where the config says.
    """

    text: str
    by_hand: list[str]
    notes: list[str]


def convert_config_2x(path: str | Path) -> ConvertedConfig:
    """Translate a 2.x DETR config.

    Args:
        path: The config.

    Returns:
        ConvertedConfig: The 3.x config and what is left to do.

    Raises:
        UserError: If the config cannot be read, or is not one of a DETR of mmdet 2.x.
    """
    legacy = read_config_2x(path)
    original = legacy.settings
    missing = [name for name in ('model', 'data', 'optimizer') if name not in original]
    if missing:
        raise UserError(f'{path}: not a complete config of mmdet 2.x: {", ".join(missing)} missing')
    kind = original['model'].get('type') if isinstance(original['model'], dict) else original['model']
    if kind != 'DETR':
        raise UserError(f'{path}: field model.type: {shortened(kind)}; only DETR can be translated')

    old, by_hand, preprocessor = unshared(original), [], {}
    try:
        loaders = _data(old, preprocessor, by_hand)
        settings = dict(
            default_scope='mmdet',
            custom_imports=_custom_imports(old, by_hand),
            model=_model(old['model'], preprocessor, by_hand),
            **loaders,
            **_schedule(old),
            **_runtime(old),
        )
    except KeyError as error:
        raise UserError(f'{path}: not a 2.x DETR config: field {error} is missing') from None
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(f'{path}: not a 2.x DETR config: a field is of another kind than there ({error})') from None
    _take_variables(old, legacy)
    by_hand += [f'{name} = {shortened(value)}' for name, value in leaves(old, '')]

    header = [f'Made by tools/misc/convert_config_2x.py from {Path(path).name} (mmdet 2.x).', *legacy.notes]
    if by_hand:
        header += ['', 'NOT TRANSLATED, to be done by hand:', *(f'- {item}' for item in by_hand)]
    variables = {}
    if isinstance(original.get('data_root'), str):
        variables['data_root'] = _data_root_from_environment(original['data_root'])
    variables['train_pipeline'] = settings['train_dataloader']['dataset']['pipeline']
    variables['test_pipeline'] = settings['val_dataloader']['dataset']['pipeline']
    metainfo = settings['train_dataloader']['dataset'].get('metainfo')
    if metainfo:
        variables['metainfo'] = metainfo
    return ConvertedConfig(config_text(header, variables, settings), by_hand, legacy.notes)


def _take_variables(old: dict, legacy: LegacyConfig) -> None:
    """Take the variables of the config's author, whose values arrived where they were read.

    A config that 2.x wrote into its work folder reads none of them: there, dicts and lists are known by their value.
    """
    used = {name: value for name, value in legacy.settings.items() if name in _SETTINGS}
    for name in old.keys() - _SETTINGS:
        value = legacy.settings[name]
        if (
                name in legacy.variables or name in ('dataset_type', 'data_root')
                or isinstance(value, (dict, list, tuple)) and holds(used, value)):
            del old[name]


# Model


def _model(old: dict, preprocessor: dict, by_hand: list[str]) -> dict:
    del old['type']
    head = old['bbox_head']
    transformer = head['transformer']
    take_if(transformer, 'type', 'Transformer')
    encoder = _coder(transformer['encoder'], ('self_attn',))
    decoder = _coder(transformer['decoder'], ('self_attn', 'cross_attn'))
    embed_dims = encoder['layer_cfg']['self_attn_cfg']['embed_dims']

    position = head.pop('positional_encoding', dict(type='SinePositionalEncoding', num_feats=128, normalize=True))
    if position.pop('type') != 'SinePositionalEncoding':
        by_hand.append('model.bbox_head.positional_encoding.type: DETR of 3.x has SinePositionalEncoding only')

    backbone = _backbone(old, by_hand)
    model = dict(
        type='DETR',
        num_queries=head.pop('num_query', 100),
        data_preprocessor=dict(type='DetDataPreprocessor', **preprocessor),
        backbone=backbone,
        neck=dict(
            type='ChannelMapper',
            in_channels=[head.pop('in_channels')],
            kernel_size=1,
            out_channels=embed_dims,
            act_cfg=None,
            norm_cfg=None,
            num_outs=1),
        encoder=encoder,
        decoder=decoder,
        positional_encoding=position)
    take_if(head, 'type', 'DETRHead')
    model['bbox_head'] = dict(
        type='DETRHead',
        embed_dims=embed_dims,
        **take(
            head, 'num_classes', 'num_reg_fcs', 'sync_cls_avg_factor', 'loss_cls', 'loss_bbox', 'loss_iou'))
    assigner = old.get('train_cfg', {}).get('assigner', {})
    if take_if(assigner, 'type', 'HungarianAssigner'):
        # the defaults of 2.x
        costs = dict(
            cls_cost=dict(type='ClassificationCost', weight=1.0),
            reg_cost=dict(type='BBoxL1Cost', weight=1.0),
            iou_cost=dict(type='IoUCost', iou_mode='giou', weight=1.0))
        costs |= take(assigner, *costs)
        model['train_cfg'] = dict(assigner=dict(type='HungarianAssigner', match_costs=list(costs.values())))
    model['test_cfg'] = old.pop('test_cfg', None) or dict(max_per_img=100)
    return model


def _backbone(model: dict, by_hand: list[str]) -> dict:
    old = model['backbone']
    pretrained = model.pop('pretrained', None)
    if pretrained:
        old['init_cfg'] = dict(type='Pretrained', checkpoint=pretrained)
    name = old.pop('type')
    if name in ('mmcls.VisionTransformer', 'VisionTransformer'):
        # the default of output_cls_token, True, gives DETR no feature map; 3.x says it in one argument
        if 'output_cls_token' in old:
            take_if(old, 'output_cls_token', False)
        else:
            by_hand.append('model.backbone.output_cls_token: True by default; became out_type="featmap"')
        return dict(type='mmpretrain.VisionTransformer', **take(old, *_SAME_VIT_ARGUMENTS), out_type='featmap')
    if name not in _SAME_BACKBONES:
        by_hand.append(f'model.backbone: {name} was taken over as it is; check its arguments')
    new = dict(type=name.replace('mmcls.', 'mmpretrain.'), **old)
    old.clear()
    return new


def _coder(old: dict, attentions: tuple[str, ...]) -> dict:
    """Encoder or decoder; ``attentions`` are the attention blocks of a layer, in order."""
    take_if(old, 'type', 'DetrTransformerEncoder', 'DetrTransformerDecoder')
    layer = old['transformerlayers']
    take_if(layer, 'type', 'BaseTransformerLayer', 'DetrTransformerDecoderLayer')
    order = [step for attention in attentions for step in (attention, 'norm')] + ['ffn', 'norm']
    if list(layer.get('operation_order', order)) == order:
        layer.pop('operation_order', None)

    attn_cfgs = layer['attn_cfgs']
    if isinstance(attn_cfgs, dict):
        layer['attn_cfgs'] = attn_cfgs = [unshared(attn_cfgs) for _ in attentions]
    layer_cfg = {}
    for name, attention in zip(attentions, attn_cfgs, strict=True):
        take_if(attention, 'type', 'MultiheadAttention')
        take_if(attention, 'batch_first', True, False)  # the order of axes between layers: no numbers
        layer_cfg[f'{name}_cfg'] = dict(
            **take(attention, 'embed_dims', 'num_heads', 'dropout', 'attn_drop', 'proj_drop', 'dropout_layer'),
            batch_first=True)

    ffn = layer.get('ffn_cfgs', {})
    take_if(ffn, 'type', 'FFN')
    # the defaults of 2.x, then ffn_cfgs, then what is given to the layer itself: there the last one wins too
    layer_cfg['ffn_cfg'] = dict(
        embed_dims=layer_cfg['self_attn_cfg']['embed_dims'],
        feedforward_channels=1024,
        num_fcs=2,
        ffn_drop=0.0,
        act_cfg=dict(type='ReLU', inplace=True))
    layer_cfg['ffn_cfg'] |= take(ffn, 'embed_dims', 'feedforward_channels', 'num_fcs', 'ffn_drop', 'act_cfg')
    for old_name, new_name in (
            ('feedforward_channels', 'feedforward_channels'), ('ffn_num_fcs', 'num_fcs'), ('ffn_dropout', 'ffn_drop'),
            ('act_cfg', 'act_cfg')):
        if old_name in layer:
            layer_cfg['ffn_cfg'][new_name] = layer.pop(old_name)
    layer_cfg |= take(layer, 'norm_cfg')

    coder = dict(num_layers=old.pop('num_layers'), layer_cfg=layer_cfg)
    if 'cross_attn' in attentions:
        coder |= take(old, 'post_norm_cfg')
        coder['return_intermediate'] = old.pop('return_intermediate', False)
    return coder


# Data


def _data(old: dict, preprocessor: dict, by_hand: list[str]) -> dict:
    """Data loaders and evaluators; fills ``preprocessor`` with what the pipelines say about it."""
    data, evaluation = old['data'], old.get('evaluation', {})
    data_root = old['data_root'] if isinstance(old.get('data_root'), str) else None
    batch_size, workers = data.pop('samples_per_gpu', 1), data.pop('workers_per_gpu', 2)
    metric = dict(type='CocoMetric', metric=evaluation.pop('metric', 'bbox')) | take(
        evaluation, 'classwise', 'proposal_nums', 'metric_items')
    new = {}
    for split in ('train', 'val', 'test'):
        training = split == 'train'
        own = data.get(f'{split}_dataloader', {})
        dataset = data[split]
        new[f'{split}_dataloader'] = dict(
            batch_size=own.pop('samples_per_gpu', dataset.pop('samples_per_gpu', batch_size if training else 1)),
            num_workers=(num_workers := own.pop('workers_per_gpu', workers)),
            persistent_workers=own.pop('persistent_workers', num_workers > 0),
            **({} if training else dict(drop_last=False)),
            sampler=dict(type='DefaultSampler', shuffle=own.pop('shuffle', training)),
            **(dict(batch_sampler=dict(type='AspectRatioBatchSampler')) if training else {}),
            dataset=_dataset(dataset, split, data_root, preprocessor, by_hand))
        if not training:
            dataset = new[f'{split}_dataloader']['dataset']
            new[f'{split}_evaluator'] = metric | dict(
                ann_file=_joined(dataset.get('data_root', ''), dataset['ann_file']))
    return {name: new[name] for name in (
        'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator')}


def _dataset(old: dict, split: str, data_root: str | None, preprocessor: dict, by_hand: list[str]) -> dict:
    training = split == 'train'
    if not isinstance(old, dict) or 'ann_file' not in old:
        raise UserError(f'field data.{split}: has no ann_file; wrappers such as RepeatDataset cannot be translated')
    if old.get('type') != 'CocoDataset':
        by_hand.append(f'data.{split}.type: {old.get("type")} was taken over as it is; check its arguments')
    new = dict(type=old.pop('type'))
    root, ann_file, prefix = old.pop('data_root', None), old.pop('ann_file'), old.pop('img_prefix', '')
    if root is None and data_root and ann_file.startswith(data_root) and prefix.startswith(data_root):
        root, ann_file, prefix = data_root, ann_file.removeprefix(data_root), prefix.removeprefix(data_root)
    if root is not None:
        new['data_root'] = _data_root_from_environment(root) if root == data_root else root
    new |= dict(ann_file=ann_file, data_prefix=dict(img=prefix))
    classes = old.pop('classes', None)
    if classes is not None:
        new['metainfo'] = dict(classes=classes)
    if training:
        # 2.x CocoDataset: images without boxes, and those with a side under 32 px, are not trained on
        new['filter_cfg'] = dict(filter_empty_gt=old.pop('filter_empty_gt', True), min_size=32)
    else:
        new['test_mode'] = True
        take_if(old, 'test_mode', True)
    take_if(old, 'file_client_args', dict(backend='disk'))
    transforms = translate_transforms(old['pipeline'], preprocessor)
    if not training and not any(transform['type'] == 'LoadAnnotations' for transform in transforms):
        transforms.append(dict(type='LoadAnnotations', with_bbox=True))  # for the pictures beside predictions
    pack = dict(type='PackDetInputs')
    new['pipeline'] = [*transforms, pack if training else pack | dict(meta_keys=_TEST_META_KEYS)]
    return new


def _joined(root: str, path: str) -> str:
    # the slash also where root comes from the environment: the user may have left it out there
    return path if path.startswith('/') else root + ('' if not root or root.endswith('/') else '/') + path


def _data_root_from_environment(root: str) -> str:
    """2.x train.py put MMDET_DATASETS in place of the config's data_root; in 3.x the config has to say so.

    mmengine fills that in before it reads the config as Python, and only without spaces and quotes.
    """
    return '{{$MMDET_DATASETS:' + root + '}}' if re.fullmatch(r'[^\s{}\'"\\]+', root) else root


# Schedule and runtime


def _schedule(old: dict) -> dict:
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
    optimizer |= constructor  # one of the user's own: left over
    grad_clip = old.get('optimizer_config', {}).pop('grad_clip', None)
    if grad_clip:
        wrapper['clip_grad'] = grad_clip
    if paramwise_cfg:
        wrapper['paramwise_cfg'] = paramwise_cfg
    return dict(
        train_cfg=train_cfg,
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=wrapper,
        param_scheduler=_learning_rate(old.get('lr_config', {}), max_epochs))


def _learning_rate(old: dict, max_epochs: int) -> list[dict]:
    schedulers = []
    if old.get('warmup') == 'linear' and not old.get('warmup_by_epoch'):
        del old['warmup']
        schedulers.append(dict(
            type='LinearLR', start_factor=old.pop('warmup_ratio', 0.1), by_epoch=False, begin=0,
            end=old.pop('warmup_iters')))
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


def _runtime(old: dict) -> dict:
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
        take_if(hook, 'type', 'NumClassCheckHook')  # ClassCheckHook compares the names and their order as well

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


def _custom_imports(old: dict, by_hand: list[str]) -> dict:
    custom = old.get('custom_imports', {})
    new = ['deit_detr']  # it imports mmpretrain's models itself, and first
    imports = custom.pop('imports', [])
    for name in [imports] if isinstance(imports, str) else imports:
        if not name.startswith('mmcls'):
            new.append(name)
            by_hand.append(f'custom_imports.imports: {name} was taken over as it is; it has to register with 3.x')
    return dict(imports=new, allow_failed_imports=custom.pop('allow_failed_imports', False))
