"""DeiT and ViT weights in the layout of DeiT's authors and of timm, to mmpretrain's layout."""

import re
from pathlib import Path

from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.errors import UserError
from deit_detr.migration.conversion import Conversion, without_position

_RENAMES = [(re.compile(old), new) for old, new in (
    (r'(cls_token|pos_embed)', r'backbone.\1'),
    (r'patch_embed\.proj\.(.+)', r'backbone.patch_embed.projection.\1'),
    (r'blocks\.(\d+)\.norm([12])\.(.+)', r'backbone.layers.\1.ln\2.\3'),
    (r'blocks\.(\d+)\.attn\.(qkv|proj)\.(.+)', r'backbone.layers.\1.attn.\2.\3'),
    (r'blocks\.(\d+)\.mlp\.fc1\.(.+)', r'backbone.layers.\1.ffn.layers.0.0.\2'),
    (r'blocks\.(\d+)\.mlp\.fc2\.(.+)', r'backbone.layers.\1.ffn.layers.1.\2'),
    (r'norm\.(.+)', r'backbone.ln1.\1'),
    (r'head\.(.+)', r'head.layers.head.\1'),
)]
#: Only in distilled models; mmpretrain's DistilledVisionTransformer and DeiTClsHead have them.
_DISTILLATION_RENAMES = [(re.compile(old), new) for old, new in (
    (r'dist_token', r'backbone.dist_token'),
    (r'head_dist\.(.+)', r'head.layers.head_dist.\1'),
)]


def convert_deit(source: str, keep_distillation: bool = False) -> Conversion:
    """Convert DeiT weights for mmpretrain's ``VisionTransformer``.

    A distilled model has a second token beside the class token. The detectors here use plain ViTs and neither of
    the two; the distillation token, its position and its classifier are left out unless asked for.

    Args:
        source: ``.pth`` with the tensors under ``model`` or at the top, or ``.safetensors``.
        keep_distillation: Keep the distillation token, for mmpretrain's ``DistilledVisionTransformer``.

    Returns:
        Conversion: The books; keys start with ``backbone.`` and ``head.``.

    Raises:
        UserError: If the file cannot be read safely, is of another layout, or has a tensor that no rule knows.
    """
    tensors = find_state_dict(load_checkpoint_file(source), source)
    if 'backbone.pos_embed' in tensors:
        raise UserError(f'{source}: is in mmpretrain layout already; use it as it is, with prefix="backbone."')
    books = Conversion(Path(source))
    distilled = 'dist_token' in tensors
    if distilled and not keep_distillation:
        for key in [key for key in tensors if key == 'dist_token' or key.startswith('head_dist.')]:
            books.dropped[key] = 'a plain ViT has no distillation token'
            del tensors[key]
        # the order is class token, distillation token, patches
        tensors['pos_embed'] = without_position(tensors, 'pos_embed', 1, source)
        books.dropped['second position of pos_embed'] = 'belongs to the distillation token'
    if keep_distillation and not distilled:
        raise UserError(f'{source}: has no distillation token to keep')

    rules = _RENAMES + _DISTILLATION_RENAMES
    for key, tensor in tensors.items():
        new_keys = [match.expand(new) for old, new in rules if (match := old.fullmatch(key))]
        if new_keys:
            books.state_dict[new_keys[0]] = tensor
        else:
            books.left.append(key)
    books.require_complete('known is the layout of DeiT and timm (cls_token, pos_embed, blocks.0.norm1.weight, ...)')
    if 'backbone.patch_embed.projection.weight' not in books.state_dict:
        raise UserError(f'{source}: not a whole ViT: patch_embed.proj.weight is missing')
    return books
