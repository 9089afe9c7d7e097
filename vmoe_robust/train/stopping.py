"""Leaving a run in order when the machine is taken away."""

import signal
import sys

import jax
from jax.experimental import multihost_utils


class Stopping:
  """Whether SIGTERM or an interrupt asked the run to stop, on any host.

  A second signal ends the process as usual.
  """

  def __enter__(self):
    self._asked, self._before = False, {}
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def __call__(self, step: int) -> bool:
    """Whether to stop after this step, the same answer on every host."""
    if jax.process_count() > 1:
      # The coordination service has caught the signal of whichever host.
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def at_once(self, message: str):
    """From now on a signal ends the program with a message, in good order.

    For work that has nothing to save and starts again from its beginning.
    """

    def leave(*_):
      print(message, flush=True)
      sys.exit(0)

    if self._asked:
      leave()
    for number in self._before:
      signal.signal(number, leave)

  def _ask(self, number, _):
    self._asked = True
    signal.signal(number, self._before[number])
