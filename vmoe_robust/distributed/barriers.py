"""Where background threads of a pod's processes wait for each other."""

import contextlib

import jax
from jax._src import distributed  # barriers and the store have no public name


class Barriers:
  """A row of barriers that all processes come to, each in a thread.

  Collectives belong to the main threads. And here a process that fails does
  not leave the others waiting: it comes to the next barrier to say so.
  """

  def __init__(self, name: str):
    """All processes name it alike, and no two rows in a run."""
    self._name, self._place, self._over = f'vmoe_robust/{name}', 0, False

  def wait(self, seconds: float) -> None:
    """Until all are here.

    Raises:
      RuntimeError: one of them failed, or did not come in time.
    """
    if jax.process_count() == 1:
      return
    self._come(seconds)
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # no news
      news = _client().key_value_try_get(self._news(self._place))
      self._over = True
    if self._over:
      raise RuntimeError(news)

  def fail(self, reason: str, seconds: float) -> None:
    """Tells the others why there is no point in going on."""
    if jax.process_count() == 1 or self._over:
      return
    # Of the barrier where all then learn it: one that still looks for news of
    # the last barrier must not leave before it.
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # or another did
      text = f'process {jax.process_index()}: {reason}'
      _client().key_value_set(self._news(self._place + 1), text)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._come(seconds)

  def _news(self, place):
    return f'{self._name}/news/{place}'

  def _come(self, seconds):
    self._place += 1
    key = f'{self._name}/{self._place}'
    _client().wait_at_barrier(key, int(1000 * seconds))


def _client():
  return distributed.global_state.client
