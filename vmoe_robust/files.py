"""Files: what a user's path means, whole files, JSON, a folder for one run."""

import contextlib
import fcntl
import io
import json
import logging
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping

import fsspec
import jax
import numpy as np
from etils import epath

from vmoe_robust.errors import UserError

LOCK = '.lock'  # in a folder that a program has for itself


def is_address(text: str | os.PathLike) -> bool:
  """Whether it is an address such as `gs://BUCKET/PATH`, not a local path."""
  return '://' in os.fspath(text)


def path(text: str | os.PathLike, field: str = 'the path') -> epath.Path:
  """The path that a user means: `~` and `~name` become home folders.

  Every path that a user gives goes through here, once or several times.

  Args:
    text: a local path, or an address such as `gs://BUCKET/PATH`, which is
      returned as it is.
    field: what the user set, for the error.

  Raises:
    UserError: `~name` is the home of a user who does not exist, or it is an
      address of an unknown kind.
  """
  try:
    return epath.Path(expanded(text, field))
  except KeyError as error:
    raise UserError(
      f'{field}={os.fspath(text)!r} is an address of an unknown kind; give a '
      'folder, or an address such as gs://BUCKET/PATH'
    ) from error


def expanded(text: str | os.PathLike, field: str = 'the path') -> str:
  """As `path`, as text, of addresses that other libraries read.

  Raises:
    UserError: `~name` is the home of a user who does not exist.
  """
  text = os.fspath(text)
  if is_address(text):
    return text
  expanded = os.path.expanduser(text)
  if expanded.startswith('~'):
    raise UserError(
      f'{field}={text!r} begins with the home of an unknown user; give the '
      f'whole path, or ./{text} for a folder of that name'
    )
  return expanded


def absolute(text: str | os.PathLike, field: str = 'the path') -> epath.Path:
  """As `path`, from the root; of an address, after a look that it is there.

  Listings of a bucket are from here on read each time.

  Raises:
    UserError: `~name` is the home of a user who does not exist, or what reads
      such addresses is not installed, or they cannot be reached.
  """
  found = path(text, field)
  address = os.fspath(found)
  if not is_address(address):
    return found.absolute()
  try:
    # What was listed once is not what is there now.
    fsspec.config.conf.setdefault('gs', {})['use_listings_cache'] = False
    # etils, which does the reading, keeps the same one.
    options = {'finalize_on_close': True} if address.startswith('gs:') else {}
    system, place = fsspec.core.url_to_fs(address, **options)
    with contextlib.suppress(FileNotFoundError), said_once():
      system.info(place)  # `exists` would hide what forbids it
  except Exception as error:  # each store has kinds of its own
    way = '; give a folder, or an address that these credentials may read'
    if isinstance(error, ImportError) and address.startswith('gs:'):
      way = "; pip install 'vmoe_robust[gcs]'"
    said = str(error).strip().split('\n')[0] or type(error).__name__
    raise UserError(
      f'{field}={os.fspath(text)!r} cannot be reached: {said}{way}'
    ) from error
  return found


@contextlib.contextmanager
def said_once() -> Iterator[None]:
  """Of what goes wrong inside, the error that is raised says all.

  The store of `gs://` logs each trial with a traceback besides.
  """
  logger = logging.getLogger('gcsfs')
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(level)


def local_path(text: str | os.PathLike, field: str) -> pathlib.Path:
  """As `path`, of what must be on this machine or on a disk that it mounts.

  Raises:
    UserError: it is an address such as `gs://BUCKET/PATH`.
  """
  if is_address(text):
    raise UserError(
      f'{field}={os.fspath(text)!r} is an address, and this has to be on '
      "this machine's disks; give a local or mounted folder (gcsfuse mounts a "
      'bucket)'
    )
  return pathlib.Path(path(text, field))


def require_writable(directory: str | os.PathLike) -> None:
  """Makes a directory and tries to write in it, before work is done for it.

  Raises:
    UserError: it cannot be written to.
  """
  path = local_path(directory, '--workdir')
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
  """A path to write to, which becomes `path` if the block succeeds.

  What was written is on the disk before it has the name, so that a power cut
  leaves the old file or the new one.

  Raises:
    UserError: `path` is not on this machine.
  """
  path = local_path(path, 'the file')
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(path.name + '.tmp')
  try:
    yield draft
    with draft.open('rb') as file:
      os.fsync(file.fileno())
    os.replace(draft, path)
  finally:
    draft.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, data: object) -> None:
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

  A program that is killed leaves nothing behind, nor does one that refuses
  before it wrote anything. The first process speaks for all of a run.

  Raises:
    UserError: another program is at work there.
  """
  if jax.process_index():
    yield
    return
  path = local_path(directory, field)
  is_new = not path.exists()
  with _lock_file(path, field) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise UserError(
        f'{field}={directory} is in use by another run; wait for its end, or '
        'choose another'
      ) from error
    try:
      yield
    finally:
      if is_new:
        _remove_unused(path)


def _remove_unused(directory: pathlib.Path):
  with contextlib.suppress(OSError):  # it may be gone
    if [path.name for path in directory.iterdir()] == [LOCK]:
      (directory / LOCK).unlink()
      directory.rmdir()


def _lock_file(directory: pathlib.Path, field: str) -> io.TextIOBase:
  try:
    directory.mkdir(parents=True, exist_ok=True)
    return (directory / LOCK).open('w')
  except OSError as error:
    raise UserError(
      f'{field}={directory} is not writable ({error.strerror}); choose another'
    ) from error
