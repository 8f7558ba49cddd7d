"""Check that the fields of a transformer detector's config fit each other, before anything is built.

Otherwise a mistake ends in an assertion that names no field, or in an error about the shapes of two matrices.
"""

from collections import Counter
from collections.abc import Iterator

from mmdet.models import DINO, ConditionalDETR, DeformableDETR, DetectionTransformer, ResNet
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from deit_detr.engine.start.findings import FAIL, OK, UNKNOWN

#: mmdet's defaults.
EMBED_DIMS, NUM_HEADS, NUM_LEVELS, NUM_QUERIES = 256, 8, 4, 100


def check_fields(model: ConfigDict) -> tuple[str, str]:
    """Compare all dimensions of a detector's config, and name every field that disagrees.

    Args:
        model: The config's ``model``.
    """
    detector = _class(model)
    if detector is None:
        return FAIL, f'model.type is {model.get("type")!r}, which is not registered: is custom_imports complete?'
    if not issubclass(detector, DetectionTransformer):
        return UNKNOWN, f'{detector.__name__} is not a DetectionTransformer: only the gradients check below tests it'
    problems = [
        *_different('embed_dims', dict(_widths(model))), *_fixed_width(detector, model), *_heads(model),
        *_neck_inputs(model), *_different('number of levels', dict(_levels(detector, model))), *_queries(model)]
    return (FAIL, '; '.join(problems)) if problems else (OK, 'dimensions, heads, levels and queries fit each other')


def _class(cfg: ConfigDict | None) -> type | None:
    kind = (cfg or {}).get('type')
    return MODELS.get(kind) if isinstance(kind, str) else kind


def _different(what: str, values: dict[str, int]) -> Iterator[str]:
    """Yield a sentence that names every field whose value differs from the most common one."""
    if len(set(values.values())) > 1:
        ranked = Counter(values.values()).most_common(2)
        common, number = ranked[0]
        if number == ranked[1][1]:  # no majority: show all
            yield f'{what} differs: ' + ', '.join(f'{field} says {value}' for field, value in values.items())
        else:
            others = ', '.join(f'{field} says {value}' for field, value in values.items() if value != common)
            yield f'{what}: {others}; {number} other fields say {common}'


def _layers(model: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """Yield path and config of each attention and FFN in encoder and decoder; a missing one is empty."""
    for part, names in (('encoder', ('self_attn_cfg', 'ffn_cfg')),
                        ('decoder', ('self_attn_cfg', 'cross_attn_cfg', 'ffn_cfg'))):
        if part in model:
            layer = model[part].get('layer_cfg') or {}
            for name in names:
                yield f'model.{part}.layer_cfg.{name}', layer.get(name) or {}


def _widths(model: ConfigDict) -> Iterator[tuple[str, int]]:
    if 'out_channels' in (model.get('neck') or {}):
        yield 'model.neck.out_channels', model.neck.out_channels
    if model.get('positional_encoding'):
        num_feats = model.positional_encoding.get('num_feats', EMBED_DIMS // 2)
        yield f'model.positional_encoding.num_feats ({num_feats}, counts twice)', 2 * num_feats
    for path, cfg in _layers(model):
        yield f'{path}.embed_dims', cfg.get('embed_dims', EMBED_DIMS)
    yield 'model.bbox_head.embed_dims', model.bbox_head.get('embed_dims', EMBED_DIMS)


def _fixed_width(detector: type, model: ConfigDict) -> Iterator[str]:
    fixed = issubclass(detector, (ConditionalDETR, DINO)) or (
        issubclass(detector, DeformableDETR) and model.get('as_two_stage', False))
    width = model.bbox_head.get('embed_dims', EMBED_DIMS)
    if fixed and width != 256:
        yield f'embed_dims has to be 256: mmdet fixes it in the encodings of {detector.__name__}; here it is {width}'


def _heads(model: ConfigDict) -> Iterator[str]:
    arch = (model.get('backbone') or {}).get('arch')
    attentions = [(path, cfg) for path, cfg in _layers(model) if not path.endswith('ffn_cfg')]
    if isinstance(arch, dict):
        attentions.append(('model.backbone.arch', arch))
    for path, cfg in attentions:
        width, heads = cfg.get('embed_dims', EMBED_DIMS), cfg.get('num_heads', NUM_HEADS)
        if width % heads:
            yield f'{path}.num_heads is {heads}, which does not divide embed_dims, {width}'


def _neck_inputs(model: ConfigDict) -> Iterator[str]:
    found = _backbone_channels(model.get('backbone'))
    expected = (model.get('neck') or {}).get('in_channels')
    if found and expected is not None and list(expected) != found:
        yield f'model.neck.in_channels is {list(expected)}; the maps of model.backbone have {found} channels'


def _backbone_channels(backbone: ConfigDict | None) -> list[int] | None:
    """Return the channels of each map of mmpretrain's ViTs and mmdet's ResNets; None for other backbones."""
    kind = _class(backbone)
    if kind is None:
        return None
    out_indices = backbone.get('out_indices')
    if hasattr(kind, 'arch_zoo'):
        arch = backbone.get('arch', 'base')
        arch = arch if isinstance(arch, dict) else kind.arch_zoo.get(arch)
        if arch is None or 'embed_dims' not in arch or not isinstance(arch['embed_dims'], int):
            return None
        return [arch['embed_dims']] * (1 if out_indices is None or isinstance(out_indices, int) else len(out_indices))
    if issubclass(kind, ResNet):
        expansion = kind.arch_settings[backbone.depth][0].expansion
        width = backbone.get('base_channels', 64) * expansion
        return [width * 2**index for index in (range(4) if out_indices is None else out_indices)]
    return None


def _levels(detector: type, model: ConfigDict) -> Iterator[tuple[str, int]]:
    layers = dict(_layers(model))
    deformable = issubclass(detector, DeformableDETR)
    if not deformable and 'num_levels' not in layers.get('model.decoder.layer_cfg.cross_attn_cfg', {}):
        return
    if deformable:
        yield 'model.num_feature_levels', model.get('num_feature_levels', NUM_LEVELS)
        path = 'model.encoder.layer_cfg.self_attn_cfg'
        yield f'{path}.num_levels', layers[path].get('num_levels', NUM_LEVELS)
    path = 'model.decoder.layer_cfg.cross_attn_cfg'
    yield f'{path}.num_levels', layers[path].get('num_levels', NUM_LEVELS)
    neck = model.get('neck') or {}
    for field in ('num_outs', 'strides', 'scales'):
        if field in neck:
            yield f'model.neck.{field}', neck[field] if isinstance(neck[field], int) else len(neck[field])


def _queries(model: ConfigDict) -> Iterator[str]:
    head, num_queries = model.bbox_head, model.get('num_queries', NUM_QUERIES)
    largest = (model.get('test_cfg') or {}).get('max_per_img', 0)
    # a softmax gives one class for each query, sigmoids may give several
    softmax = 'CrossEntropyLoss' in str(head.get('loss_cls', {}).get('type', 'CrossEntropyLoss')) and not \
        head.get('loss_cls', {}).get('use_sigmoid', False)
    candidates = num_queries * (1 if softmax else head.get('num_classes', 80))
    if largest > candidates:
        yield f'model.test_cfg.max_per_img is {largest}; model.num_queries, {num_queries}, gives {candidates} boxes'
