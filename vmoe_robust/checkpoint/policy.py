"""When a run saves, and which checkpoints stay."""

import math
import time

import jax

from vmoe_robust.config import ConfigDict
from vmoe_robust.distributed import agreed

# On several processes the first one's clock counts, and every so many steps it
# is asked, because the others wait for the answer.
ASK_EVERY = 20


class Schedule:
  """Says when `config.save` wants a checkpoint."""

  def __init__(self, save: ConfigDict):
    self._every, self._seconds = save.every_steps, 60 * save.every_minutes
    self.saved()

  def saved(self) -> None:
    """Starts the minutes anew."""
    self._last = time.monotonic()

  def __call__(self, step: int) -> bool:
    """Whether to save after this step, the same answer on every process."""
    if self._every and step % self._every == 0:
      return True
    several = jax.process_count() > 1
    if not self._seconds or (several and step % ASK_EVERY):
      return False
    return bool(agreed(time.monotonic() >= self._last + self._seconds))


def score(name: str, metrics: dict[str, float]) -> float:
  """How good a metric is, higher being better; -inf if it was not measured."""
  value = metrics.get(name, math.nan)
  if math.isnan(value):
    return -math.inf
  return -value if name.endswith('loss') else value


def surplus(
  save: ConfigDict, steps: list[int], best_step: int | None
) -> list[int]:
  """Which of the steps, ascending, need not keep their checkpoints."""
  stay = {*steps[-save.keep :], best_step}
  if save.keep_every:
    stay |= {step for step in steps if step % save.keep_every == 0}
  return [step for step in steps if step not in stay]


def best(name: str, metrics: dict[int, dict]) -> int | None:
  """The step with the best metric, the first of equals; None without any."""
  scores = {step: score(name, metrics[step]) for step in sorted(metrics)}
  step = max(scores, key=scores.get, default=None)
  return None if step is None or scores[step] == -math.inf else step
