"""A trace of a few steps, as `config.train.profile_steps` asks."""

import pathlib

import jax
from absl import logging
from jaxtyping import PyTree


class Profile:
  """Lets `jax.profiler` watch steps of a loop; a failure is a warning.

  TensorBoard and Perfetto (ui.perfetto.dev) show what it leaves.
  """

  def __init__(self, folder: pathlib.Path, steps: tuple[int, ...]):
    """Does nothing yet.

    Args:
      folder: where the trace goes; not made if no step is watched.
      steps: the first and the last step to watch, or () for none.
    """
    self._folder, self._running = folder, False
    self._first, self._last = steps or (0, 0)

  def before(self, step: int) -> None:
    """Called before a step; a run that resumes inside starts there."""
    if not self._running and self._first <= step <= self._last:
      try:
        # A trace that cannot be written in the end would never end: JAX then
        # refuses all others of the process.
        self._folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(self._folder)
        self._running = True
      except Exception as error:  # of whatever kind: training goes on
        self._give_up(error)

  def after(self, step: int, results: PyTree) -> None:
    """Called after a step with what it gives, which a trace waits for."""
    if self._running and step >= self._last:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Writes the trace if one is running."""
    if not self._running:
      return
    self._running = False
    try:
      jax.profiler.stop_trace()
    except Exception as error:
      self._give_up(error)

  def _give_up(self, error: Exception) -> None:
    self._last = 0
    logging.warning('%s gets no trace: %s', self._folder, error)
