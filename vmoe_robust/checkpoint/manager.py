"""Asynchronous, sharded checkpoints of a run, and reading them back."""

import contextlib
import os
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from vmoe_robust.checkpoint import integrity
from vmoe_robust.config import ConfigDict, UserError, from_json, to_json

_CONFIG = 'config.json'
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
    self._directory = epath.Path(workdir).absolute() / 'checkpoints'
    if save is None:
      options = ocp.CheckpointManagerOptions(
        read_only=True, create=False, save_interval_steps=0
      )
    else:
      self._directory.mkdir(parents=True, exist_ok=True)
      options = ocp.CheckpointManagerOptions(
        max_to_keep=save.keep,
        keep_period=save.keep_every or None,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
      )
    self._closing, self._sealer = threading.Event(), None
    handlers = {name: ocp.StandardCheckpointHandler() for name in _TREES}
    handlers['extra'] = ocp.JsonCheckpointHandler()
    with _quiet():  # Orbax warns that read_only is read only
      self._manager = ocp.CheckpointManager(
        self._directory, options=options, item_handlers=handlers
      )

  def steps(self) -> list[int]:
    """Steps that have a whole checkpoint, ascending."""
    return sorted(self._manager.all_steps())

  def path(self, step: int) -> epath.Path:
    """The directory of a step's checkpoint."""
    return self._directory / str(step)

  def save(self, step: int, trees: dict[str, PyTree], extra: dict):
    """Starts writing; the arrays may be donated as soon as this returns."""
    self._finish()
    items = {k: ocp.args.StandardSave(v) for k, v in trees.items()}
    items['extra'] = ocp.args.JsonSave(extra)
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    if jax.process_index() == 0:
      self._closing.clear()
      self._sealer = threading.Thread(target=self._seal, args=(step,))
      self._sealer.start()

  def restore(
    self, step: int, abstract: dict[str, PyTree]
  ) -> tuple[dict[str, PyTree], dict]:
    """Trees and `extra` of a step, placed as `abstract` says.

    Args:
      step: one of `steps()`.
      abstract: for each wanted tree its `jax.ShapeDtypeStruct`s.

    Raises:
      UserError: the checkpoint is damaged, or is of another model.
    """
    self._check(step, abstract)
    items = {k: ocp.args.StandardRestore(v) for k, v in abstract.items()}
    items['extra'] = ocp.args.JsonRestore()
    found = self._manager.restore(step, args=ocp.args.Composite(**items))
    return {k: found[k] for k in abstract}, found['extra']

  def read(self, step: int, name: str) -> PyTree:
    """A tree as it was saved, of whatever shapes, on the host."""
    whole = lambda leaf: np.empty(leaf.shape, leaf.dtype)
    wanted = jax.tree.map(whole, dict(self._manager.item_metadata(step)[name]))
    item = ocp.args.Composite(**{name: ocp.args.StandardRestore(wanted)})
    return self._manager.restore(step, args=item)[name]

  def newest_whole(self) -> int | None:
    """The newest step whose files are as they were written; None if none."""
    found = -1
    if jax.process_index() == 0:
      found = self._newest_whole()
    if jax.process_count() > 1:
      found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    return None if found < 0 else found

  def _newest_whole(self) -> int:
    for step in reversed(self.steps()):
      bad = integrity.damage(self.path(step))
      if not bad:
        return step
      logging.warning(
        'checkpoint %s is damaged (%s); trying the one before it',
        self.path(step),
        ', '.join(bad[:3]),
      )
    return -1

  def set_aside_after(self, step: int):
    """Renames newer checkpoints, which are damaged, so that they are remade."""
    newer = [other for other in self.steps() if other > step]
    if newer and jax.process_index() == 0:
      for other in newer:
        path = self.path(other)
        path.rename(path.parent.parent / f'damaged-{other}-{time.time_ns()}')
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('set aside')
    self._manager.reload()

  def weights(self, step: int) -> str:
    """The tree to evaluate: the averaged weights, if the run kept them."""
    return 'ema' if (self.path(step) / 'ema').exists() else 'params'

  def close(self):
    """Waits until everything is written."""
    self._finish()
    self._manager.close()

  def _finish(self):
    self._manager.wait_until_finished()
    self._closing.set()
    if self._sealer:
      self._sealer.join()

  def _seal(self, step: int):
    """Waits for the checkpoint, which appears at once and whole; seals it."""
    path = self.path(step)
    while not path.exists() and not self._closing.wait(0.1):
      pass
    if path.exists():
      integrity.seal(path)

  def _check(self, step: int, abstract: dict[str, PyTree]):
    metadata = self._manager.item_metadata(step)
    for name, wanted in abstract.items():
      there = metadata.get(name)
      if there is None:
        raise UserError(
          f'{self.path(step)} has no {name!r}; it is no checkpoint of this '
          'kind of run'
        )
      there, wanted = _shapes(there), _shapes(wanted)
      for leaf in sorted(there.keys() | wanted.keys()):
        if there.get(leaf) != wanted.get(leaf):
          raise UserError(
            f'{self.path(step)} is a checkpoint of another model: {name}/'
            f'{leaf} is {there.get(leaf, "absent")} in it and '
            f'{wanted.get(leaf, "absent")} in this one; use the configuration '
            'it was trained with, or another --workdir'
          )


