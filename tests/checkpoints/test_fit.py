"""A checkpoint of another model is refused with what differs and what to do."""

import re

import pytest
import torch

from deit_detr.checkpoints.fit import check_fit, check_trained_classes, load_weights
from deit_detr.errors import UserError

OWN = {'a.weight': torch.zeros(2, 3), 'a.bias': torch.zeros(2), 'pos_embed': torch.zeros(1, 5)}
CONFIG = 'Use the config that it was trained with'


@pytest.mark.parametrize('saved, options, message', [
    ({'a.bias': OWN['a.bias'], 'pos_embed': OWN['pos_embed']}, {}, f'1 tensors are missing (a.weight). {CONFIG}'),
    (OWN | dict(b=torch.zeros(1)), {}, f'1 tensors are not in the model (b). {CONFIG}'),
    ({key: torch.zeros(7) for key in OWN}, {},
     'does not fit the model: 3 tensors are of another shape (a.weight (7,) instead of (2, 3), a.bias (7,)'),
    ({f'module.model.{key}': value for key, value in OWN.items()}, {}, "Its names begin with 'module.model.': save"),
    ({f'backbone.{key}': value for key, value in OWN.items()}, dict(prefix='encoder.', least=0.5),
     "init_cfg.prefix has to be 'backbone.' and is 'encoder.'"),
    ({'bbox_head.transformer.x': torch.zeros(1)}, {}, 'convert it with tools/model_converters/mmdet2x_to_3x.py'),
    ({'blocks.0.norm1.weight': torch.zeros(1)}, {}, 'convert it with tools/model_converters/deit_to_mmpretrain'),
    ({'a.bias': OWN['a.bias']}, dict(least=0.5, part='model.neck', remedy='Do this'),
     'does not fit model.neck: 2 tensors are missing (a.weight, pos_embed). Do this'),
])
def test_misfits_are_named_with_the_fix(saved, options, message):
    with pytest.raises(UserError, match=f'^x.pth: .*{re.escape(message)}'):
        check_fit(OWN, saved, 'x.pth', **options)


def test_what_fits_passes():
    check_fit(OWN, OWN, 'x.pth')
    saved = {f'backbone.{key}': value for key, value in OWN.items()} | {'backbone.a.bias': torch.zeros(9)}
    check_fit(OWN, saved | dict(head=torch.zeros(1)), 'x.pth', prefix='backbone.', least=0.66)


def test_weights_are_loaded_from_every_layout():
    model = torch.nn.Linear(3, 2)
    tensors = {f'module.{key}': torch.full_like(value, 7) for key, value in model.state_dict().items()}
    load_weights(model, dict(state_dict=tensors), 'x.pth')
    assert all((value == 7).all() for value in model.state_dict().values())


def test_classes_are_compared_in_order():
    checkpoint = dict(meta=dict(dataset_meta=dict(classes=['cup', 'fork'])))
    check_trained_classes(checkpoint, 'x.pth', ('cup', 'fork'), 'field')
    check_trained_classes(dict(state_dict={}), 'x.pth', ('spoon',), 'field')
    with pytest.raises(UserError, match=r'^x.pth: was trained on 2 \(cup, fork\), but field has 2 \(fork, cup\). Set'):
        check_trained_classes(checkpoint, 'x.pth', ('fork', 'cup'), 'field')
