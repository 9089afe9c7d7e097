"""What a single value may be, and how a refusal reads."""

import difflib
import math
import re
from collections.abc import Collection, Iterable

from vmoe_robust.errors import UserError

# Of more choices than this, an error names only the first few.
_NAMED, _FEW = 40, 5
# Of an attack's steps and the like, to which devices add.
MOST_COUNT = 10**9
# No images are so large, and far more would be no number in float32.
_MOST_EPS = 1e9
# Of bytes on the host, and what has a limit of its own.
_LARGE = ('config.data.cache_bytes', 'config.seed')


def choose(field: str, value: str, choices: Iterable[str]) -> str:
  """Returns `value` if it is one of `choices`.

  Raises:
    UserError: it is not; the nearest is named.
  """
  choices = list(choices)
  if value not in choices:
    near = difflib.get_close_matches(str(value), choices, 1, cutoff=0.5)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    few = choices if len(choices) <= _NAMED else choices[:_FEW]
    more = f', ... ({len(choices)} in all)' if len(few) < len(choices) else ''
    raise UserError(
      f'{field}={value!r} is not known{hint}; use one of '
      + ', '.join(repr(c) for c in few)
      + more
    )
  return value


def several(field: str, values: Collection, example: str) -> None:
  """Refuses text, nothing, and anything twice."""
  if isinstance(values, str) or not values:
    raise UserError(
      f'{field}={values!r} is no tuple of values; use one such as {example}'
    )
  if len(set(values)) < len(values):
    raise UserError(f'{field}={values} has a value twice; leave one out')


def numbers(field: str, values: Iterable) -> None:
  """Refuses what is not a number."""
  for value in values:
    if not isinstance(value, int | float) or isinstance(value, bool):
      decimal = lambda m: f'{int(m[1]) / int(m[2]):.6g}'
      text = re.sub(r'(\d+) */ *([1-9]\d*)', decimal, str(value))
      hint = text if text != str(value) else 'a number'
      raise UserError(f'{field}={value!r} is not a number; write {hint}')


def positive(field: str, value: int, most: int = 2**31 - 1) -> int:
  """Returns `value` if it is from 1 to `most`; devices count in 31 bits."""
  _finite(field, value)
  if not 1 <= value <= most:
    way = '1 or more' if value < 1 else f'{most} or less'
    raise UserError(f'{field}={value} must be {way}')
  return value


def fits(field: str, value: object) -> None:
  """Refuses a number that devices cannot hold, which have 32 bits for it."""
  if not isinstance(value, int | float) or field in _LARGE:
    return
  if abs(value) < math.inf:
    most = 2**31 - 1 if isinstance(value, int) else 3e38
    between(field, value, -most, most)


def at_least(field: str, value: float, least: float) -> None:
  """Refuses what is less, and what is not finite."""
  _finite(field, value)
  if value < least:
    raise UserError(f'{field}={value} must be {least} or more')


def radius(field: str, eps: float, norm: str) -> None:
  """Refuses what is no radius of a ball of images."""
  if not 0 <= eps <= _MOST_EPS:
    raise UserError(
      f'{field}={eps} is no radius; use 0 or more, such as '
      + ('0.0313725 for 8/255' if norm == 'linf' else '0.5')
    )
  if norm == 'linf' and eps > 1:
    raise UserError(
      f'{field}={eps} is above 1; pixels are in [0, 1], so write 8/255 as '
      '0.0313725'
    )


def _finite(field: str, value: float) -> None:
  if not math.isfinite(value):
    raise UserError(f'{field}={value} is not finite; use a number that is')


def between(field: str, value: float, low: float, high: float) -> None:
  """Refuses what is outside [low, high]."""
  if not low <= value <= high:
    raise UserError(f'{field}={value} must be between {low} and {high}')


def divisors_text(n: int) -> str:
  """The numbers that divide n, the first eight, as a sentence has them."""
  divisors = [d for d in range(1, n + 1) if n % d == 0]
  shown = divisors if len(divisors) < 9 else divisors[:8]
  return re.sub(r', (\d+)$', r' or \1', ', '.join(map(str, shown)))
