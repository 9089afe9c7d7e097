"""Scalars over steps: JSON lines for programs, event files for TensorBoard."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from typing import SupportsFloat

from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from vmoe_robust import files

_FLUSH_EVERY = 60.0  # seconds, the event file, which waits for the disk


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
    path = files.local_path(workdir, 'workdir') / 'metrics.jsonl'
    with files.replacing(path) as draft:
      draft.write_text(''.join(_kept_lines(path, after_step)))
    self._lines, self._unwritten = path.open('ab', buffering=0), b''
    folder = path.parent / 'tensorboard'
    folder.mkdir(exist_ok=True)
    self._torn = False
    self._events = EventsWriter(str(folder / 'events'))
    start = SessionLog(status=SessionLog.START)  # forget this step and later
    self._event(after_step + 1, session_log=start)
    self.flush()

  def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
    """Writes one line; a value that is not finite becomes null in it.

    What does not fit onto the disk is written when there is room again.
    """
    values = {name: float(value) for name, value in metrics.items()}
    line = files.to_json({'step': int(step), **values}) + '\n'
    self._unwritten += line.encode()
    self._write_lines()
    for name, value in values.items():
      self._event(int(step), summary=scalar(name, value))
    if time.monotonic() > self._flushed + _FLUSH_EVERY:
      self.flush()

  def flush(self) -> None:
    """Sees to it that all is on the disk."""
    self._flushed = time.monotonic()
    self._write_lines()
    with self._until_torn():
      self._events.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    self._write_lines()
    self._lines.close()
    with self._until_torn():
      self._events.close()

  def _write_lines(self):
    try:
      while self._unwritten:
        count = self._lines.write(self._unwritten)
        self._unwritten = self._unwritten[count:]
    except OSError as error:
      text = 'metrics.jsonl cannot be written now: %s'
      logging.log_every_n_seconds(logging.WARNING, text, 60, error)

  def _event(self, step: int, **what):
    if not self._torn:
      with self._until_torn():
        event = Event(step=step, wall_time=time.time(), **what)
        self._events.write_event(event)

  @contextlib.contextmanager
  def _until_torn(self):
    """Nothing can be read after a record that did not fit onto the disk."""
    try:
      yield
    except OSError as error:
      if not self._torn:
        logging.warning('tensorboard/ gets no more of this run: %s', error)
      self._torn = True


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
