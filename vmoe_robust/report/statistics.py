"""Estimates with their 95% intervals, as every result has them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Num
from scipy import special  # scipy.stats takes half a second

LEVEL = 0.95
# Between which numbers a share lies, and a share less another one.
SHARE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)
# How often images are drawn again, and how many numbers are drawn at a time.
RESAMPLES = 1000
_AT_A_TIME = 4_000_000
# Of which the p of a correlation is.
_PAIRINGS = 9_999

# {'value': float, 'interval': [low, high], 'n': images}
Estimate = dict[str, Any]


def rate(right: Bool[np.ndarray, 'images']) -> Estimate:
  """A share of the images, with Wilson's score interval.

  Wilson 1927; Newcombe 1998, method 3. Of no images both are null.
  """
  if not len(right):
    return {'value': None, 'interval': None, 'n': 0}
  value = float(np.mean(right))
  return {'value': value, 'interval': wilson(right), 'n': len(right)}


def mean(
  values: Num[np.ndarray, 'images'], limits: tuple[float, float] | None = None
) -> Estimate:
  """A mean over images, with a percentile bootstrap interval over images.

  Where all images have the same value, each draw of the bootstrap would be the
  same, and no width would say that the mean is exact. With `limits` the
  interval then reaches as far as other images could move the mean, if their
  share is Wilson's bound on what none of so many images shows.

  Args:
    values: one an image.
    limits: between which numbers each value lies, such as `SHARE`.

  Returns:
    'value', null of none and where one is not finite; 'interval', null then, of
    fewer than two images, and of values that are all alike without `limits`;
    'n' (images).
  """
  values = np.asarray(values, np.float64)
  if not len(values) or not np.isfinite(values).all():
    return {'value': None, 'interval': None, 'n': len(values)}
  interval = None
  if len(values) > 1 and (values != values[0]).any():
    interval = bootstrap(values)
  elif len(values) > 1 and limits:
    interval = _of_alike(values, limits)
  return {
    'value': float(values.mean()),
    'interval': interval,
    'n': len(values),
  }


def over_seeds(
  estimates: Sequence[Estimate], limits: tuple[float, float]
) -> Estimate:
  """The mean over seeds, with its 95% interval.

  Of several seeds it is Student's interval of the seeds' means: where the mean
  of other seeds is expected. Of one seed it is the estimate's own, over images.

  Args:
    estimates: one a seed.
    limits: to which the interval is cut, such as `SHARE`.

  Returns:
    'value', 'interval', 'n' (seeds), and 'over': 'seeds' or 'images'. The value
    is null where one of them is, the interval too; and also where all seeds
    have the same value, for no width would say that it is exact.
  """
  values = [one['value'] for one in estimates]
  if None in values or not values:
    return {'value': None, 'interval': None, 'n': len(values), 'over': 'seeds'}
  if len(values) == 1:
    return {
      'value': values[0],
      'interval': estimates[0]['interval'],
      'n': 1,
      'over': 'images',
    }
  value = float(np.mean(values))
  interval = None
  if len(set(values)) > 1:
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = error * float(special.stdtrit(len(values) - 1, (1 + LEVEL) / 2))
    low, high = value - half, value + half
    interval = [max(low, limits[0]), min(high, limits[1])]
  return {
    'value': value,
    'interval': interval,
    'n': len(values),
    'over': 'seeds',
  }


def rank_correlation(
  first: Sequence[float],
  second: Sequence[float],
  groups: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Spearman's rank correlation, and whether chance alone would give it.

  With groups it is the correlation within them: numbers are ranked in their
  group, so that what sets one group apart from another does not count. A group
  in which all have the same of either number says nothing, and is left out.

  Args:
    first: a number of each thing, such as a training.
    second: another number of the same things.
    groups: to which each belongs; None: all are of one.

  Returns:
    An estimate: 'n' things, of the groups that count; 'value', null where fewer
    than three of them remain when each further group takes one away;
    'interval', by Bonett and Wright (2000), null where fewer than four remain
    and where the value is 1 or -1. And 'p', two-sided, of 9,999 pairings drawn
    anew, in each group.
  """
  from scipy import stats

  pairs = np.stack([first, second]).astype(np.float64)
  groups = np.array(['one'] * len(first) if groups is None else groups)
  ranked = []
  for group in dict.fromkeys(groups.tolist()):
    ranks = stats.rankdata(pairs[:, groups == group], axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    if ranks.any(1).all():
      ranked.append(ranks)
  n = sum(ranks.shape[1] for ranks in ranked)
  left = n - (len(ranked) - 1)
  if left < 3:
    return {'value': None, 'interval': None, 'n': n, 'p': None}
  a, b = np.concatenate(ranked, axis=1)
  length = float(np.sqrt((a @ a) * (b @ b)))
  value = float(np.clip(a @ b / length, -1, 1))
  interval = None
  if left > 3 and abs(value) < 1:
    half = ((1 + value**2 / 2) / (left - 3)) ** 0.5
    half *= float(special.ndtri((1 + LEVEL) / 2))
    centre = np.arctanh(value)
    interval = [float(np.tanh(centre - half)), float(np.tanh(centre + half))]
  rng, drawn = np.random.default_rng(0), np.zeros(_PAIRINGS)
  for own, other in ranked:
    drawn += rng.permuted(np.tile(own, (_PAIRINGS, 1)), axis=1) @ other
  as_far = np.abs(drawn) >= abs(a @ b) - 1e-9 * length
  p = float((1 + as_far.sum()) / (1 + _PAIRINGS))
  return {'value': value, 'interval': interval, 'n': n, 'p': p}


def paired(
  first: Bool[np.ndarray, 'images'], second: Bool[np.ndarray, 'images']
) -> dict[str, Any]:
  """Two shares on the same images, compared image by image.

  Args:
    first: whether each image is right under one condition.
    second: the same images under another one.

  Returns:
    'both', 'only_first', 'only_second' and 'neither' count images;
    'difference' is the first share less the second, see `mean`; 'p' is that of
    McNemar's exact test (McNemar 1947), 1 where no image differs. Where fewer
    than six images differ, all to one side, the interval of the difference
    leaves out 0 though p is above .05: then p decides.
  """
  first, second = np.asarray(first, bool), np.asarray(second, bool)
  only_first, only_second = (
    int((first > second).sum()),
    int((first < second).sum()),
  )
  differ = only_first + only_second
  # Twice the chance of so few heads in as many throws of a fair coin.
  p = min(1.0, 2 * special.bdtr(min(only_first, only_second), differ, 0.5))
  return {
    'both': int((first & second).sum()),
    'only_first': only_first,
    'only_second': only_second,
    'neither': int((~first & ~second).sum()),
    'difference': mean(first.astype(float) - second, DIFFERENCE),
    'p': float(p),
  }


def _of_alike(values, limits) -> tuple[float, float]:
  value, (least, most) = float(values[0]), limits
  others = wilson(np.zeros(len(values), bool))[1]
  return value - others * (value - least), value + others * (most - value)


def wilson(right: Bool[np.ndarray, 'images']) -> tuple[float, float]:
  """Wilson's 95% interval of a share."""
  n, share = len(right), float(np.mean(right))
  z = float(special.ndtri((1 + LEVEL) / 2))
  centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
  half = (
    z / (1 + z**2 / n) * (share * (1 - share) / n + (z / n) ** 2 / 4) ** 0.5
  )
  # Of none and of all, a bound is the share itself.
  low = centre - half if share > 0 else 0.0
  high = centre + half if share < 1 else 1.0
  return low, high


def bootstrap(values: Num[np.ndarray, 'images']) -> tuple[float, float]:
  """The percentile bootstrap's 95% interval of a mean over images.

  The same images are drawn each time, so that the same values have the same
  interval.
  """
  rng, n = np.random.default_rng(0), len(values)
  batch = max(_AT_A_TIME // n, 1)
  means = [
    values[rng.integers(0, n, (min(batch, RESAMPLES - done), n))].mean(-1)
    for done in range(0, RESAMPLES, batch)
  ]
  tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
  low, high = np.quantile(np.concatenate(means), tails)
  return float(low), float(high)
