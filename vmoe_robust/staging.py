"""A work directory in a bucket: a folder here, which is copied there.

A run appends to files, renames them and asks how much room there is, which
buckets cannot do. So a run with `--workdir=gs://BUCKET/RUN` works in a folder
of this machine. What an earlier run left in the bucket is copied to it first,
and what changes is copied back every few seconds. Checkpoints are not copied:
all hosts of a pod write them together, straight to the bucket. In their place
the folder has a file with their address.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterator

import fsspec
import jax
from absl import logging
from etils import epath

from vmoe_robust import files
from vmoe_robust.errors import UserError

CHECKPOINTS = 'checkpoints'
_PAUSE = 10  # seconds; a bucket takes one write of an object a second
_PROBE = '.probe'  # written and removed, to see whether that can be done
_LAST = 'results.json'  # what it names is there before it


def checkpoints(workdir: str | os.PathLike) -> epath.Path:
  """Where the checkpoints of a work directory are, here or in a bucket."""
  place = files.absolute(workdir) / CHECKPOINTS
  if not files.is_address(place) and place.is_file():
    return epath.Path(place.read_text())
  return place


def name(workdir: str | os.PathLike) -> str:
  """What the user calls a work directory: of one in a bucket, its address."""
  folder = pathlib.Path(workdir)
  for run in (folder, folder.parent):  # a folder in it is asked for as well
    place = checkpoints(run)
    if files.is_address(place):
      return os.fspath(place.parent / folder.relative_to(run))
  return os.fspath(workdir)


@contextlib.contextmanager
def staged(workdir: str | os.PathLike) -> Iterator[str]:
  """The folder to work in: `workdir` itself, or one that is copied to it.

  Args:
    workdir: a folder, or an address such as `gs://BUCKET/RUN`.

  Raises:
    UserError: the address cannot be read or written.
  """
  if not files.is_address(workdir):
    yield str(files.local_path(workdir, '--workdir'))
    return
  address = os.fspath(files.absolute(workdir, '--workdir')).rstrip('/')
  above = pathlib.Path(tempfile.mkdtemp(prefix='vmoe_robust-'))
  copy = _Copy(above / address.split('://')[1], address)
  copy.fetch()
  try:
    yield str(copy.folder)
  finally:
    copy.close()
  shutil.rmtree(above)


class _Copy:
  """Of a folder in a bucket; the first process of a pod writes it."""

  def __init__(self, folder: pathlib.Path, address: str):
    self.folder, self._address = folder, address
    self._system, self._place = fsspec.core.url_to_fs(address)
    self._seen: dict[str, tuple[int, int]] = {}  # size and time, by name
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._keep, daemon=True)

  def fetch(self):
    """What is there, and the beginning of copying."""
    self.folder.mkdir(parents=True)
    try:
      if jax.process_index() == 0:
        probe = f'{self._place}/{_PROBE}'
        self._system.pipe_file(probe, b'')
        self._system.rm_file(probe)
      for place in self._system.find(self._place):
        name = place.removeprefix(self._place + '/')
        kept = name.split('/')[0] != CHECKPOINTS
        if not kept or name.startswith('damaged') or name == _PROBE:
          continue  # the probe may be gone by the time that it is read
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        self._system.get_file(place, str(self.folder / name))
    except Exception as error:  # each store has kinds of its own
      raise UserError(
        f'--workdir={self._address} cannot be written: {error}; give a folder, '
        'or an address that these credentials may write'
      ) from error
    self._seen = self._there()
    pointer = self.folder / CHECKPOINTS
    pointer.write_text(f'{self._address}/{CHECKPOINTS}')
    if jax.process_index() == 0:
      self._thread.start()

  def close(self):
    """Copies what is left.

    Raises:
      UserError: that failed; the folder stays.
    """
    if jax.process_index():
      return
    self._ended.set()
    self._thread.join()
    try:
      self._update()
    except Exception as error:
      raise UserError(
        f'{self.folder} could not be copied to {self._address}: {error}; copy '
        f'it yourself, all but its file {CHECKPOINTS!r}'
      ) from error

  def _keep(self):
    told = False
    while not self._ended.wait(_PAUSE):
      try:
        self._update()
        told = False
      except Exception as error:  # of whatever kind: the run goes on
        if not told:
          logging.warning(
            '%s could not be copied to %s: %s. The run goes on; it is tried '
            'again every %s s',
            *(self.folder, self._address, error, _PAUSE),
          )
        told = True

  def _update(self):
    """Copies what changed, and removes what is gone."""
    there = self._there()
    for name in sorted(there, key=lambda name: (name == _LAST, name)):
      if self._seen.get(name) != there[name]:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
          self._system.put_file(
            str(self.folder / name), f'{self._place}/{name}'
          )
          self._seen[name] = there[name]
    for name in self._seen.keys() - there.keys():
      with contextlib.suppress(FileNotFoundError):
        self._system.rm_file(f'{self._place}/{name}')
      del self._seen[name]

  def _there(self) -> dict[str, tuple[int, int]]:
    found = {}
    for path in self.folder.rglob('*'):
      name = path.relative_to(self.folder).as_posix()
      if path.suffix == '.tmp' or name in (CHECKPOINTS, files.LOCK):
        continue
      with contextlib.suppress(FileNotFoundError):  # removed meanwhile
        if path.is_file():
          found[name] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found
