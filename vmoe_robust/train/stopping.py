"""Leaving a run in order when the machine is taken away."""

import os
import signal
from collections.abc import Iterable, Iterator

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _heard(numbers: Iterable[int]) -> list[int]:
  """All but SIGHUP, of a terminal that is closed, where nohup ignores it."""
  ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  return [n for n in numbers if not (n == signal.SIGHUP and ignored)]


class Stopped(Exception):
  """The run was asked to stop in the middle of something."""


class Stopping:
  """Whether a signal asked the run to stop, on any host.

  A second signal ends the process as usual.
  """

  def __enter__(self):
    self._asked, self._turn = False, 0
    # On several hosts JAX catches SIGTERM, and tells the other hosts.
    ours = _SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
    self._before = {n: signal.signal(n, self._ask) for n in _heard(ours)}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def __call__(self) -> bool:
    """Whether to stop now; all hosts ask equally often and hear the same."""
    self._turn += 1
    if jax.process_count() > 1 and not self._asked:
      self._asked = multihost_utils.reached_preemption_sync_point(self._turn)
    return self._asked

  def check(self) -> None:
    """Raises `Stopped` if it is time to stop."""
    if self():
      raise Stopped

  def between(self, items: Iterable) -> Iterator:
    """The items, with a `check` before each."""
    for item in items:
      self.check()
      yield item

  def at_once(self, message: str) -> None:
    """From now on a signal raises KeyboardInterrupt with a message.

    For work that has nothing to save and starts again from its beginning.
    """

    def leave(*_):
      raise KeyboardInterrupt(message)

    if self._asked:
      leave()
    for number in _heard(_SIGNALS):
      signal.signal(number, leave)

  def _ask(self, number, _):
    signal.signal(number, self._before[number])
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      self._asked = True
