"""Files that are whole or not there, JSON, and what results say of a run."""

import contextlib
import json
import math
import os
import pathlib
import platform
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata

import jax
import numpy as np

from vmoe_robust.config import UserError

RESULTS, RECORDS = 'results.json', 'records.parquet'
_PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy'),
  *('opencv-python-headless', 'pillow', 'scipy'),
)


def environment() -> dict[str, object]:
  """Versions and devices, which it takes to get the same numbers."""
  versions = {name: metadata.version(name) for name in _PACKAGES}
  return {
    'versions': versions | {'python': platform.python_version()},
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
  }


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
