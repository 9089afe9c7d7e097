"""Where the names of lines stand beside them."""

from collections.abc import Sequence


def apart(
  places: Sequence[float], low: float, high: float, gap: float
) -> list[float]:
  """Places at least `gap` apart, as near as can be to those given.

  They stay between `low` and `high` if there is room, else they go below `low`.
  """
  order = sorted(range(len(places)), key=places.__getitem__)
  out, last = list(places), low - gap
  for i in order:
    out[i] = last = max(places[i], last + gap)
  above = high + gap
  for i in reversed(order):
    out[i] = above = min(out[i], above - gap)
  return out
