"""Writing checkpoints in the background, each whole or not at all.

Orbax writes a checkpoint as `STEP.unsealed`. Then every process checksums the
files it wrote, the first one seals them and gives the checkpoint its name,
`STEP`. Only then do old ones go. Whatever ends a run in between, what has a
name is whole.

A bucket has no names to give: to rename is to copy. There a checkpoint is
written as `STEP`, and is one as soon as it has a seal, which is written last
and removed first.
"""

import contextlib
import itertools
import re
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from vmoe_robust.checkpoint import integrity, policy
from vmoe_robust.checkpoint.hush import Hush
from vmoe_robust.config import ConfigDict, UserError
from vmoe_robust.distributed import together
from vmoe_robust.distributed.barriers import Barriers
from vmoe_robust.files import is_address

CONFIG = 'config.json'
# Seconds between attempts at a checkpoint that nothing comes after.
_PAUSES = (1, 4)
_PATIENCE = 1200  # seconds to wait for the checksums of other processes
# Names of what is left when this, or Orbax for it, is cut short. Other names
# are of other people, such as copies that somebody made by hand.
_LEFT = re.compile(
  r'\d+(\.unsealed|\.removed|\.probe)?(\.orbax-checkpoint-tmp.*)?'
)
# The processes of a pod number their saves alike.
_numbers = itertools.count()


class Writer:
  """Saves one checkpoint at a time; what goes wrong is told, not raised."""

  def __init__(
    self,
    directory: epath.Path,
    save: ConfigDict,
    handler: ocp.CompositeCheckpointHandler,
  ):
    """Clears away what an earlier run left unfinished."""
    self._directory, self._save = directory, save
    self._schedule = policy.Schedule(save)
    self._thread: threading.Thread | None = None
    self._trouble: str | None = None
    # Of the processes, at the last save.
    self._barriers: Barriers | None = None
    self._best: float | None = None
    self._pending: dict[str, float] = {}
    if jax.process_index() == 0:
      directory.mkdir(parents=True, exist_ok=True)
      _clear(directory)
    self._hush = Hush()
    self._orbax = ocp.AsyncCheckpointer(
      handler,
      async_options=ocp.AsyncOptions(barrier_sync_fn=self._wait_for_others),
    )

  def _wait_for_others(self, key: str, timeout_ms: int) -> None:
    self._barriers.wait(timeout_ms / 1000)

  def due(self, step: int, metrics: dict[str, float]) -> bool:
    """Whether to save now, the same answer on every process."""
    if self._best is None:
      there = _metrics(self._directory).values()
      scores = [policy.score(self._save.best, found or {}) for found in there]
      self._best = max(scores, default=-np.inf)
    score = policy.score(self._save.best, metrics)
    if self._pending and score > self._best:
      self._settle()  # what is being written may be better still, or fail
    return self._schedule(step) or score > self._best

  def save(self, items: ocp.args.Composite, about: integrity.About) -> None:
    """Starts writing; the arrays may be donated as soon as this returns."""
    self._settle()
    self._schedule.saved()
    self._barriers = Barriers(f'save/{next(_numbers)}')
    self._pending = about.metrics
    self._trouble = self._try_to_write(about.step)
    if _anywhere(self._trouble):
      self._tell(about.step)
      return
    try:
      self._orbax.save(self._draft(about.step), args=items, force=True)
    except Exception as error:
      self._trouble = _short(error)
    self._thread = threading.Thread(target=self._finish, args=(about,))
    self._thread.start()

  def save_now(self, items: ocp.args.Composite, about: integrity.About) -> None:
    """As `save`, but waits for the end and tries again if that is bad.

    Raises:
      UserError: the checkpoint could not be written.
    """
    for pause in (*_PAUSES, None):
      self.save(items, about)
      if self._settle():
        return
      if pause:
        time.sleep(pause)
    newest = max(steps(self._directory), default=None)
    raise UserError(
      f'the checkpoint of step {about.step} could not be written to '
      f'{self._directory} ({self._trouble}); mend that and start again with '
      'the same --workdir, which '
      + (f'goes on from step {newest}' if newest else 'begins from step 0')
    )

  def add_metrics(
    self, step: int, metrics: dict[str, float], extra: dict
  ) -> None:
    """Writes what was measured of a checkpoint that is finished."""
    if jax.process_index() == 0:
      with _as_warning(f'what was measured at step {step} cannot be written'):
        try:
          integrity.add_metrics(self._directory / str(step), metrics, extra)
        except ValueError as error:  # it was damaged meanwhile
          raise OSError(error) from error
      self._prune()  # another one may be the best now
    together('metrics')
    self._best = None

  def close(self) -> None:
    """Waits until everything is written."""
    if self._thread:
      self._thread.join()
    self._orbax.close()
    if not self._trouble:  # else more is said of it while the program ends
      self._hush.close()

  def _settle(self) -> bool:
    """Waits for the last save; whether it succeeded on every process."""
    if not self._barriers:
      return True
    if self._thread:
      self._thread.join()
      self._thread = None
    failed = _anywhere(self._trouble)
    if failed:
      self._trouble = self._trouble or 'another process failed'
    elif self._best is not None:
      score = policy.score(self._save.best, self._pending)
      self._best = max(self._best, score)
    self._pending = {}
    return not failed

  def _try_to_write(self, step: int) -> str | None:
    """What keeps the first process from writing anything at all."""
    if jax.process_index():
      return None
    probe = self._directory / f'{step}.probe'
    try:
      probe.write_bytes(bytes(4096))
      probe.unlink()
    except OSError as error:
      return _short(error)
    return None

  def _finish(self, about: integrity.About):
    """Seals and names what Orbax has written; a thread of its own."""
    try:
      if self._trouble:
        raise RuntimeError(self._trouble)
      self._orbax.wait_until_finished()
      draft = self._draft(about.step)
      integrity.measure(draft, jax.process_index())
      self._barriers.wait(_PATIENCE)
      if jax.process_index() == 0:
        config = self._directory.parent / CONFIG
        if config.exists():
          (draft / CONFIG).write_bytes(config.read_bytes())
        integrity.seal(draft, about, jax.process_count())
        named = self._directory / str(about.step)
        if not named.exists():  # else another process failed after all was done
          draft.rename(named)
      self._barriers.wait(_PATIENCE)
    except Exception as error:  # of whatever kind: training goes on
      self._trouble = _short(error)
      self._barriers.fail(self._trouble, _PATIENCE)
      self._tell(about.step)
    else:
      if jax.process_index() == 0:
        self._prune()

  def _tell(self, step: int):
    """Says that a checkpoint failed, and makes room."""
    if jax.process_index():
      return
    logging.warning(
      'the checkpoint of step %s was not written: %s. Training goes on, and '
      'tries again when the next one is due; older ones stay',
      step,
      self._trouble,
    )
    _clear(self._directory)

  def _prune(self):
    """Removes what need not stay, by a name that says so."""
    with _as_warning('old checkpoints cannot be removed'):
      best, unknown = best_step(self._directory, self._save.best)
      surplus = policy.surplus(self._save, steps(self._directory), best)
      for step in [s for s in surplus if s not in unknown]:
        path = self._directory / str(step)
        if is_address(path):
          (path / integrity.SEAL).unlink()
        else:
          path.rename(self._directory / f'{step}.removed')
    _clear(self._directory)

  def _draft(self, step: int) -> epath.Path:
    ending = '' if is_address(self._directory) else '.unsealed'
    return self._directory / f'{step}{ending}'


