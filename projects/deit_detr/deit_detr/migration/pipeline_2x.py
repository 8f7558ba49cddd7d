"""Translate the data pipelines of a 2.x config."""

from deit_detr.migration.untranslated import take, take_if

#: Transforms with the same name and arguments in 3.x.
_SAME_TRANSFORMS = {'PhotoMetricDistortion', 'Expand', 'MinIoURandomCrop', 'CutOut'}


def translate_transforms(old: list, preprocessor: dict) -> list[dict]:
    """Translate the transforms of a pipeline."""
    new = []
    for step in old:
        name = step['type']
        if name in _TRANSFORMS:
            new += _TRANSFORMS[name](step, preprocessor)
        elif name in _SAME_TRANSFORMS:
            new.append(dict(step))
            step.clear()
        if set(step) == {'type'} and name in _TRANSFORMS:
            del step['type']
    return new


def _move_to_preprocessor(preprocessor: dict, step: dict, values: dict) -> None:
    """Move settings that all pipelines share in 3.x; where two differ, those of the second are not translated."""
    for old_name, (new_name, value) in values.items():
        if preprocessor.setdefault(new_name, value) == value:
            step.pop(old_name, None)


def _load(step: dict, _) -> list[dict]:
    take_if(step, 'file_client_args', dict(backend='disk'))
    return [dict(type='LoadImageFromFile', **take(step, 'to_float32', 'color_type'))]


def _load_annotations(step: dict, _) -> list[dict]:
    return [dict(type='LoadAnnotations', **take(step, 'with_bbox', 'with_label'))]


def _flip(step: dict, _) -> list[dict]:
    probability = step.pop('flip_ratio', None)
    direction = take(step, 'direction')
    return [] if not probability else [dict(type='RandomFlip', prob=probability, **direction)]


def _resize(step: dict, _) -> list[dict]:
    scales = step.pop('img_scale')
    mode, ratio_range = step.pop('multiscale_mode', 'range'), step.pop('ratio_range', None)
    # 3.x has no override, and another default for keep_ratio
    step.pop('override', None)
    take_if(step, 'backend', 'cv2')
    options = dict(keep_ratio=step.pop('keep_ratio', True))
    if not step.get('bbox_clip_border', True):
        options['clip_object_border'] = False
    step.pop('bbox_clip_border', None)
    scales = [tuple(scale) for scale in scales] if isinstance(scales[0], (tuple, list)) else [tuple(scales)]
    if ratio_range is not None:
        return [dict(type='RandomResize', scale=scales[0], ratio_range=ratio_range, **options)]
    if len(scales) == 1:
        return [dict(type='Resize', scale=scales[0], **options)]
    if mode == 'value':
        return [dict(type='RandomChoiceResize', scales=scales, **options)]
    # 2.x draws a long and a short side; 3.x draws one number for each position
    return [dict(type='RandomResize', scale=[tuple(sorted(scale, reverse=True)) for scale in scales], **options)]


def _crop(step: dict, _) -> list[dict]:
    options = take(step, 'crop_type', 'allow_negative_crop', 'recompute_bbox', 'bbox_clip_border')
    size = tuple(step.pop('crop_size'))
    if options.get('crop_type', 'absolute') != 'absolute_range':
        size = size[::-1]  # height, width in 2.x, width, height in 3.x; absolute_range bounds both by both
    return [dict(type='RandomCrop', crop_size=size, **options)]


def _auto_augment(step: dict, preprocessor: dict) -> list[dict]:
    choices = [translate_transforms(policy, preprocessor) for policy in step['policies']]
    if not any(part for policy in step['policies'] for part in policy):
        del step['policies']
    return [dict(type='RandomChoice', transforms=choices)]


def _multi_scale_flip(step: dict, preprocessor: dict) -> list[dict]:
    """Unroll for one scale without flipping; test-time augmentation is not translated."""
    scales = step.get('img_scale')
    several = isinstance(scales, list)
    for transform in step['transforms']:
        if transform['type'] == 'Resize' and scales is not None:
            transform['img_scale'] = scales[0] if several else scales
    if not several or len(scales) == 1:
        step.pop('img_scale', None)
    take_if(step, 'flip', False)
    new = translate_transforms(step['transforms'], preprocessor)
    if not any(step['transforms']):
        del step['transforms']
    return new


def _normalize(step: dict, preprocessor: dict) -> list[dict]:
    _move_to_preprocessor(preprocessor, step, dict(
        mean=('mean', list(step['mean'])),
        std=('std', list(step['std'])),
        to_rgb=('bgr_to_rgb', step.get('to_rgb', True))))
    return []


def _pad(step: dict, preprocessor: dict) -> list[dict]:
    if 'size_divisor' in step:
        _move_to_preprocessor(preprocessor, step, dict(size_divisor=('pad_size_divisor', step['size_divisor'])))
    return []


def _collect(step: dict, _) -> list[dict]:
    """Take out the keys that PackDetInputs handles; other keys are not translated."""
    keys = step.get('keys', [])
    if set(keys) <= {'img', 'gt_bboxes', 'gt_labels'}:
        step.pop('keys', None)
    return []


_TRANSFORMS = {
    'LoadImageFromFile': _load,
    'LoadAnnotations': _load_annotations,
    'RandomFlip': _flip,
    'Resize': _resize,
    'RandomCrop': _crop,
    'AutoAugment': _auto_augment,
    'MultiScaleFlipAug': _multi_scale_flip,
    'Normalize': _normalize,
    'Pad': _pad,
    'DefaultFormatBundle': _collect,
    'ImageToTensor': _collect,
    'Collect': _collect,
}
