"""What a training gets from the checkpoint that it starts from, which may be of other classes."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from deit_detr.checkpoints.fit import check_load, compare, describe_classes, other_layout, trained_classes
from deit_detr.checkpoints.safe_loading import find_state_dict
from deit_detr.errors import UserError

#: Other names of the same thing in COCO, Objects365, LVIS, Open Images and VOC -> its name here.
SPELLINGS = {
    'couch': 'sofa', 'television': 'tv', 'television set': 'tv', 'dinning table': 'dining table',
    'diningtable': 'dining table'}


def prepare_start(
    model: nn.Module, checkpoint: dict, path: str | Path, classes: Sequence[str] = (),
    with_another_class: Callable[[], dict[str, Tensor]] | None = None, same_classes: dict[str, str] | None = None,
) -> tuple[str, str]:
    """Give a checkpoint's class-dependent tensors the rows of a training's classes, and describe what is loaded.

    Args:
        model: The unwrapped model, which may be larger than what the checkpoint holds. Not changed.
        checkpoint: The content of the file. Afterwards its tensors lie under ``state_dict``, where mmengine reads them.
        path: The file, for the messages.
        classes: Classes of the training data, if known.
        with_another_class: As for :func:`take_rows`.
        same_classes: As for :func:`match_classes`.

    Returns:
        tuple[str, str]: How much of the model it gives, and which classes; and what differs, or ''.

    Raises:
        UserError: If it gives nothing, or ``same_classes`` names a class that does not exist.
    """
    own, saved = model.state_dict(), find_state_dict(checkpoint, path)
    rows = take_rows(own, with_another_class, saved, classes, trained_classes(checkpoint), same_classes)
    given = checkpoint.setdefault('state_dict', saved)
    if rows.by_class or rows.fresh:
        checkpoint['state_dict'] = OrderedDict(rows.saved)
        checkpoint['state_dict']._metadata = getattr(given, '_metadata', OrderedDict())
    loaded = check_load(
        model, rows.saved, path, least=1 / len(own),
        remedy='Nothing would be loaded: load_from needs a checkpoint of this model or of a part of it')
    fitting, _ = compare(own, loaded)
    _, differences = compare({name: own[name] for name in own if name not in rows.fresh}, loaded, most=None)
    if rows.fresh:
        differences.append(
            f'{len(rows.fresh)} tensors depend on the classes and start fresh ({", ".join(rows.fresh)})')
    advice = ['The rest of the model keeps its initialization', other_layout(own, loaded, needed=fitting + 1)]
    by_class = f', {len(rows.by_class)} of them by the names of the classes' if rows.by_class else ''
    return (
        '. '.join([f'{path}: {fitting} of {len(own)} tensors of the model are loaded{by_class}', *rows.notes]),
        '. '.join(filter(None, [
            '; '.join([*rows.warnings, *differences]), *(advice if fitting < len(own) else [])])))


def match_classes(
    own: Sequence[str], trained: Sequence[str], same_classes: dict[str, str] | None = None,
) -> dict[int, int]:
    """Find the classes of a training among those of a checkpoint.

    Names are compared as they are, then without case and underscores, then with :data:`SPELLINGS`. A name that either
    side has several times matches nothing, and no class of the checkpoint is given twice.

    Args:
        own: Classes of the training.
        trained: Classes of the checkpoint.
        same_classes: Class of the training -> what the checkpoint calls it. Spaces may be left out.

    Returns:
        dict[int, int]: Index in ``own`` -> index in ``trained``.

    Raises:
        UserError: If ``same_classes`` names a class that does not exist.
    """
    same_classes = {
        _known(ours, own, 'data'): _known(theirs, trained, 'checkpoint')
        for ours, theirs in (same_classes or {}).items()}
    found = {}
    for spell in (str, _plain, lambda name: SPELLINGS.get(_plain(name), _plain(name))):
        ours, theirs = [spell(same_classes.get(name, name)) for name in own], [spell(name) for name in trained]
        twice = {name for names in (ours, theirs) for name, number in Counter(names).items() if number > 1}
        places = {name: index for index, name in enumerate(theirs) if index not in found.values()}
        found |= {
            index: places[name] for index, name in enumerate(ours)
            if index not in found and name in places and name not in twice}
    return dict(sorted(found.items()))


def _known(name: str, classes: Sequence[str], where: str) -> str:
    """Return the class of a name, in which spaces may be left out, as ``--cfg-options`` does."""
    for cls in classes:
        if cls.replace(' ', '') == name.replace(' ', ''):
            return cls
    raise UserError(
        f'PretrainedCheckHook.same_classes has {name!r}, but the classes of the {where} are '
        f'{describe_classes(classes)}')


def _plain(name: str) -> str:
    return ' '.join(name.casefold().replace('_', ' ').split())


@dataclass
class ClassRows:
    """What the class-dependent tensors of a training get from the checkpoint that it starts from.

    Attributes:
        saved: State dict of the checkpoint. Its class-dependent tensors have the shapes of the model.
        by_class: Names of the tensors that got rows by class.
        fresh: Names of those in the checkpoint that give nothing, and were removed from ``saved``.
        notes: What happens to the classes.
        warnings: What may be wrong.
    """

    saved: dict[str, Tensor]
    by_class: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def take_rows(
    own: dict[str, Tensor], with_another_class: Callable[[], dict[str, Tensor]] | None, saved: dict[str, Tensor],
    classes: Sequence[str], trained: Sequence[str], same_classes: dict[str, str] | None = None,
) -> ClassRows:
    """Give each class of a training its rows of a checkpoint. New classes keep the rows that the model has.

    A tensor depends on the classes if one class more changes its shape. The classes may be in any dimension; what
    follows them, as the background, is taken as it is. Of other layouts, as with several anchors, nothing is taken.

    Args:
        own: State dict of the model, initialized.
        with_another_class: Returns the state dict of the same model with one class more.
        saved: State dict of the checkpoint. Not changed.
        classes: Classes of the training.
        trained: Classes of the checkpoint; empty if it does not name them.
        same_classes: As for :func:`match_classes`.
    """
    rows = ClassRows(dict(saved))
    if not classes or (tuple(classes) == tuple(trained) and not same_classes):
        return rows
    try:
        larger = with_another_class()
    except Exception as error:  # a model of the user may raise anything
        rows.warnings.append(
            f'it was trained on {describe_classes(trained) if trained else "unknown classes"}, but which tensors '
            f'depend on the classes is unknown: every tensor of the same shape is loaded, whatever its rows mean '
            f'({type(error).__name__}: {error})')
        return rows
    dependent = {
        name: larger[name] for name in own if name in larger and larger[name].shape != own[name].shape}
    if trained and not dependent:
        rows.warnings.append(
            f'it was trained on {describe_classes(trained)}, but no tensor of the model depends on num_classes of the '
            'config')
        return rows
    dependent = {name: grown for name, grown in dependent.items() if name in saved}
    if not trained and all(saved[name].shape == own[name].shape for name in dependent):
        if dependent:
            rows.warnings.append(
                f'it does not name its classes, but has as many as the data: its rows are taken for '
                f'{describe_classes(classes)}, in this order')
        return rows
    pairs = match_classes(classes, trained, same_classes)
    for name, grown in dependent.items():
        taken = _copy_rows(own[name], grown, saved[name], pairs, len(classes), len(trained)) if trained else None
        if taken is None:
            del rows.saved[name]
            rows.fresh.append(name)
        else:
            rows.saved[name] = taken
            rows.by_class.append(name)
    if not trained:
        rows.warnings.append('it does not name its classes and has another number of them: all classes start fresh')
    else:
        rows.notes += _describe(classes, trained, pairs if rows.by_class else {})
    return rows


def _copy_rows(
    own: Tensor, grown: Tensor, saved: Tensor, pairs: dict[int, int], num_own: int, num_trained: int,
) -> Tensor | None:
    """Return the model's tensor with the rows of a checkpoint's, or None if it gives none."""
    changed = [dim for dim, sizes in enumerate(zip(own.shape, grown.shape, strict=True)) if len(set(sizes)) > 1]
    if len(changed) != 1 or grown.shape[changed[0]] != own.shape[changed[0]] + 1:
        return None
    dim = changed[0]
    others = own.shape[dim] - num_own  # of no class, behind those of the classes
    shape = (*own.shape[:dim], num_trained + others, *own.shape[dim + 1:])
    rows = [*pairs.items(), *((num_own + index, num_trained + index) for index in range(others))]
    if saved.shape != shape or not rows:
        return None
    to, of = torch.tensor(rows, device=saved.device).unbind(1)
    result = own.detach().to(saved.device, copy=True)
    return result.index_copy(dim, to, saved.index_select(dim, of).to(result.dtype))


def _describe(classes: Sequence[str], trained: Sequence[str], pairs: dict[int, int]) -> list[str]:
    """Return a line for the classes that keep their rows, for those that start fresh, and for those left out."""
    kept = [
        name if name == trained[there] else f'{name} (there {trained[there]})'
        for name, there in ((classes[index], there) for index, there in pairs.items())]
    repeated = {name for names in (classes, trained) for name, number in Counter(names).items() if number > 1}
    new = [
        f'{name} (more than once)' if name in repeated else name
        for index, name in enumerate(classes) if index not in pairs]
    unused = [name for index, name in enumerate(trained) if index not in pairs.values()]
    lines = [f'{len(kept)} of {len(classes)} classes keep their rows' + (f': {", ".join(kept)}' if kept else '')]
    if new:
        lines.append(f'{len(new)} of {len(classes)} start fresh: {", ".join(new)}')
    if unused:
        lines.append(f'Not used from the checkpoint: {describe_classes(unused)}')
    return lines
