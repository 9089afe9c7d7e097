"""What a run that is cut short has found, batch by batch."""

import os
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from vmoe_robust.config import MACHINE_FIELDS, flatten
from vmoe_robust.evaluate.snapshot import claim
from vmoe_robust.files import replacing

Columns = dict[str, np.ndarray]


class Kept:
  """A file a batch in a folder; without a folder nothing is kept."""

  def __init__(self, folder: str | os.PathLike | None, identity: dict):
    """Makes the folder that of one run.

    Args:
      folder: all processes see it; the first one writes.
      identity: fields of the run and their values.

    Raises:
      UserError: the folder is that of another run.
    """
    self._folder = None if folder is None else pathlib.Path(folder)
    if self._folder is not None:
      claim(self._folder, identity)

  def get(self, batch: int, part: str = 'all') -> Columns | None:
    """What `put` was given; None if that was not reached."""
    path = self._folder and self._path(batch, part)
    if not path or not path.exists():
      return None
    with np.load(path) as file:
      return dict(file)

  def put(self, found: Columns, batch: int, part: str = 'all'):
    """Keeps what was found for a batch, whole or not at all."""
    if self._folder is not None and jax.process_index() == 0:
      with replacing(self._path(batch, part)) as draft:
        with draft.open('wb') as file:
          np.savez(file, **found)

  def _path(self, batch, part):
    return self._folder / f'{batch}-{part}.npz'


def identity(
  config: ConfigDict, step: int | None, checksum: str | None
) -> dict[str, object]:
  """What makes a run that was cut short the same one.

  Args:
    config: of the run.
    step: of the weights that it judges, if they are of a run.
    checksum: of these weights.
  """
  return {'step': step, 'the checksum of the weights': checksum} | {
    name: value
    for name, value in flatten(config).items()
    if not name.startswith(machine_fields(config))
  }


def machine_fields(config: ConfigDict) -> tuple[str, ...]:
  """Fields that change no number that is found."""
  if config.data.name != 'folder':
    return MACHINE_FIELDS
  # Of a folder the directory is the data set.
  return tuple(name for name in MACHINE_FIELDS if name != 'config.data.dir')
