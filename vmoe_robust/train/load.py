"""How much each expert is chosen over the steps of a run, and who starves."""

import numpy as np
from jaxtyping import Float

from vmoe_robust.models.balance import PREFIX

# An expert starves with less than this part of an even share.
_STARVES = 0.1


class Loads:
  """Means over the steps between two reports, whatever stops in between."""

  def __init__(self, state: dict | None = None):
    """Goes on from a `state`; from nothing without one."""
    state = state or {'total': {}, 'steps': 0, 'starved': {}}
    self._total: dict[str, Float[np.ndarray, experts]] = {
      name: np.asarray(total) for name, total in state['total'].items()
    }
    self._steps: int = state['steps']
    # By block, as last told.
    self._starved: dict[str, list[int]] = state['starved']

  def state(self) -> dict:
    """What JSON can hold, for a run that resumes."""
    total = {name: load.tolist() for name, load in self._total.items()}
    return dict(total=total, steps=self._steps, starved=self._starved)

  def take(self, metrics: dict) -> dict[str, float]:
    """A step's metrics as numbers, without the loads, which are added up."""
    self._steps += 1
    for name, value in metrics.items():
      if name.startswith(PREFIX):
        load = np.asarray(value, np.float64)
        self._total[name] = self._total.get(name, 0) + load
    rest = (name for name in metrics if not name.startswith(PREFIX))
    return {name: float(metrics[name]) for name in rest}

  def report(self, tells: bool = True) -> tuple[dict[str, float], str]:
    """What came since the last report.

    Args:
      tells: whether to judge who starves.

    Returns:
      The mean load of each expert, 'load/BLOCK/EXPERT', where 1 is an even
      share; and a sentence if others starve than when it last told, else ''.
    """
    steps = max(self._steps, 1)
    mean = {name: total / steps for name, total in self._total.items()}
    self._total, self._steps = {}, 0
    values = {
      f'{name}/{expert}': float(value)
      for name, load in mean.items()
      for expert, value in enumerate(load)
    }
    if not tells:
      return values, ''
    starved = {
      name.removeprefix(PREFIX): np.flatnonzero(load < _STARVES).tolist()
      for name, load in mean.items()
    }
    starved = {block: experts for block, experts in starved.items() if experts}
    changed, self._starved = starved != self._starved, starved
    return values, _sentence(starved) if changed else ''


def _sentence(starved: dict[str, list[int]]) -> str:
  if not starved:
    return 'all experts have a tenth of an even share or more again'
  which = '; '.join(
    f'{", ".join(map(str, experts))} of {block}'
    for block, experts in starved.items()
  )
  return f'experts with less than a tenth of an even share: {which}'
