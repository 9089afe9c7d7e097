"""Leaving a run in order when the machine is taken away."""

import os
import signal
import sys

import jax
from jax.experimental import multihost_utils

from vmoe_robust.report.terminal import say

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
  """Whether SIGTERM or an interrupt asked the run to stop, on any host.

  A second signal ends the process as usual.
  """

  def __enter__(self):
    self._asked = False
    # On several hosts JAX catches SIGTERM, and tells the other hosts.
    ours = _SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
    self._before = {n: signal.signal(n, self._ask) for n in ours}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def __call__(self, step: int) -> bool:
    """Whether to stop after this step, the same answer on every host."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def at_once(self, message: str):
    """From now on a signal ends the program with a message, in good order.

    For work that has nothing to save and starts again from its beginning.
    """

    def leave(*_):
      say(message)
      sys.exit(0)

    if self._asked and jax.process_count() == 1:
      leave()
    for number in _SIGNALS:
      signal.signal(number, leave)

  def _ask(self, number, _):
    self._asked = True
    signal.signal(number, self._before[number])
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
