"""Convert checkpoints of LW-DETR's authors (https://github.com/Atten4Vis/LW-DETR) to the names of this project."""

import argparse
import copy
from pathlib import Path

import torch
from mmdet.datasets import CocoDataset, Objects365V2Dataset
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from deit_detr.checkpoints.fit import check_fit
from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.config_file import read_config, recipe_path
from deit_detr.errors import UserError
from deit_detr.migration.conversion import Conversion, without_position
from deit_detr.migration.deit import VIT_RULES

#: The recipe of LW-DETR-tiny.
RECIPE = 'lw-detr_vit-tiny_8xb4-12e_coco.py'
_RULES = [
    *((rf'backbone\.0\.encoder\.{old}', new) for old, new in VIT_RULES),
    (r'backbone\.0\.encoder\.blocks\.(\d+)\.gamma_1', r'backbone.layers.\1.attn.gamma1.weight'),
    (r'backbone\.0\.encoder\.blocks\.(\d+)\.gamma_2', r'backbone.layers.\1.ffn.gamma2.weight'),
    (r'backbone\.0\.projector\.stages\.0\.0\.cv1\.(.+)', r'neck.stages.0.1.first.\1'),
    (r'backbone\.0\.projector\.stages\.0\.0\.cv2\.(.+)', r'neck.stages.0.1.last.\1'),
    (r'backbone\.0\.projector\.stages\.0\.0\.m\.(\d+)\.cv1\.(.+)', r'neck.stages.0.1.blocks.\1.0.\2'),
    (r'backbone\.0\.projector\.stages\.0\.0\.m\.(\d+)\.cv2\.(.+)', r'neck.stages.0.1.blocks.\1.1.\2'),
    (r'backbone\.0\.projector\.stages\.0\.1\.(.+)', r'neck.stages.0.1.norm.\1'),
    (r'transformer\.decoder\.layers\.(\d+)\.self_attn\.(.+)', r'decoder.layers.\1.self_attn.attn.\2'),
    (r'transformer\.decoder\.layers\.(\d+)\.linear1\.(.+)', r'decoder.layers.\1.ffn.layers.0.0.\2'),
    (r'transformer\.decoder\.layers\.(\d+)\.linear2\.(.+)', r'decoder.layers.\1.ffn.layers.1.\2'),
    *((rf'transformer\.decoder\.layers\.(\d+)\.norm{number + 1}\.(.+)', rf'decoder.layers.\1.norms.{number}.\2')
      for number in range(3)),
    (r'transformer\.(decoder\.layers\.\d+\.cross_attn\..+)', r'\1'),
    (r'transformer\.(decoder\.(norm|ref_point_head)\..+)', r'\1'),
    (r'class_embed\.(.+)', r'bbox_head.fc_cls.\1'),
    (r'bbox_embed\.(.+)', r'bbox_head.reg_branch.\1'),
    (r'query_feat\.weight', r'query_selection.content'),
    (r'refpoint_embed\.weight', r'query_selection.deltas'),
    # with all groups in one tensor
    (r'transformer\.enc_output\.(.+)', r'query_selection.token.\1'),
    (r'transformer\.enc_out_class_embed\.(.+)', r'query_selection.score.\1'),
    (r'transformer\.enc_out_bbox_embed\.layers\.([01])\.(.+)', r'query_selection.hidden.\1.\2'),
    (r'transformer\.enc_out_bbox_embed\.layers\.2\.(.+)', r'query_selection.delta.\1'),
]
#: Layers of which each group of queries has its own: name before and after the number of the group.
_OF_GROUPS = [
    ('enc_output', ''), ('enc_output_norm', ''), ('enc_out_class_embed', ''),
    *(('enc_out_bbox_embed', f'.layers.{number}') for number in range(3))]
#: Rows of the classifiers -> data set, and the row of each of its classes. Row 0 and some others have no class.
_CLASSES = {
    91: (CocoDataset, [row for row in range(1, 91) if row not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]),
    366: (Objects365V2Dataset, list(range(1, 366))),
}