@contextlib.contextmanager
def _quiet():
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(before)


def _shapes(tree) -> dict[str, tuple[int, ...]]:
  found = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = '/'.join(_part(part) for part in path)
    found[name] = tuple(leaf.shape)
  return found


def _part(part) -> str:
  for attribute in ('key', 'idx', 'name'):
    if hasattr(part, attribute):
      return str(getattr(part, attribute))
  return str(part)


def save_config(workdir: str | os.PathLike, config: ConfigDict):
  """Writes the resolved configuration, with which evaluation needs no other."""
  directory = epath.Path(workdir)
  draft = directory / (_CONFIG + '.tmp')
  draft.write_text(to_json(config) + '\n')
  draft.replace(directory / _CONFIG)


def read_config(workdir: str | os.PathLike) -> ConfigDict | None:
  """The configuration that `save_config` wrote; None if there is none."""
  path = epath.Path(workdir) / _CONFIG
  return from_json(path.read_text()) if path.exists() else None


def fingerprint(workdir: str | os.PathLike, step: int) -> str | None:
  """By which a checkpoint is known again; None until it is sealed."""
  return integrity.fingerprint(
    epath.Path(workdir).absolute() / 'checkpoints' / str(step)
  )


def locate(
  checkpoint: str | os.PathLike, field: str = 'config.checkpoint'
) -> tuple[str, int]:
  """The work directory and the step that `config.checkpoint` names.

  Args:
    checkpoint: a work directory (its newest whole step is taken), or
      `WORKDIR/checkpoints/STEP`.
    field: what the user set, for the errors.

  Raises:
    UserError: there is no such checkpoint.
  """
  path, step = epath.Path(checkpoint).absolute(), None
  if path.name.isdigit() and path.parent.name == 'checkpoints':
    path, step = path.parent.parent, int(path.name)
  field = f'{field}={str(checkpoint)!r}'
  if not str(checkpoint):
    raise UserError(f'{field} names nothing; give the workdir of a run')
  if not path.exists():
    raise UserError(
      f'{field} does not exist; give the --workdir of a training run'
    )
  if read_config(path) is None or not (path / 'checkpoints').exists():
    raise UserError(
      f'{field} holds no checkpoint (there is no {_CONFIG} or no '
      'checkpoints/ in it); give the --workdir of a training run that has '
      'saved at least once'
    )
  checkpoints = Checkpoints(path)
  steps = checkpoints.steps()
  if step not in (None, *steps) or not steps:
    there = f'steps {steps}' if steps else 'no finished checkpoint'
    raise UserError(f'{field}: there is {there} in {path / "checkpoints"}')
  if step is None:
    step = checkpoints.newest_whole()
  elif integrity.damage(checkpoints.path(step)):
    step = None
  checkpoints.close()
  if step is None:
    raise UserError(
      f'{field} is damaged: its files changed since they were written; use '
      f'another of the steps {steps}, if there is one'
    )
  return str(path), step


def abstract(tree: PyTree, shardings: PyTree) -> PyTree:
  """Shapes, types and places of a tree's arrays, for `Checkpoints.restore`."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s),
    tree,
    shardings,
  )
