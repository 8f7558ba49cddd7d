"""Convert DeiT and ViT weights from the layout of DeiT's authors and timm to that of mmpretrain."""

from pathlib import Path

from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.errors import UserError
from deit_detr.migration.conversion import Conversion, without_position

#: Pattern of the old key, template of the new one: what every vision transformer has.
VIT_RULES = [
    (r'(cls_token|pos_embed)', r'backbone.\1'),
    (r'patch_embed\.proj\.(.+)', r'backbone.patch_embed.projection.\1'),
    (r'blocks\.(\d+)\.norm([12])\.(.+)', r'backbone.layers.\1.ln\2.\3'),
    (r'blocks\.(\d+)\.attn\.(qkv|proj)\.(.+)', r'backbone.layers.\1.attn.\2.\3'),
    (r'blocks\.(\d+)\.mlp\.fc1\.(.+)', r'backbone.layers.\1.ffn.layers.0.0.\2'),
    (r'blocks\.(\d+)\.mlp\.fc2\.(.+)', r'backbone.layers.\1.ffn.layers.1.\2'),
]
_RULES = [
    *VIT_RULES,
    (r'norm\.(.+)', r'backbone.ln1.\1'),
    (r'head\.(.+)', r'head.layers.head.\1'),
    # distilled models only: mmpretrain's DistilledVisionTransformer and DeiTClsHead
    (r'dist_token', r'backbone.dist_token'),
    (r'head_dist\.(.+)', r'head.layers.head_dist.\1'),
]


def convert_deit(source: str | Path, keep_distillation: bool = False) -> Conversion:
    """Convert DeiT weights for mmpretrain's ``VisionTransformer``.

    A distilled model has a distillation token beside the class token. The detectors of this project use neither, so
    the distillation token, its position and its classifier are dropped by default.

    Args:
        source: ``.pth`` with the tensors under ``model`` or at the top, or ``.safetensors``.
        keep_distillation: Keep the distillation token, for mmpretrain's ``DistilledVisionTransformer``.

    Returns:
        Conversion: Keys start with ``backbone.`` and ``head.``.

    Raises:
        UserError: If the file cannot be read safely, has another layout, or has a tensor that matches no rule.
    """
    tensors = find_state_dict(load_checkpoint_file(source), source)
    if 'backbone.pos_embed' in tensors:
        raise UserError(f'{source}: has the mmpretrain layout already; use it unchanged, with prefix="backbone."')
    conversion = Conversion(source)
    distilled = 'dist_token' in tensors
    if distilled and not keep_distillation:
        for key in [key for key in tensors if key == 'dist_token' or key.startswith('head_dist.')]:
            conversion.dropped[key] = 'a plain ViT has no distillation token'
            del tensors[key]
        # the order of positions is class token, distillation token, patches
        tensors['pos_embed'] = without_position(tensors, 'pos_embed', 1, source)
        conversion.dropped['second position of pos_embed'] = 'belongs to the distillation token'
    if keep_distillation and not distilled:
        raise UserError(f'{source}: has no distillation token to keep')

    conversion.rename(
        tensors, _RULES, 'ViT in the layout of DeiT and timm (cls_token, pos_embed, blocks.0.norm1.weight, ...)',
        {'backbone.patch_embed.projection.weight': 'patch_embed.proj.weight'})
    return conversion