def convert_lw_detr(source: str | Path, config: str | Path | None = None, weights: str = 'model') -> Conversion:
    """Convert a checkpoint of LW-DETR for a recipe of the same architecture.

    Some tensors change without changing what the detector computes: the norms of the proposals become part of the
    layers behind them, keys get a bias of zeros, and classifiers lose the rows that belong to no class.

    Args:
        source: The checkpoint, as LW-DETR's ``main.py`` saves it.
        config: The recipe of the same architecture. Default: that of LW-DETR-tiny, :data:`RECIPE`.
        weights: ``model``, which LW-DETR evaluates, or ``ema_model``, the moving average that its training saves.

    Returns:
        Conversion: Tensors of the detector. ``meta`` holds the classes, 80 of COCO or 365 of Objects365; if the recipe
        has as many, the config; and the name of the recipe if it is the default.

    Raises:
        UserError: If the file cannot be read safely, tensors are unknown, missing or of another shape, or the recipe
            has another architecture. The message names them.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):  # the flags of the training
        checkpoint = load_checkpoint_file(source)
    if weights not in checkpoint:
        raise UserError(f'{source}: has no {weights!r}; it holds {", ".join(map(repr, list(checkpoint)[:5]))}')
    cfg = read_config(config or recipe_path(RECIPE))
    _check_flags(checkpoint.get('args'), cfg, source)
    conversion = Conversion(source)
    conversion.dropped = {key: 'is not needed for inference' for key in checkpoint if key != weights}
    tensors = find_state_dict({'model': checkpoint[weights]}, source)

    position = 'backbone.0.encoder.pos_embed'
    tensors[position] = without_position(tensors, position, 0, source)
    conversion.dropped['first position of pos_embed'] = 'belongs to a class token, which LW-DETR does not have'
    _check_complete(tensors, cfg.model.num_groups, source)
    try:
        _join_groups(tensors, cfg.model.num_groups)
        _join_biases(tensors)
        classes = _select_classes(tensors, conversion)
    except (RuntimeError, IndexError, TypeError) as error:
        raise UserError(f'{source}: tensors have other shapes than those of LW-DETR: {error}') from None
    conversion.rename(tensors, _RULES, 'LW-DETR with a ViT and one map', {})

    fits = len(classes) == cfg.model.bbox_head.num_classes
    cfg.model.bbox_head.num_classes = len(classes)
    init_default_scope(cfg.default_scope)
    check_fit(
        MODELS.build(copy.deepcopy(cfg.model)).state_dict(), conversion.state_dict, source,
        part=f'the model of {cfg.filename}', remedy='Use a recipe of the architecture that the file was trained with')
    conversion.meta = dict(dataset_meta=dict(classes=classes))
    if fits:
        conversion.meta |= dict(cfg=cfg.pretty_text) | ({} if config else dict(recipe=RECIPE))
    return conversion


def _check_flags(args: argparse.Namespace | None, cfg: Config, source: str | Path) -> None:
    """Compare the flags of a training with a recipe, those that no tensor shows."""
    try:
        backbone, decoder = cfg.model.backbone, cfg.model.decoder
        expected = dict(
            window_block_indexes=[i for i in range(backbone.arch.num_layers) if i not in backbone.global_layers],
            out_feature_indexes=list(backbone.out_indices),
            sa_nheads=decoder.layer_cfg.self_attn_cfg.num_heads,
            ca_nheads=decoder.layer_cfg.cross_attn_cfg.num_heads,
            dec_n_points=decoder.layer_cfg.cross_attn_cfg.num_points,
            lite_refpoint_refine=decoder.lite_refine,
            bbox_reparam=True)
    except AttributeError as error:
        raise UserError(f'{cfg.filename}: is not a recipe of a published LW-DETR: {error}') from None
    found = vars(args) if isinstance(args, argparse.Namespace) else {}
    different = [
        f'{name} is {found[name]}, not {value}' for name, value in expected.items() if found.get(name, value) != value]
    if different:
        raise UserError(f'{source}: was trained with another architecture than {cfg.filename}: {"; ".join(different)}')


def _group_keys(name: str, rest: str, kind: str, num_groups: int) -> list[str]:
    return [f'transformer.{name}.{group}{rest}.{kind}' for group in range(num_groups)]


def _check_complete(tensors: dict[str, Tensor], num_groups: int, source: str | Path) -> None:
    """Raise UserError if a tensor is missing that becomes part of another."""
    needed = ['class_embed.weight', 'class_embed.bias', 'query_feat.weight', 'refpoint_embed.weight']
    for layer in _OF_GROUPS:
        needed += [key for kind in ('weight', 'bias') for key in _group_keys(*layer, kind, num_groups)]
    needed += [key.replace('.qkv.weight', f'.{kind}_bias') for key in tensors if '.qkv.weight' in key for kind in 'qv']
    missing = [key for key in needed if key not in tensors]
    if missing:
        raise UserError(f'{source}: {len(missing)} tensors of LW-DETR with {num_groups} groups of queries are missing: '
                        f'{", ".join(missing[:10])}{", ..." if len(missing) > 10 else ""}')


def _join_groups(tensors: dict[str, Tensor], num_groups: int) -> None:
    """Join the layers of all groups, with the dimensions of ``GroupLinear``, and fold the norm into the next layers."""
    joined = {}
    for name, rest in _OF_GROUPS:
        for kind in ('weight', 'bias'):
            keys = _group_keys(name, rest, kind, num_groups)
            joined[name + rest, kind] = torch.stack([tensors.pop(key) for key in keys]).double()
    scale, shift = (joined.pop(('enc_output_norm', kind)) for kind in ('weight', 'bias'))
    for layer in dict.fromkeys(layer for layer, _ in joined):
        weight, bias = joined[layer, 'weight'].transpose(1, 2), joined[layer, 'bias'][:, None]
        if layer in ('enc_out_class_embed', 'enc_out_bbox_embed.layers.0'):
            weight, bias = scale[..., None] * weight, bias + shift[:, None] @ weight
        tensors[f'transformer.{layer}.weight'] = weight.float().contiguous()
        tensors[f'transformer.{layer}.bias'] = bias.float()
    for key in ('query_feat.weight', 'refpoint_embed.weight'):
        tensors[key] = tensors[key].unflatten(0, (num_groups, -1))


def _join_biases(tensors: dict[str, Tensor]) -> None:
    """Join the biases of queries and values with zeros for keys, on which attention does not depend."""
    for key in [key for key in tensors if key.endswith('.q_bias')]:
        q, v = tensors.pop(key), tensors.pop(key.replace('.q_bias', '.v_bias'))
        tensors[key.replace('.q_bias', '.qkv.bias')] = torch.cat([q, torch.zeros_like(q), v])


def _select_classes(tensors: dict[str, Tensor], conversion: Conversion) -> tuple[str, ...]:
    """Reduce the classifiers to the rows of classes, and return the names of these."""
    number = len(tensors['class_embed.bias'])
    if number not in _CLASSES:
        raise UserError(
            f'{conversion.source}: has {number} classes; only files for COCO (91) and Objects365 (366) are known')
    dataset, rows = _CLASSES[number]
    rows = torch.tensor(rows)
    for name, dim in (('class_embed', 0), ('transformer.enc_out_class_embed', 2)):
        tensors[f'{name}.weight'] = tensors[f'{name}.weight'].index_select(dim, rows)
        tensors[f'{name}.bias'] = tensors[f'{name}.bias'].index_select(dim, rows)
    conversion.dropped[f'{number - len(rows)} rows of class_embed and enc_out_class_embed'] = 'belong to no class'
    return tuple(name.strip() for name in dataset.METAINFO['classes'])