def steps(directory: epath.Path) -> list[int]:
  """Steps that have a checkpoint with a name, ascending."""
  if not directory.exists():
    return []
  return sorted(int(p.name) for p in directory.iterdir() if _is_whole(p))


def unfinished(directory: epath.Path) -> list[epath.Path]:
  """What was not finished when a run was killed, or not removed to its end."""
  if not directory.exists():
    return []
  there = [path for path in directory.iterdir() if not _is_whole(path)]
  return sorted(path for path in there if _LEFT.fullmatch(path.name))


def _is_whole(path: epath.Path) -> bool:
  """Whether a checkpoint has its name, or in a bucket its seal."""
  if not path.name.isdecimal():
    return False
  return not is_address(path) or (path / integrity.SEAL).exists()


def best_step(directory: epath.Path, name: str) -> tuple[int | None, list[int]]:
  """The step whose metric is best, and steps that may be better.

  Args:
    directory: of the checkpoints.
    name: of the metric; '': none is best, and none may be.

  Returns:
    The step, None if none has the metric; and the steps with a damaged seal, of
    which it is not known what was measured.
  """
  if not name:
    return None, []
  found = _metrics(directory)
  known = {step: metrics for step, metrics in found.items() if metrics}
  unknown = [step for step, metrics in found.items() if metrics is None]
  return policy.best(name, known), unknown


def measured_steps(directory: epath.Path, name: str) -> list[int]:
  """Steps for which a metric is known."""
  found = _metrics(directory)
  return [step for step, metrics in found.items() if name in (metrics or {})]


def _metrics(directory: epath.Path) -> dict[int, dict[str, float] | None]:
  """What was measured at each step; None where the seal is damaged."""
  found = {}
  for step in steps(directory):
    try:
      found[step] = integrity.read_seal(directory / str(step))['metrics']
    except ValueError:
      found[step] = None
  return found


def is_unmeasured(directory: epath.Path, step: int) -> bool:
  """Whether a run stopped at a step before it had measured what was due."""
  return _sealed(directory, step).get('unmeasured', False)


def added(directory: epath.Path, step: int) -> dict:
  """What was measured later changed in a checkpoint's `extra`."""
  return _sealed(directory, step).get('extra', {})


def _sealed(directory, step) -> dict:
  try:
    return integrity.read_seal(directory / str(step))
  except ValueError:
    return {}


def _clear(directory):
  with _as_warning('what is unfinished cannot be removed'):
    for path in unfinished(directory):
      path.rmtree() if path.is_dir() else path.unlink()


@contextlib.contextmanager
def _as_warning(what):
  try:
    yield
  except OSError as error:
    logging.warning('%s: %s', what, _short(error))


def _anywhere(trouble: str | None) -> bool:
  if jax.process_count() == 1:
    return trouble is not None
  found = multihost_utils.process_allgather(np.bool_(trouble is not None))
  return bool(found.any())


def _short(error: Exception) -> str:
  """The last words of an error's first line: what the system said."""
  text = str(error).strip().split('\n')[0] or type(error).__name__
  return text if len(text) < 300 else f'...{text[-200:]}'
