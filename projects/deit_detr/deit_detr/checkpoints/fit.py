"""Check that a checkpoint belongs to a model and its classes, with the same messages wherever one is loaded."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor, nn

from deit_detr.checkpoints.safe_loading import find_state_dict
from deit_detr.errors import UserError

ITS_CONFIG = 'Use the config that it was trained with, which lies in its work directory'


def load_weights(model: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """Load a checkpoint strictly into an unwrapped model.

    Raises:
        UserError: If it does not fit; see :func:`check_fit`.
    """
    state_dict = find_state_dict(checkpoint, path)
    try:
        model.load_state_dict(state_dict)
    except Exception as error:  # modules that change their tensors before loading may raise anything
        check_load(model, state_dict, path)
        raise UserError(f'{path}: does not fit the model: {error}. {ITS_CONFIG}') from None


def check_load(
    model: nn.Module, saved: dict[str, Tensor], path: str | Path, *, part: str = 'the model', prefix: str = '',
    least: float = 1, remedy: str = ITS_CONFIG,
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint as a model loads them, after checking that they fit.

    Args:
        model: The model, or the part of it that is loaded. Not changed.
        saved: State dict of the checkpoint.
        path: As for :func:`check_fit`.
        part: As for :func:`check_fit`.
        prefix: As for :func:`check_fit`.
        least: As for :func:`check_fit`.
        remedy: As for :func:`check_fit`.

    Raises:
        UserError: If they do not fit.
    """
    own, options = model.state_dict(), dict(part=part, prefix=prefix, remedy=remedy)
    check_fit(own, saved, path, least=min(least, 0.5), **options)  # says more of another architecture
    saved = _as_loaded(model, saved, path, part, prefix)
    check_fit(own, saved, path, least=least, **options)
    return saved


