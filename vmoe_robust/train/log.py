"""Metrics of past steps, read back late so that the device never waits."""

import math
import time
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from vmoe_robust.cost.hardware import peak_flops
from vmoe_robust.errors import BadState
from vmoe_robust.models import flops
from vmoe_robust.report.metric_writer import MetricWriter
from vmoe_robust.report.progress import Progress
from vmoe_robust.report.terminal import say
from vmoe_robust.train.load import Loads
from vmoe_robust.train.objective import forward_passes

# Seconds between readings, if `config.train.log_every` steps take longer.
_READ_EVERY = 1.0
# Steps in flight: enough to keep the device busy, few enough that a run which
# is asked to stop does so soon.
_AHEAD = 2


class Log:
  """Writes metrics, shows progress and notices when training diverges."""

  def __init__(
    self,
    config: ConfigDict,
    last_good: Callable[[], str | None],
    writer: MetricWriter | None,
    progress: Progress | None,
    loads: Loads,
  ):
    """Starts.

    Args:
      config: the whole configuration.
      last_good: the path of the newest checkpoint, None without one.
      writer: None but on the first process.
      progress: None but on the first process.
      loads: of experts, since the line before.
    """
    self._config, self._last_good = config, last_good
    self._writer, self._progress = writer, progress
    # The last step of each program, how many it took, and their metrics.
    self._pending: list[tuple[int, int, dict]] = []
    self._mark: tuple[float, int] | None = None  # time and step of a reading
    self._seconds, self._steps = 0.0, 0  # between readings
    self._loads = loads

  def add(self, step: int, metrics: dict, steps: int = 1) -> None:
    """Takes metrics of steps; now and then reads those of the steps before.

    Args:
      step: the last of them.
      metrics: scalars of one step, or arrays whose first axis is the steps,
        and may be longer.
      steps: how many they are.

    Raises:
      BadState: the loss or the gradient of one was not finite.
    """
    self._pending.append((step, steps, metrics))
    jax.block_until_ready(self._pending[:-_AHEAD])
    waiting = sum(steps for _, steps, _ in self._pending)
    due = waiting > self._config.train.log_every
    if jax.process_count() == 1:  # several must find a divergence together
      since = self._mark[0] if self._mark else -math.inf
      due |= time.perf_counter() > since + _READ_EVERY
    if due:
      self._read(self._pending[:-1])
      self._pending = self._pending[-1:]

  def drain(self) -> None:
    """Waits for all steps; raises as `add` does."""
    self._read(self._pending)
    self._pending = []

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes metrics that are there already."""
    if self._writer:
      self._writer.write(step, metrics)

  def pause(self) -> None:
    """What happens until the next reading is not training's time."""
    self._mark = None

  def rate(self) -> float | None:
    """Images a second since the first reading; None before a second one."""
    if not self._steps:
      return None
    return self._steps * self._config.train.batch_size / self._seconds

  def _read(self, pending):
    if not pending:
      return
    found = _by_step(pending)
    for step, metrics in found.items():
      for name in ('loss', 'gradient_norm', 'update_norm'):
        if not math.isfinite(metrics[name]):
          raise BadState(self._diverged(step, name, float(metrics[name])))
    now, step = time.perf_counter(), pending[-1][0]
    if self._mark:
      self._seconds += now - self._mark[0]
      self._steps += step - self._mark[1]
    self._mark = now, step
    every, total = self._config.train.log_every, self._config.train.steps
    for step, metrics in found.items():
      metrics = self._loads.take(metrics)
      if step % every == 0 or step in (1, total):
        self.write(step, metrics | self._speed() | self._load(step))
    if self._progress:
      last = found[pending[-1][0]]
      text = f'loss {last["loss"]:.3f}'
      for name in ('accuracy', 'adversarial_accuracy'):
        if name in last:
          text += f', {name.replace("_", " ")} {last[name]:.3f}'
      images = len(found) * self._config.train.batch_size
      self._progress.update(pending[-1][0], images, text)

  def _speed(self) -> dict[str, float]:
    """Speed and, where the device's peak is known, model FLOPs utilisation."""
    rate = self.rate()
    if rate is None:
      return {}
    out = {'images_per_second': rate}
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak:
      model, size = self._config.model, self._config.data.image_size
      passes = forward_passes(self._config.train.objective)
      image = passes * flops.forward(model, size, model.channels)
      out['mfu'] = rate * image / (peak * jax.device_count())
    return out

  def _load(self, step: int) -> dict[str, float]:
    """The load of each expert; says so if one starves."""
    values, text = self._loads.report(step > 1)  # when nothing is learnt yet
    if text:
      if self._progress:
        self._progress.close()  # it comes back
      say(f'step {step}: {text}')
    return values

  def _diverged(self, step: int, name: str, value: float) -> str:
    good = self._last_good()
    way = 'no checkpoint is saved yet; start again'
    if good:
      way = (
        f'the last good checkpoint is {good}; start from it '
        f'(--config.init_from={good}) in another --workdir'
      )
    return (
      f'{name} is {value} at step {step}, which is not saved; {way} with a '
      'lower config.train.optimizer.learning_rate, more .warmup_steps, a '
      "lower .clip_norm or config.model.compute_dtype='float32'"
    )


def _by_step(pending: list[tuple[int, int, dict]]) -> dict[int, dict]:
  """The metrics of each step, as NumPy has them."""
  found = {}
  values = jax.device_get([metrics for _, _, metrics in pending])
  for (last, steps, _), metrics in zip(pending, values, strict=True):
    many = np.ndim(metrics['loss']) > 0  # of several steps in one program
    for i in range(steps):
      of_one = {name: x[i] if many else x for name, x in metrics.items()}
      found[last - steps + 1 + i] = of_one
  return found
