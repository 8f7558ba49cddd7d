"""A training that starts from a detector of other classes: every class keeps its own rows, or none."""

import copy
import random
import re

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from deit_detr.checkpoints.start import match_classes, prepare_start
from deit_detr.engine.start.classes import with_another_class
from deit_detr.errors import UserError
from tests.helpers.paths import REPO

CONFIGS = REPO / 'projects/deit_detr/configs'
#: One recipe of each family, and mmdet's plain one.
FAMILIES = sorted(path.stem for path in CONFIGS.glob('*_mini-scannet.py'))
#: Sizes that no other dimension of a model has.
TRAINED = tuple(f'class {number}' for number in range(47))
OWN = (*TRAINED[43:5:-1], 'lamp', 'plant', 'rug')


def build(cfg: Config, seed: int) -> nn.Module:
    """Build a model whose parameters are all different."""
    model = MODELS.build(copy.deepcopy(cfg))
    torch.manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.normal_()
    return model


def config(recipe: str, num_classes: int) -> Config:
    cfg = Config.fromfile(CONFIGS / f'{recipe}.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg, cfg.model.bbox_head.num_classes = None, num_classes
    return cfg.model


@pytest.mark.parametrize('recipe', FAMILIES)
def test_rows_follow_the_names_in_every_family(recipe):
    """Every tensor with a dimension of the classes, with the background or without: found here by its size."""
    source, cfg = build(config(recipe, len(TRAINED)), 1), config(recipe, len(OWN))
    model, saved = build(cfg, 2), source.state_dict()
    fresh = copy.deepcopy(model.state_dict())
    checkpoint = dict(state_dict=saved, meta=dict(dataset_meta=dict(classes=TRAINED)))
    loaded, left_out = prepare_start(
        model, checkpoint, 'x.pth', OWN, lambda: MODELS.build(with_another_class(cfg)).state_dict())
    model.load_state_dict(checkpoint['state_dict'])

    by_class = []
    for name, tensor in model.state_dict().items():
        dims = [dim for dim, size in enumerate(tensor.shape) if size - len(OWN) in (0, 1)]
        if not dims:
            assert torch.equal(tensor, saved[name]), name
            continue
        by_class.append(name)
        rows, there, before = (x.movedim(dims[0], 0) for x in (tensor, saved[name], fresh[name]))
        for index, cls in enumerate(OWN):
            expected = there[TRAINED.index(cls)] if cls in TRAINED else before[index]
            assert torch.equal(rows[index], expected), (name, cls)
        assert torch.equal(rows[len(OWN):], there[len(TRAINED):]), f'{name}: background'
    assert {'bbox_head'} <= {name.split('.')[0] for name in by_class} and len(by_class) >= 2
    if 'lw-detr' in recipe:
        assert {name for name in by_class if name.startswith('query')} == {
            'query_selection.score.weight', 'query_selection.score.bias'}
    if 'dino' in recipe:
        assert 'dn_query_generator.label_embedding.weight' in by_class
    number = len(model.state_dict())
    assert loaded == (
        f'x.pth: {number} of {number} tensors of the model are loaded, {len(by_class)} of them by the names of the '
        f'classes. 38 of 41 classes keep their rows: {", ".join(OWN[:38])}. 3 of 41 start fresh: lamp, plant, rug. '
        f'Not used from the checkpoint: 9 ({", ".join((*TRAINED[:6], *TRAINED[44:]))})')
    assert not left_out


class Head(nn.Module):
    """A classifier with a background, scores of two groups, three anchors a class, and a box that has no classes."""

    def __init__(self, classes: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fc_cls = nn.Linear(7, classes + 1)
        self.score = nn.Parameter(torch.randn(2, 7, classes))
        self.anchors = nn.Linear(7, 3 * classes)
        self.box = nn.Linear(7, 4)


def start(own, trained, *, number: int | None = None, same_classes=None, another=None) -> tuple[dict, str, str]:
    """Start a ``Head`` from one of other classes.

    Returns:
        tuple: Name of a class -> that whose rows it has, or None if they are fresh; and the two messages.
    """
    source, model = Head(number or len(trained), seed=1), Head(len(own), seed=2)
    checkpoint = dict(state_dict=source.state_dict(), meta=dict(dataset_meta=dict(classes=trained)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded, left_out = prepare_start(
        model, checkpoint, 'x.pth', own, another or (lambda: Head(len(own) + 1).state_dict()), same_classes)
    model.load_state_dict(checkpoint['state_dict'], strict=False)
    assert torch.equal(model.box.weight, source.box.weight)
    found = []
    for ours, theirs, fresh in (
        (model.fc_cls.weight, source.fc_cls.weight, before['fc_cls.weight']),
        (model.score.movedim(2, 0), source.score.movedim(2, 0), before['score'].movedim(2, 0)),
    ):
        rows = {}
        for index, name in enumerate(own):
            equal = [other for other in range(number or len(trained)) if torch.equal(ours[index], theirs[other])]
            assert len(equal) == 1 or torch.equal(ours[index], fresh[index]), name
            rows[index] = equal[0] if equal else None
        found.append(rows)
    assert found[0] == found[1]
    return found[0], loaded, left_out


@pytest.mark.parametrize('own, trained, rows', [
    (['bed', 'chair', 'desk'], ['bed', 'chair', 'desk'], [0, 1, 2]),
    (['desk', 'bed', 'chair'], ['bed', 'chair', 'desk'], [2, 0, 1]),
    (['desk', 'bed'], ['bed', 'chair', 'desk'], [2, 0]),
    (['bed', 'lamp', 'chair', 'desk'], ['desk', 'chair'], [None, None, 1, 0]),
    (['bed', 'chair'], ['cat', 'dog', 'cow'], [None, None]),
    (['bed', 'chair'], ['cat', 'dog'], [None, None]),
    (['cup', 'fork'], ['fork', 'cat'], [None, 0]),
    (['chair'], ['chair', 'desk'], [0]),
    (['Shower Curtain', 'bed'], ['bed', 'shower_curtain'], [1, 0]),
    (['sofa', 'tv', 'dining table'], ['television_set', 'Couch', 'Dinning Table'], [1, 0, 2]),
    (['sofa', 'couch'], ['sofa', 'bed'], [0, None]),
    (['couch'], ['sofa', 'Couch'], [1]),
    (['Bed', 'desk'], ['bed', 'BED'], [None, None]),
    (['bed', 'desk'], ['bed', 'BED'], [0, None]),
    (['cup', 'cup', 'bed'], ['bed', 'cup'], [None, None, 0]),
    (['cup', 'bed'], ['cup', 'bed', 'cup'], [None, 1]),
    (['table'], ['dining table', 'bed'], [None]),
], ids=lambda value: ' '.join(map(str, value)))
def test_classes_are_matched_by_name(own, trained, rows):
    found, loaded, left_out = start(own, trained)
    assert list(found.values()) == rows
    kept = sum(row is not None for row in rows)
    if own == trained:
        assert loaded == 'x.pth: 7 of 7 tensors of the model are loaded' and not left_out
        return
    assert f'{kept} of {len(own)} classes keep their rows' in loaded
    assert f'{len(own) - kept} of {len(own)} start fresh' in loaded or kept == len(own)
    assert left_out.startswith('2 tensors depend on the classes and start fresh (anchors.weight, anchors.bias)') or (
        not kept and left_out.startswith('3 tensors'))


def test_log_names_pairs_of_other_spelling_and_repeated_names():
    _, loaded, _ = start(['sofa', 'bed', 'cup', 'cup'], ['bed', 'couch', 'cat'])
    assert loaded == (
        'x.pth: 5 of 7 tensors of the model are loaded, 3 of them by the names of the classes. 2 of 4 classes keep '
        'their rows: sofa (there couch), bed. 2 of 4 start fresh: cup (more than once), cup (more than once). Not used '
        'from the checkpoint: 1 (cat)')


def test_other_names_of_the_user():
    found, loaded, _ = start(['table', 'bed'], ['bed', 'dining table'], same_classes=dict(table='dining table'))
    assert list(found.values()) == [1, 0] and 'table (there dining table)' in loaded
    for wrong, message in ((dict(tabel='bed'), "has 'tabel', but the classes of the data are 2 (table, bed)"),
                           (dict(table='desk'), "has 'desk', but the classes of the checkpoint are 1 (bed)")):
        with pytest.raises(UserError, match=re.escape(f'PretrainedCheckHook.same_classes {message}')):
            start(['table', 'bed'], ['bed'], same_classes=wrong)


def test_many_classes_in_any_order():
    own = [f'c{number}' for number in range(1203)]
    trained = random.Random(0).sample(own, 1000)
    assert match_classes(own, trained) == {
        index: trained.index(name) for index, name in enumerate(own) if name in set(trained)}


# ---- checkpoints that do not say what they hold

def test_checkpoint_without_names_and_as_many_classes():
    found, _, left_out = start(['bed', 'chair'], (), number=2)
    assert list(found.values()) == [0, 1]
    assert left_out == (
        'it does not name its classes, but has as many as the data: its rows are taken for 2 (bed, chair), in this '
        'order')


def test_checkpoint_without_names_and_another_number_of_classes():
    found, loaded, left_out = start(['bed', 'chair'], (), number=3)
    assert list(found.values()) == [None, None]
    assert loaded == 'x.pth: 2 of 7 tensors of the model are loaded'
    assert left_out == (
        'it does not name its classes and has another number of them: all classes start fresh; 5 tensors depend on the '
        'classes and start fresh (score, fc_cls.weight, fc_cls.bias, anchors.weight, anchors.bias). The rest of the '
        'model keeps its initialization')


def test_checkpoint_with_other_rows_than_names():
    """As 91 rows for the 80 classes of COCO."""
    found, loaded, left_out = start(['bed', 'chair'], ['chair', 'bed'], number=5)
    assert list(found.values()) == [None, None]
    assert '0 of 2 classes keep their rows. 2 of 2 start fresh: bed, chair' in loaded
    assert '5 tensors depend on the classes and start fresh (score, fc_cls' in left_out


def test_model_that_does_not_show_its_classes():
    def fails():
        raise ValueError('no')

    _, _, left_out = start(['bed', 'chair'], ['chair', 'bed'], another=fails)
    assert left_out == (
        'it was trained on 2 (chair, bed), but which tensors depend on the classes is unknown: every tensor of the '
        'same shape is loaded, whatever its rows mean (ValueError: no)')
    _, _, left_out = start(['bed', 'chair'], ['chair', 'bed'], another=lambda: Head(2).state_dict())
    assert left_out == (
        'it was trained on 2 (chair, bed), but no tensor of the model depends on num_classes of the config')


def test_heads_of_a_cascade_are_counted():
    model = Config(dict(model=dict(backbone=dict(num_classes=9), rpn_head=dict(num_classes=1), roi_head=dict(
        bbox_head=[dict(num_classes=3), dict(num_classes=3)], mask_head=dict(num_classes=3))))).model
    larger = with_another_class(model)
    heads = larger.roi_head
    assert [head.num_classes for head in (*heads.bbox_head, heads.mask_head)] == [4, 4, 4]
    assert (larger.backbone, larger.rpn_head) == (model.backbone, model.rpn_head)
    assert model.roi_head.bbox_head[0].num_classes == 3


def test_whole_modules_are_named_in_short():
    model, tensors = Head(2), Head(2).state_dict()
    for name in ('fc_cls.weight', 'fc_cls.bias', 'box.bias'):
        del tensors[name]
    tensors |= {'neck.a.weight': torch.zeros(1), 'neck.b.weight': torch.zeros(1), 'extra': torch.zeros(1)}
    _, left_out = prepare_start(model, dict(state_dict=tensors), 'x.pth')
    assert left_out == (
        '3 tensors are missing (fc_cls.*, box.bias); 3 tensors are not in the model (neck.*, extra). The rest of the '
        'model keeps its initialization')
