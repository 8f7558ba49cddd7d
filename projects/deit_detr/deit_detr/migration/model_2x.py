"""Translate the model of a 2.x config."""

from deit_detr.migration.untranslated import take, take_if, unshared

#: mmdet backbones with the same arguments in 3.x.
_SAME_BACKBONES = {'ResNet', 'ResNetV1d', 'ResNeXt', 'Res2Net', 'SwinTransformer', 'PyramidVisionTransformer'}
#: Arguments of mmcls' VisionTransformer that have the same name in mmpretrain's.
_SAME_VIT_ARGUMENTS = (
    'arch', 'img_size', 'patch_size', 'in_channels', 'out_indices', 'drop_rate', 'drop_path_rate', 'qkv_bias',
    'norm_cfg', 'final_norm', 'with_cls_token', 'interpolate_mode', 'patch_cfg', 'layer_cfgs', 'init_cfg')


def translate_model(old: dict, preprocessor: dict, by_hand: list[str]) -> dict:
    """Translate the ``model`` of a 2.x config."""
    del old['type']
    head = old['bbox_head']
    transformer = head['transformer']
    take_if(transformer, 'type', 'Transformer')
    encoder = _coder(transformer['encoder'], ('self_attn',))
    decoder = _coder(transformer['decoder'], ('self_attn', 'cross_attn'))
    embed_dims = encoder['layer_cfg']['self_attn_cfg']['embed_dims']

    position = head.pop('positional_encoding', dict(type='SinePositionalEncoding', num_feats=128, normalize=True))
    if position.pop('type') != 'SinePositionalEncoding':
        by_hand.append('model.bbox_head.positional_encoding.type: DETR of 3.x only has SinePositionalEncoding')

    backbone = _backbone(old, by_hand)
    model = dict(
        type='DETR',
        num_queries=head.pop('num_query', 100),
        data_preprocessor=dict(type='DetDataPreprocessor', **preprocessor),
        backbone=backbone,
        neck=dict(
            type='ChannelMapper', in_channels=[head.pop('in_channels')], kernel_size=1, out_channels=embed_dims,
            act_cfg=None, norm_cfg=None, num_outs=1),
        encoder=encoder,
        decoder=decoder,
        positional_encoding=position)
    take_if(head, 'type', 'DETRHead')
    model['bbox_head'] = dict(type='DETRHead', embed_dims=embed_dims, **take(
        head, 'num_classes', 'num_reg_fcs', 'sync_cls_avg_factor', 'loss_cls', 'loss_bbox', 'loss_iou'))
    assigner = old.get('train_cfg', {}).get('assigner', {})
    if take_if(assigner, 'type', 'HungarianAssigner'):
        # defaults of 2.x
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
        # with its default, True, DETR gets no feature map; 3.x sets it together with out_type
        if 'output_cls_token' in old:
            take_if(old, 'output_cls_token', False)
        else:
            by_hand.append('model.backbone.output_cls_token: True by default; became out_type="featmap"')
        return dict(type='mmpretrain.VisionTransformer', **take(old, *_SAME_VIT_ARGUMENTS), out_type='featmap')
    if name not in _SAME_BACKBONES:
        by_hand.append(f'model.backbone: {name} is kept unchanged; check its arguments')
    new = dict(type=name.replace('mmcls.', 'mmpretrain.'), **old)
    old.clear()
    return new


def _coder(old: dict, attentions: tuple[str, ...]) -> dict:
    """Translate the encoder or decoder; ``attentions`` names the attention blocks of a layer, in order."""
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
        take_if(attention, 'batch_first', True, False)  # only the order of axes between layers
        layer_cfg[f'{name}_cfg'] = dict(
            **take(attention, 'embed_dims', 'num_heads', 'dropout', 'attn_drop', 'proj_drop', 'dropout_layer'),
            batch_first=True)

    ffn = layer.get('ffn_cfgs', {})
    take_if(ffn, 'type', 'FFN')
    # defaults of 2.x, then ffn_cfgs, then arguments of the layer itself: the last one wins, as in 2.x
    layer_cfg['ffn_cfg'] = dict(
        embed_dims=layer_cfg['self_attn_cfg']['embed_dims'], feedforward_channels=1024, num_fcs=2, ffn_drop=0.0,
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
