"""Check that a checkpoint belongs to a model and its classes, with the same messages wherever one is loaded."""

from collections import Counter
from collections.abc import Sequence
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
    except (RuntimeError, AssertionError) as error:  # hooks that resize position embeddings assert
        check_fit(model.state_dict(), state_dict, path)
        raise UserError(f'{path}: does not fit the model: {error}. {ITS_CONFIG}') from None


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
    missing = [prefix + key for key in own if prefix + key not in saved]
    shapes = [
        f'{prefix}{key} {tuple(saved[prefix + key].shape)} instead of {tuple(own[key].shape)}'
        for key in sorted(own, key=lambda key: 'pos_embed' in key)  # depends on the image size too: named last
        if prefix + key in saved and saved[prefix + key].shape != own[key].shape]
    unexpected = [key for key in saved if not key.startswith(prefix) or key.removeprefix(prefix) not in own]
    needed = least * len(own)
    if len(own) - len(missing) - len(shapes) >= needed and not (unexpected and least == 1):
        return
    kinds = {'missing': missing, 'of another shape': shapes, f'not in {part}': unexpected}
    lines = [f'{len(names)} tensors are {kind} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
             for kind, names in kinds.items() if names]
    fix = _other_layout(own, saved, prefix, needed) or remedy
    raise UserError(f'{path}: does not fit {part}: {"; ".join(lines)}. {fix}')


def _other_layout(own: dict[str, Tensor], saved: dict[str, Tensor], prefix: str, needed: float) -> str | None:
    """Return the fix if the tensors have another project's names, else None."""
    if any(key.startswith('bbox_head.transformer.') for key in saved):
        return 'It has the layout of mmdet 2.x: convert it with tools/model_converters/mmdet2x_to_3x.py'
    timm = 'blocks.0.norm1.weight'
    if any(key.endswith(timm) for key in saved) and not any(key.endswith(timm) for key in own):
        return 'It has the layout of timm and DeiT: convert it with tools/model_converters/deit_to_mmpretrain.py'
    prefixes = Counter(
        key.removesuffix(name) for name in own for key in saved if key == name or key.endswith(f'.{name}'))
    best, found = prefixes.most_common(1)[0] if prefixes else (prefix, 0)
    if best == prefix or found < needed:
        return None
    if needed == len(own):
        return f'Its names begin with {best!r}: save its state dict again without that'
    return f'init_cfg.prefix has to be {best!r} and is {prefix!r}'


def check_trained_classes(checkpoint: dict, path: str | Path, classes: Sequence[str], field: str) -> None:
    """Compare the classes that a checkpoint was trained on, if it names them, with those of a field of the config.

    Raises:
        UserError: If number, names or order differ.
    """
    trained = ((checkpoint.get('meta') or {}).get('dataset_meta') or {}).get('classes')
    if trained and tuple(trained) != tuple(classes):
        raise UserError(
            f'{path}: was trained on {describe_classes(trained)}, but {field} has {describe_classes(classes)}. Set '
            'that field to the former, or use the config that it was trained with')


def describe_classes(classes: Sequence[str]) -> str:
    """Return the number and the names of classes, at most 20 of them, for a message."""
    return f'{len(classes)} ({", ".join(classes[:20])}{", ..." if len(classes) > 20 else ""})'
