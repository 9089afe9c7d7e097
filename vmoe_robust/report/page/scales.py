"""Axes: where a number is drawn, and which numbers are written beside it."""

import dataclasses
import math
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Scale:
  """Numbers from `low` to `high`, drawn from `begin` to `end`."""

  low: float
  high: float
  begin: float
  end: float
  step: float  # between ticks
  is_rate: bool

  def __call__(self, value: float) -> float:
    """Where a number is drawn; what is beyond an end, at that end."""
    share = (value - self.low) / (self.high - self.low)
    return self.begin + min(max(share, 0), 1) * (self.end - self.begin)

  @property
  def ticks(self) -> list[tuple[float, str]]:
    """Round numbers and their text."""
    first = math.ceil(self.low / self.step - 1e-6)
    last = math.floor(self.high / self.step + 1e-6)
    found = [number * self.step for number in range(first, last + 1)]
    times, unit = (100, '%') if self.is_rate else (1, '')
    digits = 4  # and more where these would say other numbers
    while any(
      abs(float(f'{v:.{digits}g}') - v) > self.step / 10 for v in found
    ):
      digits += 1
    return [(value, f'{value * times:.{digits}g}{unit}') for value in found]


def scale(
  values: Iterable[float | None],
  begin: float,
  end: float,
  is_rate: bool = False,
) -> Scale:
  """A scale that has all values that are known and finite."""
  known = [v for v in values if v is not None and math.isfinite(v)] or [0, 1]
  low, high = float(min(known)), float(max(known))
  if high - low < 1e-9 * max(abs(low), abs(high), 1e-3):
    around = abs(low) / 10 or 0.1
    ends = (min(low, 0), max(high, 1)) if is_rate else (-math.inf, math.inf)
    low, high = max(low - around, ends[0]), min(high + around, ends[1])
  step = _round((high - low) / 4)
  if step * math.floor(low / step) >= low - step / 3:
    low = step * math.floor(low / step)
  if step * math.ceil(high / step) <= high + step / 3:
    high = step * math.ceil(high / step)
  return Scale(low, high, begin, end, step, is_rate)


def _round(step: float) -> float:
  """1, 2, 2.5 or 5 times a power of ten, not below `step`."""
  power = 10 ** math.floor(math.log10(step))
  return next(
    times * power for times in (1, 2, 2.5, 5, 10) if times * power >= step
  )
