"""Programs that take turns, so that a busy machine slows them all alike."""

import statistics
import time
from collections.abc import Callable

# The least time between two readings of the clock, in seconds.
_LONG_ENOUGH = 0.2


def interleave(
  runs: dict[str, Callable[[], None]], rounds: int
) -> dict[str, list[float]]:
  """CPU-seconds of the process that a call takes, round by round.

  A round calls each program in turn, several times if it is short. A first
  round warms up and does not count.
  """
  for run in runs.values():
    _seconds(run, 1)
  times = {
    name: max(1, round(_LONG_ENOUGH / max(_seconds(run, 1), 1e-6)))
    for name, run in runs.items()
  }
  found = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      found[name].append(_seconds(run, times[name]))
  return found


def ratio(found: dict[str, list[float]], name: str, reference: str) -> float:
  """The median over the rounds of one program's time to another's."""
  pairs = zip(found[name], found[reference], strict=True)
  return statistics.median(a / b for a, b in pairs)


def _seconds(run, times):
  begin = time.process_time()
  for _ in range(times):
    run()
  return (time.process_time() - begin) / times
