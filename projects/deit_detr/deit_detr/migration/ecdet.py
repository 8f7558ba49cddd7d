"""Convert checkpoints of EdgeCrafter (TMLR 2026): the detector ECDet-S, and its backbone ECViT-tiny alone."""

import copy
import re
from pathlib import Path

import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import Tensor

from deit_detr.checkpoints.fit import check_fit
from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.config_file import read_config, recipe_path
from deit_detr.errors import UserError
from deit_detr.migration.conversion import Conversion
from deit_detr.models.distributions import REACH, SCALE

#: The recipe of ECDet-S.
RECIPE = 'ec-detr_ecvit-tiny_8xb4-12e_coco.py'
_MLP = r'((?:_head|reg_conf)(?:\.\d)?)\.layers'
#: Patterns in the old names and what takes their place, one after the other.
_RULES = [
    (r'^(backbone\.)?backbone\.', 'backbone.'),
    (r'^(?=(register_token|patch_embed|blocks|rope_embed)\b)', 'backbone.'),  # the backbone alone
    (r'\.register_token$', '.cls_token'),
    (r'\.patch_embed\.proj\.', '.patch_embed.projection.'),
    (r'^backbone\.blocks\.(\d+)\.norm', r'backbone.blocks.\1.ln'),
    (r'^backbone\.blocks\.', 'backbone.layers.'),
    (r'\.(mlp\.fc|linear)1\.', '.ffn.layers.0.0.'),
    (r'\.(mlp\.fc|linear)2\.', '.ffn.layers.1.'),
    (r'^backbone\.projector\.0\.', 'neck.projections.2.'),  # the other levels keep their channels
    (r'^encoder\.encoder\.0\.layers\.0\.', 'neck.layer.'),
    (r'^encoder\.lateral_convs\.', 'neck.laterals.'),
    (r'^encoder\.downsample_convs\.(\d)\.0\.cv1\.', r'neck.downs.\1.0.'),
    (r'^encoder\.downsample_convs\.(\d)\.0\.cv2\.', r'neck.downs.\1.1.'),
    (r'^encoder\.fpn_blocks\.', 'neck.fine_blocks.'),
    (r'^encoder\.pan_blocks\.', 'neck.coarse_blocks.'),
    (r'\.cv1\.', '.first.'),
    (r'\.cv2\.0\.', '.parts.0.'),
    (r'\.cv3\.0\.', '.parts.1.'),
    (r'\.cv4\.', '.last.'),
    (r'\.bottlenecks\.(\d)\.conv1\.', r'.blocks.\1.convs.0.'),
    (r'\.bottlenecks\.(\d)\.conv2\.', r'.blocks.\1.convs.1.'),
    (r'(parts\.\d)\.conv1\.', r'\1.split.'),
    (r'^(backbone|neck)\.(.+)\.norm\.', r'\1.\2.bn.'),
    (r'\.self_attn\.', '.self_attn.attn.'),
    (r'\.norm1\.', '.norms.0.'),
    (r'\.norm2\.', '.norms.1.'),
    (r'\.gateway\.', '.gate.'),
    (_MLP + r'\.0\.', r'\1.0.'),
    (_MLP + r'\.1\.', r'\1.2.'),  # an activation is between them
    (_MLP + r'\.2\.', r'\1.4.'),
    (r'^decoder\.decoder\.layers\.', 'decoder.layers.'),
    (r'^decoder\.decoder\.lqe_layers\.(\d)\.reg_conf\.', r'bbox_head.quality_branches.\1.'),
    (r'^decoder\.query_pos_head\.', 'decoder.ref_point_head.'),
    (r'^decoder\.enc_score_head\.', 'query_selection.score.'),
    (r'^decoder\.enc_bbox_head\.', 'query_selection.delta.'),
    (r'^decoder\.pre_bbox_head\.', 'bbox_head.first_branch.'),
    (r'^decoder\.dec_score_head\.', 'bbox_head.cls_branches.'),
    (r'^decoder\.dec_bbox_head\.', 'bbox_head.reg_branches.'),
    (r'^decoder\.denoising_class_embed\.', 'dn_query_generator.label_embedding.'),
]
#: Constants in the old checkpoints: the end of the name, and the only value that the model here has.
_CONSTANTS = {
    'decoder.up': torch.tensor([REACH]),
    'decoder.reg_scale': torch.tensor([SCALE]),
    'cross_attn.num_points_scale': 1 / torch.tensor([3.0] * 3 + [6.0] * 6 + [3.0] * 3),
    'rope_embed.periods': 100 ** (torch.arange(16) / 16),
}