def _as_loaded(
    model: nn.Module, saved: dict[str, Tensor], path: str | Path, part: str, prefix: str,
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint as the modules change them before loading.

    mmpretrain's vision transformers drop the class token of a position embedding, or resize it.

    Raises:
        UserError: If a module refuses its tensors. For a position embedding of another image size, the message names
            the field and its value.
    """
    saved = dict(saved)
    for name, module in model.named_modules():
        before = f'{prefix}{name}.' if name else prefix
        for hook in module._load_state_dict_pre_hooks.values():
            try:
                hook(saved, before, {}, True, [], [], [])
            except Exception as error:
                field = '.'.join(filter(None, [part.replace('the model', 'model'), name]))
                reason = _other_image_size(module, saved.get(f'{before}pos_embed'), field)
                raise UserError(f'{path}: does not fit {part}: {reason or error}') from None
    return saved


def _other_image_size(module: nn.Module, embedding: Tensor | None, field: str) -> str | None:
    """Return what to set if the position embedding of a checkpoint is for square images of another size."""
    patches = getattr(getattr(module, 'patch_embed', None), 'init_out_size', None)
    own = getattr(module, 'img_size', None)
    if embedding is None or embedding.ndim != 3 or patches is None or own is None:
        return None
    side = math.isqrt(embedding.shape[1])
    size = side * own[0] // patches[0]
    if embedding.shape[1] - side**2 > 2 or (size, size) == tuple(own):  # besides the tokens of class and distillation
        return None
    return (
        f'its position embedding is for images of {size}x{size}, but {field}.img_size is {own[0]}x{own[1]}, and '
        f'{type(module).__name__} cannot resize it. Set {field}.img_size={size}; this does not limit the size of the '
        'images, for which it is interpolated at every step')


def check_fit(
    own: dict[str, Tensor], saved: dict[str, Tensor], path: str | Path, *, part: str = 'the model', prefix: str = '',
    least: float = 1, remedy: str = ITS_CONFIG,
) -> None:
    """Compare names and shapes of a model's tensors with those of a checkpoint.

    Args:
        own: State dict of the model, or of the part of it that is loaded.
        saved: State dict of the checkpoint.
        path: The file, for the message.
        part: What is loaded, for the message.
        prefix: What precedes the names in the checkpoint.
        least: The share of ``own``, in 0..1, that the checkpoint has to hold. At 1 it may hold nothing else.
        remedy: The fix to name when the checkpoint has neither the layout of mmdet 2.x or timm nor another prefix.

    Raises:
        UserError: If they differ. The message names the file, the first tensors of each kind of difference, and the
            fix.
    """
    fitting, differences = compare(own, saved, part, prefix)
    needed = least * len(own)
    if fitting < needed or (differences and least == 1):
        fix = other_layout(own, saved, part, prefix, needed=needed) or remedy
        raise UserError(f'{path}: does not fit {part}: {"; ".join(differences)}. {fix}')


def compare(
    own: dict[str, Tensor], saved: dict[str, Tensor], part: str = 'the model', prefix: str = '', most: int | None = 3,
) -> tuple[int, list[str]]:
    """Return how many tensors agree in name and shape, and a line for each kind of difference.

    A line names the first ``most`` tensors, or all of them, whole modules in short.
    """
    missing = [
        prefix + key for key in own if prefix + key not in saved
        and not key.endswith('num_batches_tracked')]  # old checkpoints of batch norms do not have it
    shapes = [
        f'{prefix}{key} {tuple(saved[prefix + key].shape)} instead of {tuple(own[key].shape)}'
        for key in sorted(own, key=lambda key: 'pos_embed' in key)  # depends on the image size too: named last
        if prefix + key in saved and saved[prefix + key].shape != own[key].shape]
    unexpected = [key for key in saved if not key.startswith(prefix) or key.removeprefix(prefix) not in own]
    lines = []
    for kind, names, among in (
        ('missing', missing, [prefix + key for key in own]), ('of another shape', shapes, shapes),
        (f'not in {part}', unexpected, saved),
    ):
        shown = _by_module(names, among) if most is None else [*names[:most], *['...'] * (len(names) > most)]
        if names:
            lines.append(f'{len(names)} tensors are {kind} ({", ".join(shown)})')
    return len(own) - len(missing) - len(shapes), lines


def _by_module(names: list[str], among: Iterable[str]) -> list[str]:
    """Shorten a list of tensors: ``neck.*`` stands for all tensors of a module, if there are several."""
    left, shown = set(among) - set(names), {}
    for name in names:
        parts = name.split('.')
        modules = ['.'.join(parts[:end]) + '.' for end in range(1, len(parts))]
        whole = next((start for start in modules if not any(key.startswith(start) for key in left)), None)
        shown.setdefault(whole or name, []).append(name)
    return [f'{start}*' if len(members) > 1 else members[0] for start, members in shown.items()]


def other_layout(
    own: dict[str, Tensor], saved: dict[str, Tensor], part: str = 'the model', prefix: str = '', *, needed: float,
) -> str | None:
    """Return the fix if the tensors have another project's names, else None."""
    if any(key.startswith('bbox_head.transformer.') for key in saved):
        return 'It has the layout of mmdet 2.x: convert it with tools/model_converters/mmdet2x_to_3x.py'
    if any(key.startswith('backbone.0.encoder.') for key in saved):
        return 'It has the layout of LW-DETR: convert it with tools/model_converters/lw_detr_to_mmdet.py'
    timm = 'blocks.0.norm1.weight'
    if any(key.endswith(timm) for key in saved) and not any(key.endswith(timm) for key in own):
        return 'It has the layout of timm and DeiT: convert it with tools/model_converters/deit_to_mmpretrain.py'
    prefixes = Counter(
        key.removesuffix(name) for name in own for key in saved if key == name or key.endswith(f'.{name}'))
    best, found = prefixes.most_common(1)[0] if prefixes else (prefix, 0)
    if best == prefix or found < needed:
        return None
    if part == 'the model' and not prefix:
        return f'Its names begin with {best!r}: save its state dict again without that'
    return f'init_cfg.prefix has to be {best!r} and is {prefix!r}'


def trained_classes(checkpoint: dict) -> tuple[str, ...]:
    """Return the classes that a checkpoint of mmdet 3.x or 2.x was trained on; none if it does not name them."""
    meta = checkpoint.get('meta') or {}
    names = [part.get(key) for part in (meta.get('dataset_meta') or {}, meta) for key in ('classes', 'CLASSES')]
    found = next(filter(None, names), ())
    return (found,) if isinstance(found, str) else tuple(found)


def check_trained_classes(checkpoint: dict, path: str | Path, classes: Sequence[str], field: str) -> None:
    """Compare the classes that a checkpoint was trained on, if it names them, with those of a field of the config.

    Raises:
        UserError: If number, names or order differ.
    """
    trained = trained_classes(checkpoint)
    if trained and trained != tuple(classes):
        raise UserError(
            f'{path}: was trained on {describe_classes(trained)}, but {field} has {describe_classes(classes)}. Set '
            'that field to the former, or use the config that it was trained with')


def describe_classes(classes: Sequence[str]) -> str:
    """Return the number and the names of classes, at most 20 of them, for a message."""
    return f'{len(classes)} ({", ".join(classes[:20])}{", ..." if len(classes) > 20 else ""})'
