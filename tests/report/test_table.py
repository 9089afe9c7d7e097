import numpy as np
import pytest

from vmoe_robust.report.table import (
  radius,
  radius_axis,
  some_of,
  table,
  written,
)

HEADERS = ['attack', 'eps', 'accuracy']
ROWS = [['none', '', '97.2%'], ['pgd', 0.03, '8.0%'], ['pgd', 0.1, '-']]


def test_numbers_stand_right_and_text_left():
  assert table(HEADERS, ROWS).splitlines() == [
    'attack   eps  accuracy',
    '------  ----  --------',
    'none             97.2%',
    'pgd     0.03      8.0%',
    'pgd      0.1         -',
  ]


@pytest.mark.parametrize(
  ('value', 'unit', 'text'),
  [
    (0.9722, '%', '97.2%'),
    (49_999 / 50_000, '%', '99.998%'),
    (1 / 50_000, '%', '0.002%'),
    (0.0004, '%', '0.04%'),
    (1.0, '%', '100.0%'),
    (1 - 1e-16, '%', '100.0%'),
    (-1e-17, '%', '0.0%'),
    (2.7778, 'points', '+2.8'),
    (-0.04, 'points', '-0.04'),
    (0.0126, 'points', '+0.013'),
    (-0.0004, 'points', '+0.0'),
    (-1e-17, 'points', '+0.0'),
    (-5.5556, 'points', '-5.6'),
    (0.123456, '', '0.123'),
    (1e-12, '', '1e-12'),
  ],
)
def test_numbers_of_figures(value, unit, text):
  assert written(value, unit, 3) == text


def test_no_rows():
  assert table(['a', 'bc'], []) == 'a  bc\n-  --'


@pytest.mark.parametrize(
  ('count', 'most', 'expected'),
  [
    (0, 3, []),
    (3, 3, [0, 1, 2]),
    (5, 3, [0, 2, 4]),
    (6, 3, [1, 3, 5]),
    (26, 5, [1, 7, 13, 19, 25]),
  ],
)
def test_some_of_many_have_equal_steps_and_the_last(count, most, expected):
  assert some_of(range(count), most) == expected


def test_radii_are_of_255_in_linf_alone():
  assert radius('linf', 8 / 255) == radius('linf', 0.0313725) == '8/255'
  assert radius('linf', 0.5 / 255) == '0.5/255'
  assert radius('l2', 0.3) == '0.3'
  assert radius_axis('linf') == (255, 'eps (1/255)')
  assert radius_axis('l2') == (1, 'eps (l2)')


def test_radii_that_may_stand_side_by_side_have_different_names():
  radii = 8 / 255 * (1 + 1.1e-4) ** np.arange(1000)
  for norm in ('linf', 'l2'):
    assert len({radius(norm, eps) for eps in radii}) == len(radii)
