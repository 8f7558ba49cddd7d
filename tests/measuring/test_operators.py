"""A training step asks the device for few operators, whatever the batch, and hardly ever waits for it."""

import pytest
import torch

from deit_detr.measuring.operators import OperatorCounter, count_operators
from deit_detr.measuring.variants import Variant, make_step
from tests.helpers.paths import REPO

RECIPES = (
    'detr-fast_deit-tiny_8xb1-150e', 'lw-detr_deit-tiny_8xb4-12e', 'ec-detr_deit-tiny_8xb4-12e',
    'dino_deit-tiny_8xb2-12e', 'deformable-detr_deit-tiny_8xb2-12e', 'conditional-detr_deit-tiny_8xb2-12e',
    'dab-detr_deit-tiny_8xb2-12e')


@pytest.mark.slow
@pytest.mark.parametrize('recipe', RECIPES)
def test_a_training_step_has_few_operators(recipe):
    """Also the first step, in which the optimizer makes its state. The number does not depend on the images' size."""
    counts = []
    for batch, padded in ((2, False), (8, False), *[(2, True)] * (recipe[:4] in ('lw-d', 'ec-d', 'dino'))):
        step = make_step(Variant(
            name=recipe, task='train', config=str(REPO / f'projects/deit_detr/configs/{recipe}_scannet.py'),
            batch=batch, size=(160, 160), amp=True, padded=padded))
        counts.append(count_operators(step))
    assert abs(counts[1].operators - counts[0].operators) <= 20
    assert max(count.operators for count in counts) <= 4500
    assert [count.reads for count in counts[:2]] == [1, 1], 'of the gradient norm'
    assert all(count.reads == 2 for count in counts[2:]), 'also of the sizes of the images, which are on the host'


def test_what_is_counted():
    x = torch.ones(3, 4, requires_grad=True)
    with OperatorCounter() as counter:
        y = x.t().reshape(2, 6).to(torch.bfloat16) * 2  # transpose and reshape: a view and a copy
        y.float().sum().backward()
        float(y[0, 0].detach())
    assert counter.names['mul'] == 2 and counter.names['t'] >= 1
    counts = counter.counts()
    assert counts.casts == 4 and counts.reads == 1
    assert counts.operators < sum(counter.names.values())
