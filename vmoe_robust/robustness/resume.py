"""What a run that is cut short has found: one store for all kinds of runs.

A folder has a file for each piece of finished work, and one that says which run
it is of. The first process reads and writes; the others are told, so that all
take the same way.
"""

import io
import json
import os
import pathlib
import shutil
from concurrent import futures
from typing import Any

import jax
import numpy as np
from absl import logging

from vmoe_robust.config import UserError
from vmoe_robust.distributed import shared, together
from vmoe_robust.files import replacing, to_json, write_json
from vmoe_robust.report.results import DAMAGE

Columns = dict[str, np.ndarray]
_IDENTITY = 'run.json'
# To be raised when pieces get another form, so that older ones are not read.
_FORM = {'the form of unfinished work': 4}


class Unfinished:
  """Named pieces of work in a folder; without a folder nothing is kept."""

  def __init__(self, folder: str | os.PathLike | None, identity: dict):
    """Looks whether the folder is of this run; the first piece makes it so.

    A run that is refused before its first piece leaves nothing.

    Args:
      folder: made with the first piece; None keeps nothing.
      identity: fields of the run and their values.

    Raises:
      UserError: the folder is that of another run; it stays as it is.
    """
    self._folder = None if folder is None else pathlib.Path(folder)
    # Writing never makes the devices wait.
    self._writer = futures.ThreadPoolExecutor(1, 'vmoe-unfinished')
    self._writing: futures.Future | None = None
    self._waiting: dict[str, Columns] = {}  # to be written
    self._identity = json.loads(to_json(identity | _FORM))
    if self._folder is not None:
      self._require_own(self._folder / _IDENTITY)

  def get(self, name: str) -> Columns | None:
    """The piece of a name, on every process; None if it is not there."""
    if self._folder is None:
      return None
    self.wait()
    path = self._path(name)
    data = shared(lambda: path.read_bytes() if path.exists() else None)
    if data is None:
      return None
    try:
      with np.load(io.BytesIO(data)) as file:
        return dict(file)
    except DAMAGE as error:
      logging.warning('%s is damaged (%s); it is done again', path, error)
      return None

  def put(self, name: str, arrays: Columns) -> None:
    """Keeps a piece, whole or not at all, in a thread.

    One that cannot be written, on a full disk, say, is tried again with the
    next; what is at work goes on.

    Args:
      name: a piece of that name is replaced.
      arrays: the same on every process; they must not change any more.
    """
    if self._folder is not None and jax.process_index() == 0:
      self.wait()
      self._waiting[name] = arrays
      self._writing = self._writer.submit(self._write)

  def wait(self) -> None:
    """Until what was put is on the disk, or could not be written."""
    if self._writing is None:
      return
    writing, self._writing = self._writing, None
    try:
      writing.result()
    except OSError as error:
      logging.warning(
        'what is found so far cannot be stored in %s (%s); the run goes on, '
        'and tries again',
        *(self._folder, error),
      )

  def _write(self):
    if not (place := self._folder / _IDENTITY).exists():
      write_json(place, self._identity)
    for name in list(self._waiting):
      with replacing(self._path(name)) as draft, draft.open('wb') as file:
        arrays: dict[str, Any] = self._waiting[name]
        np.savez(file, **arrays)
      del self._waiting[name]

  def _require_own(self, path: pathlib.Path):
    ours = self._identity
    data = shared(lambda: path.read_bytes() if path.exists() else None)
    try:
      theirs = ours if data is None else dict(json.loads(data))
    except (ValueError, TypeError) as error:
      raise UserError(
        f'{path} is damaged ({error}), so that nobody knows of which run '
        f'{self._folder} is; delete that folder, or choose another'
      ) from error
    if theirs != ours:
      name = next(k for k in ours | theirs if ours.get(k) != theirs.get(k))
      raise UserError(
        f'{self._folder} is of another run: {name} is {ours.get(name)!r} here '
        f'and was {theirs.get(name)!r}; choose another folder'
      )

  def _path(self, name):
    return self._folder / f'{name}.npz'


def release(folder: str | os.PathLike) -> None:
  """Deletes the folder of a run that is done."""
  together('release')
  if jax.process_index() == 0:
    shutil.rmtree(folder, ignore_errors=True)
  together('released')