def convert_ecdet(source: str | Path, config: str | Path | None = None) -> Conversion:
    """Convert a checkpoint of ECDet-S, or of its backbone ECViT-tiny alone.

    The averaged weights are taken where there are any, as EdgeCrafter does.

    Args:
        source: ``.pth`` of EdgeCrafter with the tensors under ``ema.module``, under ``model`` or at the top.
        config: The recipe of the same architecture. Default: that of ECDet-S, :data:`RECIPE`.

    Returns:
        Conversion: For :class:`~deit_detr.models.ec_detr.ECDETR`; of a backbone alone, the keys start with
        ``backbone.``. The ``meta`` of a detector with 80 classes holds the config and the classes of COCO, and the name
        of the recipe if it is the default.

    Raises:
        UserError: If the file cannot be read safely, or is not a checkpoint of these models. The message names the
            tensors that are unknown, missing or of another shape.
    """
    checkpoint = load_checkpoint_file(source)
    conversion = Conversion(source)
    if isinstance(averaged := checkpoint.get('ema'), dict) and 'module' in averaged:
        conversion.dropped |= {
            key: 'training state; the weights are those of ema.module' for key in checkpoint if key != 'ema'}
        checkpoint = dict(model=averaged['module'])
    tensors = find_state_dict(checkpoint, source)
    _drop_constants(conversion, tensors)

    cfg = read_config(config or recipe_path(RECIPE))
    num_classes = len(tensors.get('decoder.enc_score_head.bias', ()))
    part = 'ECDet-S' if num_classes else 'ECViT-tiny'
    cfg.model.bbox_head.num_classes = num_classes or 1
    init_default_scope(cfg.default_scope)
    own = MODELS.build(copy.deepcopy(cfg.model)).state_dict()
    own = {key: value for key, value in own.items() if num_classes or key.startswith('backbone.')}
    renamed = {}
    for old, tensor in tensors.items():
        new = old
        for pattern, replacement in _RULES:
            new = re.sub(pattern, replacement, new)
        if new == 'dn_query_generator.label_embedding.weight':
            tensor = tensor[:-1]
            conversion.dropped[f'last row of {old}'] = 'stands for no object in denoising, zeros here'
        renamed[new if new in own and new not in renamed else old] = tensor
    conversion.rename(
        renamed, [('|'.join(map(re.escape, own)), r'\g<0>')], f'{part} of EdgeCrafter', {key: key for key in own})
    check_fit(
        own, conversion.state_dict, source, part=f'{part} of {cfg.filename}',
        remedy='Use a recipe of the architecture that the file was trained with')
    if num_classes == 80:
        conversion.meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=CocoDataset.METAINFO['classes']))
        if config is None:
            conversion.meta['recipe'] = RECIPE
    return conversion


def _drop_constants(conversion: Conversion, tensors: dict[str, Tensor]) -> None:
    """Move what the model here computes itself from the tensors to what is dropped.

    Raises:
        UserError: If a constant has another value here.
    """
    for key in list(tensors):
        if key in ('decoder.anchors', 'decoder.valid_mask'):
            conversion.dropped[key] = 'computed for each image size'
        elif end := next((end for end in _CONSTANTS if key.endswith(end)), None):
            if tensors[key].shape != _CONSTANTS[end].shape or not torch.allclose(tensors[key].float(), _CONSTANTS[end]):
                raise UserError(
                    f'{conversion.source}: {key} is {tensors[key].tolist()}, but {_CONSTANTS[end].tolist()} here: '
                    'only checkpoints of ECDet-S can be converted')
            conversion.dropped[key] = 'a constant here'
        else:
            continue
        del tensors[key]
