"""Asynchronous, sharded checkpoints of a run, and reading them back."""

import os
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from vmoe_robust import staging
from vmoe_robust.checkpoint import integrity, writer
from vmoe_robust.checkpoint.trees import require_same, shapes_of
from vmoe_robust.checkpoint.weights_checksum import weights_checksum
from vmoe_robust.config import ConfigDict, UserError
from vmoe_robust.distributed import agreed

# Weights, averaged weights if there are any, and what training alone needs.
_TREES = ('params', 'ema', 'rest')


class Checkpoints:
  """The checkpoints under a work directory.

  Each is the trees 'params', 'ema' (if there is one) and 'rest', so that
  evaluation reads the weights alone, and a dictionary, 'extra' (the state of
  the data iterator).
  """

  def __init__(
    self, workdir: str | os.PathLike, save: ConfigDict | None = None
  ):
    """Opens them, for writing if `save` (`config.save`) is given."""
    self._directory = staging.checkpoints(workdir)
    self._save = save
    handlers = {name: ocp.StandardCheckpointHandler() for name in _TREES}
    handlers['extra'] = ocp.JsonCheckpointHandler()
    handler = ocp.CompositeCheckpointHandler(**handlers)
    self._orbax = ocp.Checkpointer(handler)
    if save is not None:
      self._writer = writer.Writer(self._directory, save, handler)

  def steps(self) -> list[int]:
    """Steps that have a finished checkpoint, ascending."""
    return writer.steps(self._directory)

  def path(self, step: int) -> epath.Path:
    """The directory of a step's checkpoint."""
    return self._directory / str(step)

  def due(self, step: int, metrics: dict[str, float]) -> bool:
    """Whether `config.save` wants a checkpoint after this step.

    Args:
      step: every step is asked about, on every process.
      metrics: what was measured after it, for `config.save.best`.
    """
    return self._writer.due(step, metrics)

  def save(
    self,
    step: int,
    trees: dict[str, PyTree],
    extra: dict,
    metrics: dict[str, float] | None = None,
    now: bool = False,
    unmeasured: bool = False,
  ) -> None:
    """Starts writing; the arrays may be donated as soon as this returns.

    What goes wrong is a warning, unless it must be written `now`.

    Args:
      step: the checkpoint's name.
      trees: what `restore` gives back.
      extra: what JSON can hold, to be given back beside them.
      metrics: what was measured at this step, for `config.save.best`.
      now: wait until it is written, and try more than once.
      unmeasured: more is to be measured at this step, by the run that resumes.

    Raises:
      UserError: it could not be written `now`.
    """
    items = {k: ocp.args.StandardSave(v) for k, v in trees.items()}
    items['extra'] = ocp.args.JsonSave(extra)
    write = self._writer.save_now if now else self._writer.save
    weights = weights_checksum(trees.get('ema', trees['params']))
    about = integrity.About(step, weights, metrics or {}, unmeasured)
    write(ocp.args.Composite(**items), about)

  def is_unmeasured(self, step: int) -> bool:
    """Whether a run stopped before it had measured what was due at a step."""
    return agreed(writer.is_unmeasured(self._directory, step))

  def add_metrics(
    self, step: int, metrics: dict[str, float], extra: dict
  ) -> None:
    """Writes what was measured of a finished checkpoint, for `save.best`.

    Args:
      step: that was unmeasured.
      metrics: what was measured.
      extra: what it changed in `extra`, which `restore` gives back.
    """
    self._writer.add_metrics(step, metrics, extra)

  def restore(
    self, step: int, abstract: dict[str, PyTree]
  ) -> tuple[dict[str, PyTree], dict]:
    """Trees and `extra` of a step, placed as `abstract` says.

    Nothing is read of trees that are not wanted.

    Args:
      step: one of `steps()`, whose files are taken to be undamaged.
      abstract: for each wanted tree its `jax.ShapeDtypeStruct`s; arrays are
        cast to their types.

    Raises:
      UserError: the checkpoint is of another model.
    """
    self._check(step, abstract)
    items = {k: ocp.args.StandardRestore(v) for k, v in abstract.items()}
    items['extra'] = ocp.args.JsonRestore()
    args = ocp.args.Composite(**items)
    found = self._orbax.restore(self.path(step), args=args)
    extra = found['extra'] | writer.added(self._directory, step)
    return {k: found[k] for k in abstract}, extra

  def damage(self, step: int) -> str:
    """What is wrong with a step's files; '' if they are as they were sealed.

    The processes share the work, and return the same.
    """
    parts = jax.process_count()
    found = integrity.damage(self.path(step), jax.process_index(), parts)
    text = integrity.listed(found)
    if parts == 1:
      return text
    row = np.frombuffer(text.encode()[:1000].ljust(1000, b'\0'), np.uint8)
    rows = multihost_utils.process_allgather(row)
    texts = [bytes(r).rstrip(b'\0').decode(errors='replace') for r in rows]
    return ', '.join(dict.fromkeys(filter(None, texts)))

  def newest_whole(self) -> int | None:
    """The newest step whose files are as they were sealed; None if none.

    A warning says what is wrong with newer ones.
    """
    step = None
    while True:
      older = [s for s in self.steps() if step is None or s < step]
      # A run may write and remove them meanwhile.
      step = agreed(max(older, default=-1))
      if step < 0:
        return None
      bad = self.damage(step)
      if not bad:
        return step
      if jax.process_index() == 0:
        logging.warning('checkpoint %s is damaged: %s', self.path(step), bad)

  def resume(self) -> int | None:
    """The step to go on from: the newest whole one; None to begin at 0.

    Newer ones, which are damaged, are set aside, so that they are made again.

    Raises:
      UserError: all are damaged, or one is and `config.save.on_damage` forbids
        to go on from another.
    """
    steps, good = self.steps(), self.newest_whole()
    damaged = [step for step in steps if good is None or step > good]
    where = self._directory
    if damaged and good is None:
      raise UserError(
        f'all checkpoints in {where} are damaged; restore them from a copy, or '
        'start again in another --workdir'
      )
    if damaged and self._save.on_damage == 'error':
      raise UserError(
        f'{where} has damaged checkpoints of steps {damaged}; restore them '
        f'from a copy, or go on from step {good} by '
        "--config.save.on_damage='fall_back'"
      )
    if damaged and jax.process_index() == 0:
      for step in damaged:
        aside = where.parent / f'damaged-{step}-{time.time_ns()}'
        self.path(step).rename(aside)
        logging.warning('set aside as %s; going on from step %s', aside, good)
    if damaged and jax.process_count() > 1:
      multihost_utils.sync_global_devices('set aside')
    return good

  def best(self, name: str) -> int | None:
    """The step with the best metric `name`; None if none has been measured.

    Raises:
      UserError: the best one may be one that is damaged.
    """
    step, lost = writer.best_step(self._directory, name)
    if lost:
      raise UserError(
        f'{self._directory} has damaged checkpoints of steps {lost}, any of '
        'which may be the best; restore them from a copy, or name another step'
      )
    step = agreed(-1 if step is None else step)
    return None if step < 0 else step

  def weights(self, step: int) -> str:
    """The tree to evaluate: the averaged weights, if the run kept them."""
    return 'ema' if (self.path(step) / 'ema').exists() else 'params'

  def close(self) -> None:
    """Waits until everything is written."""
    if self._save is not None:
      self._writer.close()
    self._orbax.close()

  def _check(self, step: int, abstract: dict[str, PyTree]):
    metadata = self._orbax.metadata(self.path(step)).item_metadata
    for name in abstract:
      if metadata.get(name) is None:
        raise UserError(
          f'{self.path(step)} has no {name!r}; it is no checkpoint of this '
          'kind of run'
        )
    there = {name: metadata[name] for name in abstract}
    way = 'use the configuration it was trained with, or another --workdir'
    require_same(self.path(step), shapes_of(there), shapes_of(abstract), way)


def abstract(tree: PyTree, shardings: PyTree) -> PyTree:
  """Shapes, types and places of a tree's arrays, for `Checkpoints.restore`."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s),
    tree,
    shardings,
  )
