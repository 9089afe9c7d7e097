"""Files: whole or not there, JSON, and a folder for one run at a time."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from vmoe_robust.errors import UserError


def require_writable(directory: str | os.PathLike):
  """Makes a directory and tries to write in it, before work is done for it.

  Raises:
    UserError: it cannot be written to.
  """
  path = pathlib.Path(directory)
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    raise UserError(
      f'--workdir={directory} is not writable ({error.strerror}); choose '
      'another'
    ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A path to write to, which becomes `path` if the block succeeds."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(path.name + '.tmp')
  try:
    yield draft
    os.replace(draft, path)
  finally:
    draft.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, data: object):
  """Writes `data` as JSON: the old file or the new one, never a part."""
  with replacing(path) as draft:
    draft.write_text(to_json(data, indent=2) + '\n')


def to_json(data: object, indent: int | None = None) -> str:
  """Strict JSON of nested mappings, sequences, NumPy values and scalars.

  NaN and infinities, which JSON lacks, become null.
  """
  return json.dumps(_plain(data), indent=indent, allow_nan=False)


def _plain(value):
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, Mapping):
    return {str(name): _plain(inner) for name, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(inner) for inner in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


@contextlib.contextmanager
def locked(
  directory: str | os.PathLike, field: str = '--workdir'
) -> Iterator[None]:
  """Keeps other programs that ask for the same folder out.

  A program that is killed leaves nothing behind. The first process speaks for
  all of a run.

  Raises:
    UserError: another program is at work there.
  """
  if jax.process_index():
    yield
    return
  path = pathlib.Path(directory)
  path.mkdir(parents=True, exist_ok=True)
  with (path / '.lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise UserError(
        f'{field}={directory} is in use by another run; wait for its end, or '
        'choose another'
      ) from error
    yield
