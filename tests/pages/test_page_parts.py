"""Parts of the pages: numbers, charts and the choice of pictures."""

import math

import numpy as np
import pytest

from deit_detr.pages.html import line_chart, number, percent, ticks
from deit_detr.pages.report_gallery import choose_images


def test_numbers_are_short():
    assert [number(value) for value in (0, 0.5, 12.345, 1234, 56789, 2.5e6, 2e-5, 0.00015)] == [
        '0', '0.5', '12.3', '1234', '56.8k', '2.5M', '2e-5', '1.5e-4']
    assert percent(0.3021) == '30.2' and percent(math.nan) == percent(None) == '–'


@pytest.mark.parametrize('low, high', [(0, 1), (0, 42.03), (8.3, 8.4), (-3, 2), (1e-6, 2e-4), (200, 800)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks(low, high, 4)
    assert 2 <= len(found) <= 5 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0]) and f'{steps[0]:.0e}'[0] in '125'


def test_chart_interrupts_its_line_where_there_is_no_number():
    chart = line_chart([([1, 2, 3, 4, 5], [1, 2, math.nan, 4, 5])], 'a < b')
    assert chart.count('class="line line-0"') == 1 and 'nan' not in chart
    path = chart.split('line-0" d="')[1].split('"')[0]
    assert path.count('M') == 2 and path.count('L') == 2
    assert 'a &lt; b' in chart
    assert line_chart([(range(10**4), range(10**4))], 'long').count('L') == 299
    assert 'nan' not in line_chart([([], [])], 'empty')


def test_choice_of_images():
    f1 = np.linspace(0, 1, 50)
    chosen = choose_images(f1, np.ones(50), 12)
    assert len(set(chosen.tolist())) == 12 and sorted(chosen) == chosen.tolist()
    assert {0, 1, 2, 3} <= set(chosen.tolist()) and {46, 47, 48, 49} <= set(chosen.tolist())
    assert 4 < chosen[5] < 45
    ties = choose_images(np.ones(9), np.arange(9), 3)
    assert 8 in ties, 'of images with equal F1, those with more boxes'
    for size in range(12):
        assert len(choose_images(f1, np.ones(50), size)) == size
    assert choose_images(f1, np.ones(50), 50).tolist() == list(range(50))
