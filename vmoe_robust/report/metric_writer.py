"""Scalars over steps: JSON lines for programs, event files for TensorBoard."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import SupportsFloat

import tensorboardX

from vmoe_robust.report import results


class MetricWriter:
  """Writes `metrics.jsonl` and `tensorboard/` under a work directory.

  A resumed run repeats the steps since its checkpoint, so what earlier runs
  wrote after `after_step` is dropped from both, as is a line torn by a kill.
  """

  def __init__(self, workdir: str | os.PathLike, after_step: int = -1):
    """Opens the files.

    Args:
      workdir: made if it is not there.
      after_step: the last step to keep; -1 keeps none.

    Raises:
      OSError: the directory cannot be written to.
    """
    path = pathlib.Path(workdir) / 'metrics.jsonl'
    with results.replacing(path) as draft:
      draft.write_text(''.join(_kept_lines(path, after_step)))
    self._lines = path.open('a')
    self._events = tensorboardX.SummaryWriter(
      str(path.parent / 'tensorboard'),
      purge_step=after_step + 1,
      comet_config={'disabled': True},
    )

  def write(self, step: int, metrics: Mapping[str, SupportsFloat]):
    """Writes one line; a value that is not finite becomes null in it."""
    values = {name: float(value) for name, value in metrics.items()}
    self._lines.write(results.to_json({'step': int(step), **values}) + '\n')
    self._lines.flush()
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def flush(self):
    """Hands what is buffered to the operating system."""
    self._lines.flush()
    self._events.flush()

  def close(self):
    """Flushes and closes the files."""
    self._lines.close()
    self._events.close()


def _kept_lines(path, after_step):
  if not path.exists():
    return
  with path.open(errors='replace') as lines:
    for line in lines:
      try:
        step = json.loads(line)['step']
      except ValueError:  # torn
        continue
      if step <= after_step:
        yield line.rstrip('\n') + '\n'
