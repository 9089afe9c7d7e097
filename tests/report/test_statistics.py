import numpy as np
import pytest
from scipy import stats

from vmoe_robust.report import statistics


@pytest.mark.parametrize(
  ('right', 'low', 'high'),
  # Of none and of all, a bound is the share itself; 81 of 263 is the example
  # of Newcombe (1998), table I.
  [(0, 0, 0.1611), (20, 0.8389, 1), (81, 0.2553, 0.3662)],
)
def test_interval_is_wilsons_and_within_bounds(right, low, high):
  count = 263 if right == 81 else 20
  found = statistics.wilson(np.arange(count) < right)
  np.testing.assert_allclose(found, (low, high), atol=1e-4)
  assert found[0] >= 0 and found[1] <= 1


def test_a_rate_says_its_interval_and_its_images():
  found = statistics.rate(np.arange(20) < 20)
  assert found['value'] == 1 and found['n'] == 20
  assert found['interval'] == statistics.wilson(np.ones(20, bool))


@pytest.mark.filterwarnings('error')
def test_of_no_images_nothing_is_known():
  nothing = {'value': None, 'interval': None, 'n': 0}
  assert statistics.rate(np.zeros(0, bool)) == nothing
  assert statistics.mean(np.zeros(0)) == nothing
  assert statistics.mean(np.zeros(0), statistics.SHARE) == nothing
  none = np.zeros(0, bool)
  assert statistics.paired(none, none)['difference'] == nothing


def test_bootstrap_agrees_with_the_normal_interval_of_many_images():
  values = np.random.default_rng(1).normal(3, 2, 4000)
  found = statistics.mean(values)
  half = stats.norm.ppf(0.975) * values.std() / np.sqrt(4000)
  np.testing.assert_allclose(
    found['interval'], (values.mean() - half, values.mean() + half), atol=0.01
  )
  assert found == statistics.mean(values)  # the same draws each time


def test_means_without_an_interval():
  assert statistics.mean(np.full(5, 0.5))['interval'] is None
  assert statistics.mean(np.ones(1)) == dict(value=1.0, interval=None, n=1)
  found = statistics.mean(np.array([1.0, np.inf]))
  assert found == dict(value=None, interval=None, n=2)


@pytest.mark.parametrize(
  'value, low, high', [(0, 0, 1), (1, 0, 1), (0.25, -1, 1)]
)
def test_means_of_values_that_are_all_alike_are_not_exact(value, low, high):
  found = statistics.mean(np.full(20, value), (low, high))
  # So large a share of others, at either end, is not told from none.
  others = statistics.wilson(np.zeros(20, bool))[1]
  expected = (
    (1 - others) * value + others * low,
    (1 - others) * value + others * high,
  )
  np.testing.assert_allclose(found['interval'], expected)
  assert found['value'] == value
  if value in (0, 1):  # as the share of images that it is
    wilson = statistics.wilson(np.full(20, value, bool))
    np.testing.assert_allclose(found['interval'], wilson)


def test_pairs_are_compared_image_by_image():
  # 3 right under both, 5 under the first alone, 1 under the second, 1 neither.
  first = np.array([1] * 8 + [0] * 2, bool)
  second = np.array([1] * 3 + [0] * 5 + [1, 0], bool)
  found = statistics.paired(first, second)
  counts = [found[k] for k in ('both', 'only_first', 'only_second', 'neither')]
  assert counts == [3, 5, 1, 1]
  assert found['difference']['value'] == pytest.approx(0.4)
  low, high = found['difference']['interval']
  assert low < 0.4 < high
  # McNemar's exact test: twice the chance of at most 1 head in 6 throws.
  assert found['p'] == pytest.approx(2 * (1 + 6) / 2**6)
  same = statistics.paired(first, first)
  assert same['p'] == 1 and same['difference']['value'] == 0
  # Wilson's bound of none in 10: z^2 / (10 + z^2).
  bound = 1.959964**2 / (10 + 1.959964**2)
  assert same['difference']['interval'] == pytest.approx((-bound, bound))
  found = statistics.paired(np.ones(10, bool), np.zeros(10, bool))
  interval = found['difference']['interval']
  assert interval == pytest.approx((1 - 2 * bound, 1))


