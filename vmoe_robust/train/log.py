"""Metrics of past steps, read back late so that the device never waits."""

import math
import time

import jax
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.mesh.hardware import peak_flops
from vmoe_robust.models import flops
from vmoe_robust.report.metric_writer import MetricWriter
from vmoe_robust.report.progress import Progress

# Seconds between readings, if `config.train.log_every` steps take longer.
_READ_EVERY = 1.0


class Log:
  """Writes metrics, shows progress and notices when training diverges."""

  def __init__(
    self,
    config: ConfigDict,
    writer: MetricWriter | None,
    progress: Progress | None,
  ):
    """Starts; `writer` and `progress` are None but on the first process."""
    self._config, self._writer, self._progress = config, writer, progress
    self._pending: list[tuple[int, dict]] = []
    self._laps: list[tuple[float, int]] = []  # time and step at each reading
    self._read_at = -math.inf

  def add(self, step: int, metrics: dict):
    """Takes a step's metrics; now and then reads those of the steps before.

    Raises:
      UserError: the loss or the gradient of one was not finite.
    """
    self._pending.append((step, metrics))
    due = time.perf_counter() > self._read_at + _READ_EVERY
    if due or len(self._pending) > self._config.train.log_every:
      self._read(self._pending[:-1])
      self._pending = self._pending[-1:]

  def drain(self):
    """Waits for all steps; raises as `add` does."""
    self._read(self._pending)
    self._pending = []

  def write(self, step: int, metrics: dict[str, float]):
    """Writes metrics that are there already."""
    if self._writer:
      self._writer.write(step, metrics)

  def rate(self) -> float | None:
    """Images a second since the first reading; None before a second one."""
    if len(self._laps) < 2:
      return None
    (t0, s0), (t1, s1) = self._laps[0], self._laps[-1]
    return (s1 - s0) * self._config.train.batch_size / (t1 - t0)

  def _read(self, pending):
    if not pending:
      return
    found = [
      {name: float(value) for name, value in metrics.items()}
      for metrics in jax.device_get([metrics for _, metrics in pending])
    ]
    for (step, _), metrics in zip(pending, found, strict=True):
      for name in ('loss', 'gradient_norm'):
        if not math.isfinite(metrics[name]):
          raise UserError(_diverged(step, name, metrics[name]))
    self._read_at = time.perf_counter()
    self._laps.append((self._read_at, pending[-1][0]))
    every, total = self._config.train.log_every, self._config.train.steps
    for (step, _), metrics in zip(pending, found, strict=True):
      if step % every == 0 or step in (1, total):
        self.write(step, metrics | self._speed())
    if self._progress:
      last = found[-1]
      text = f'loss {last["loss"]:.3f}, accuracy {last["accuracy"]:.3f}'
      images = len(pending) * self._config.train.batch_size
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
      image = 3 * flops.forward(model, size, model.channels)
      out['mfu'] = rate * image / (peak * jax.device_count())
    return out


def _diverged(step: int, name: str, value: float) -> str:
  return (
    f'{name} is {value} at step {step}, and nothing is saved of it. Start '
    'again from the last good checkpoint, with a lower '
    'config.train.optimizer.learning_rate, more '
    'config.train.optimizer.warmup_steps, a lower '
    'config.train.optimizer.clip_norm or '
    "config.model.compute_dtype='float32'"
  )
