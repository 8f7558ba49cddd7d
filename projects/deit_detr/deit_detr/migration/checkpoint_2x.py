"""Convert DETR checkpoints of mmdet 2.x, with ResNet or mmcls ViT/DeiT backbones, to the keys of mmdet 3.x."""

import re
from pathlib import Path

from torch import Tensor

from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.errors import UserError
from deit_detr.migration.conversion import Conversion, without_position

_CODER = r'bbox_head\.transformer\.(encoder|decoder)\.layers\.(\d+)'

#: Pattern of the 2.x key, template of the 3.x key. In 2.x the transformer is part of the head. The second spellings
#: (self_attn, multihead_attn, ffn, decoder.norm) are those of mmdet before 2.11, which wrote version 1 of the head.
_RULES = [
    (rf'{_CODER}\.(?:attentions\.0|self_attn)\.(.+)', r'\1.layers.\2.self_attn.\3'),
    (rf'{_CODER}\.(?:attentions\.1|multihead_attn)\.(.+)', r'\1.layers.\2.cross_attn.\3'),
    (rf'{_CODER}\.(?:ffns\.0|ffn)\.(.+)', r'\1.layers.\2.ffn.\3'),
    (rf'{_CODER}\.(norms\..+)', r'\1.layers.\2.\3'),
    (r'bbox_head\.transformer\.decoder\.(?:post_norm|norm)\.(.+)', r'decoder.post_norm.\1'),
    (r'bbox_head\.input_proj\.(.+)', r'neck.convs.0.conv.\1'),
    (r'bbox_head\.query_embedding\.weight', r'query_embedding.weight'),
    (r'(bbox_head\.(?:fc_cls|reg_ffn|fc_reg)\..+)', r'\1'),
    # ResNet
    (r'(backbone\.(?:stem|conv1|bn1|layer[1-4])\..+)', r'\1'),
    # mmcls ViT
    (r'(backbone\.(?:cls_token|pos_embed))', r'\1'),
    (r'(backbone\.(?:patch_embed\.projection|ln1|layers\.\d+\.(?:ln[12]|attn|ffn))\..+)', r'\1'),
]
#: A few 3.x keys of every DETR, with their 2.x names.
_LANDMARKS = {
    'neck.convs.0.conv.weight': 'bbox_head.input_proj.weight',
    'query_embedding.weight': 'bbox_head.query_embedding.weight',
    'bbox_head.fc_cls.weight': 'bbox_head.fc_cls.weight'}


def convert_checkpoint_2x(source: str | Path, keep_cls_token: bool = False, use_ema_copies: bool = False) -> Conversion:
    """Convert a 2.x DETR checkpoint.

    Args:
        source: Path of the 2.x checkpoint; keys with or without ``module.``.
        keep_cls_token: Keep the ViT's class token and its position, for a 3.x backbone with ``with_cls_token=True``.
            The 2.x backbone has both even with ``with_cls_token=False``, which does not use them.
        use_ema_copies: Use the ``ema_*`` copies of 2.x EMA hooks in place of the plain tensors.

    Returns:
        Conversion: Its ``meta`` holds ``dataset_meta`` with ``classes`` and, if known, ``palette``; ``epoch`` and
        ``iter``.

    Raises:
        UserError: If the file cannot be read safely, is of another model or version, has a tensor that matches no rule,
            or contradicts ``keep_cls_token``.
    """
    checkpoint = load_checkpoint_file(source)
    tensors = find_state_dict(checkpoint, source)
    if any(key.startswith(('encoder.', 'decoder.')) for key in tensors):
        raise UserError(f'{source}: has mmdet 3.x keys already (encoder., decoder. at the top)')
    old_meta = _read_meta(checkpoint.get('meta') or {}, source)
    conversion = Conversion(source)

    _choose_ema_copies(tensors, conversion, use_ema_copies)
    if not keep_cls_token:
        _drop_cls_token(tensors, conversion)
    _check_cls_token(source, old_meta, keep_cls_token)
    if tensors.pop('bbox_head.loss_cls.class_weight', None) is not None:
        conversion.dropped['bbox_head.loss_cls.class_weight'] = 'the 3.x head builds it from loss_cls of the config'
    conversion.rename(
        tensors, _RULES, '2.x DETR with a ResNet or an mmcls VisionTransformer backbone', _LANDMARKS)

    conversion.meta = {name: old_meta[name] for name in ('epoch', 'iter') if name in old_meta}
    if old_meta.get('CLASSES'):
        conversion.meta['dataset_meta'] = {
            name.lower(): old_meta[name] for name in ('CLASSES', 'PALETTE') if old_meta.get(name)}
    for name in old_meta.keys() - {'epoch', 'iter', 'CLASSES', 'PALETTE'}:
        conversion.dropped[f'meta.{name}'] = 'describes the 2.x run'
    if 'optimizer' in checkpoint:
        conversion.dropped['optimizer'] = (
            'its parameters are numbered in 2.x order: start a new training with load_from; --resume cannot work')
    if checkpoint.get('state_dict') is not None:
        for name in checkpoint.keys() - {'meta', 'state_dict', 'optimizer'}:
            conversion.dropped[str(name)] = 'not part of a 3.x checkpoint'
    return conversion


def _read_meta(meta: object, source: str | Path) -> dict:
    """Return ``meta`` of the checkpoint if the fields to convert have the types of 2.x."""
    classes = meta.get('CLASSES') if isinstance(meta, dict) else ()
    if not isinstance(meta, dict) or classes and not (
            isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)):
        raise UserError(f'{source}: field "meta" is not what mmdet 2.x writes: CLASSES must be a list of names')
    return meta


def _choose_ema_copies(tensors: dict[str, Tensor], conversion: Conversion, use: bool) -> None:
    """Keep either the EMA copies or the plain tensors; copies without a plain tensor stay, and will match no rule."""
    plain = [key for key in tensors if not key.startswith('ema_')]
    copies = {key: name for key in plain if (name := f'ema_{key.replace(".", "_")}') in tensors}
    if use and not copies:
        raise UserError(f'{conversion.source}: has no ema_* tensors to use')
    for key, name in copies.items():
        copy = tensors.pop(name)
        if use:
            tensors[key] = copy
            conversion.dropped[key] = 'replaced by its EMA copy, as requested'
        else:
            conversion.dropped[name] = (
                'copy of a 2.x EMA hook. mmdet swaps the averaged weights into the plain keys before saving an epoch; '
                'if your hook does not, use the copies')


def _drop_cls_token(tensors: dict[str, Tensor], conversion: Conversion) -> None:
    if tensors.pop('backbone.cls_token', None) is None:
        return
    conversion.dropped['backbone.cls_token'] = 'not used with with_cls_token=False; 3.x does not have it then'
    if 'backbone.pos_embed' in tensors:
        tensors['backbone.pos_embed'] = without_position(tensors, 'backbone.pos_embed', 0, conversion.source)
        conversion.dropped['first position of backbone.pos_embed'] = 'belongs to the class token'


def _check_cls_token(source: str | Path, old_meta: dict, keep: bool) -> None:
    """Raise if the config, which 2.x saves as text, names another setting."""
    named = re.search(r'\bwith_cls_token=(True|False)', str(old_meta.get('config', '')))
    if named and (named[1] == 'True') != keep:
        advice = 'add --keep-cls-token' if not keep else 'leave out --keep-cls-token'
        raise UserError(f'{source}: was trained with with_cls_token={named[1]}: {advice}')