def test_over_seeds_by_hand():
  rate = lambda value: {'value': value, 'interval': [0.1, 0.2], 'n': 9}
  whole = statistics.over_seeds([rate(0.5), rate(0.7)], (-9, 9))
  assert whole['value'] == pytest.approx(0.6)
  # The standard error is 0.1, and Student's t of one degree 12.7062.
  assert whole['interval'] == pytest.approx([0.6 - 1.27062, 0.6 + 1.27062])
  assert (whole['n'], whole['over']) == (2, 'seeds')
  cut = statistics.over_seeds([rate(0.5), rate(0.7)], statistics.SHARE)
  assert cut['interval'] == [0, 1]
  one = statistics.over_seeds([rate(0.5)], statistics.SHARE)
  assert one == {'value': 0.5, 'interval': [0.1, 0.2], 'n': 1, 'over': 'images'}
  alike = statistics.over_seeds([rate(0.5)] * 3, statistics.SHARE)
  assert alike == {'value': 0.5, 'interval': None, 'n': 3, 'over': 'seeds'}
  for unknown in ([], [rate(0.5), rate(None)]):
    assert statistics.over_seeds(unknown, statistics.SHARE)['value'] is None


def test_rank_correlation_by_hand():
  found = statistics.rank_correlation([1, 2, 3, 4, 5], [10, 20, 40, 30, 50])
  # 1 - 6 x (1 + 1) / (5 x 24)
  assert found['value'] == pytest.approx(0.9) and found['n'] == 5
  # Of 120 pairings 1 + 4 are as far to each side.
  assert found['p'] == pytest.approx(10 / 120, abs=0.01)
  half = 1.959964 * ((1 + 0.9**2 / 2) / 2) ** 0.5
  ends = np.tanh(np.arctanh(0.9) + np.array([-half, half]))
  assert found['interval'] == pytest.approx(ends.tolist())
  assert statistics.rank_correlation([1, 2, 2], [5, 9, 9])['value'] == 1


def test_rank_correlation_within_groups():
  first, second = [1, 2, 3, 7, 8, 9], [3, 2, 1, 9, 8, 7]
  found = statistics.rank_correlation(first, second, list('aaabbb'))
  assert found['value'] == -1 and found['interval'] is None
  assert found['p'] == pytest.approx(2 / 36, abs=0.01)
  # A group of one thing says nothing, and takes no freedom from the others.
  one = statistics.rank_correlation([*first, 5], [*second, 1], list('aaabbbc'))
  assert one['value'] == -1 and one['p'] == pytest.approx(2 / 36, abs=0.01)
  some = statistics.rank_correlation([1, 2, 3, 4, 5, 9], [1, 3, 2, 5, 4, 9])
  with_one = statistics.rank_correlation(
    [1, 2, 3, 4, 5, 9, 7], [1, 3, 2, 5, 4, 9, 7], list('aaaaaab')
  )
  assert with_one == some and some['n'] == 6


@pytest.mark.parametrize(
  ('first', 'second', 'groups'),
  [
    ([], [], None),
    ([1, 2], [1, 2], None),
    ([1, 1, 1], [1, 2, 3], None),
    ([1, 2, 3], [5, 5, 5], None),
    ([1, 2, 3], [1, 2, 3], ['a', 'b', 'c']),
    # One pair, beside things that say nothing.
    ([1, 2, 3, 4], [1, 2, 3, 4], ['a', 'a', 'b', 'c']),
    ([1, 2, 0, 0, 0], [1, 2, 1, 2, 3], ['a', 'a', 'b', 'b', 'b']),
  ],
)
def test_no_correlation_is_known(first, second, groups):
  found = statistics.rank_correlation(first, second, groups)
  pair = bool(groups) and groups[:2] == ['a', 'a']
  n = 2 if pair or len(first) == 2 else 0
  assert found == {'value': None, 'interval': None, 'n': n, 'p': None}


def test_a_group_of_one_number_does_not_water_down_the_others():
  """A dense model has no gate term: it is 0 in each of its trainings."""
  own, nothing = [1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5
  found = statistics.rank_correlation(own, own, ['moe'] * 5)
  assert found['value'] == 1 and found['n'] == 5
  groups = ['moe'] * 5 + ['dense'] * 5
  for first, second in ((nothing, own), (own, nothing)):
    again = statistics.rank_correlation(own + first, own + second, groups)
    assert again == found
