"""Where background threads of a pod's processes wait for each other."""

import contextlib

import jax
from jax._src import distributed  # barriers and the store have no public name


class Meeting:
  """A row of meetings that all processes attend, each in a thread.

  Collectives belong to the main threads. And here a process that fails does
  not leave the others waiting: it comes to the next meeting to say so.
  """

  def __init__(self, name: str):
    """All processes name it alike, and no two meetings in a run."""
    self._name, self._place, self._over = f'vmoe_robust/{name}', 0, False

  def wait(self, seconds: float):
    """Until all are here.

    Raises:
      RuntimeError: one of them failed, or did not come in time.
    """
    if jax.process_count() == 1:
      return
    self._come(seconds)
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # no news
      news = _client().key_value_try_get(self._name)
      self._over = True
    if self._over:
      raise RuntimeError(news)

  def fail(self, reason: str, seconds: float):
    """Tells the others why there is no point in going on."""
    if jax.process_count() == 1 or self._over:
      return
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # or another did
      text = f'process {jax.process_index()}: {reason}'
      _client().key_value_set(self._name, text)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._come(seconds)

  def _come(self, seconds):
    self._place += 1
    key = f'{self._name}/{self._place}'
    _client().wait_at_barrier(key, int(1000 * seconds))


def _client():
  return distributed.global_state.client
