"""Where x_adv goes, if it is kept at all.

50,000 images of 224 x 224 x 3 pixels are 30 GB a radius. In a file each process
appends the images that it judged, in chunks, so that no two processes write the
same chunk; the results say which row of which process an image is in. An image
that a later attack breaks is appended again.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import tensorstore as ts
from jaxtyping import Bool, Float, Int

from vmoe_robust.config import UserError
from vmoe_robust.distributed import fetch
from vmoe_robust.mesh.batch import BatchRows

_CHUNK_BYTES = 32 * 2**20  # of a chunk, about
_MOST_WRITES = 2  # under way
Images = Float[np.ndarray, 'images height width channels']


@runtime_checkable
class Keeper(Protocol):
  """A place for attacked images."""

  def keep(
    self,
    x_adv: jax.Array,
    kept: Bool[np.ndarray, 'batch'],
    index: Int[np.ndarray, 'batch'],
    rows: BatchRows,
  ) -> None:
    """Keeps images of a batch; one of the same number is replaced.

    Args:
      x_adv: over the devices of all processes.
      kept: which rows to keep.
      index: the examples' numbers.
      rows: where the rows of the batch are.
    """
    ...

  def flush(self) -> None:
    """Waits until all that was kept is on the disk."""
    ...

  def columns(self) -> dict[str, np.ndarray]:
    """Of each example, where its image is."""
    ...


class InMemory:
  """An array of all examples, on each process."""

  def __init__(self, images: Images):
    """Begins with what each x_adv is if it is not attacked."""
    self.x_adv = images

  def keep(
    self,
    x_adv: jax.Array,
    kept: Bool[np.ndarray, 'batch'],
    index: Int[np.ndarray, 'batch'],
    rows: BatchRows,
  ) -> None:
    """See `Keeper`."""
    if x_adv.is_fully_addressable:
      rows.take(x_adv, kept, self.x_adv, index)
    else:  # over several processes, each of which has all
      self.x_adv[index[kept]] = fetch(x_adv)[kept]

  def flush(self) -> None:
    """Nothing to do."""

  def columns(self) -> dict[str, np.ndarray]:
    """Nothing: the place of an image is its number."""
    return {}


class Archive:
  """Files of TensorStore (zarr), to which each process appends its own."""

  def __init__(
    self,
    folder: str | os.PathLike,
    shape: tuple[int, int, int],
    examples: int,
    found: dict[str, np.ndarray] | None = None,
  ):
    """Opens what is there, or makes it.

    Args:
      folder: of one radius.
      shape: of an image.
      examples: how many there are.
      found: what `columns` returned in a run that was cut short; rows beyond
        those are written over.
    """
    empty = np.full(examples, -1)
    found = found or {'x_adv_process': empty, 'x_adv_row': empty.copy()}
    self._process, self._row = found['x_adv_process'], found['x_adv_row']
    self._ends = np.zeros(jax.process_count(), int)
    for process in range(len(self._ends)):
      rows = self._row[self._process == process]
      self._ends[process] = rows.max(initial=-1) + 1
    self._shape = shape
    # A chunk is compressed as a whole, however few of its rows are written.
    self._each = min(_CHUNK_BYTES // (4 * int(np.prod(shape))), examples)
    self._each = max(self._each, 1)
    end = int(self._ends[jax.process_index()])
    begin = end - end % self._each  # of a chunk that is not full
    with _damage(folder):
      self._store = _open(folder, jax.process_index(), shape, self._each)
      self._waiting = list(self._store[begin:end].read().result())
    self._first, self._writes = begin, []

  def keep(
    self,
    x_adv: jax.Array,
    kept: Bool[np.ndarray, 'batch'],
    index: Int[np.ndarray, 'batch'],
    rows: BatchRows,
  ) -> None:
    """See `Keeper`."""
    for process in range(len(self._ends)):
      here = np.flatnonzero(kept & (rows.owner == process))
      first = self._ends[process]
      self._ends[process] += len(here)
      self._process[index[here]] = process
      self._row[index[here]] = np.arange(first, first + len(here))
      if process == jax.process_index() and len(here):
        mine = np.empty((len(here), *self._shape), np.float32)
        place = np.zeros(len(kept), int)
        place[here] = np.arange(len(here))
        rows.take(x_adv, kept, mine, place)
        self._waiting += list(mine)
    while len(self._waiting) >= self._each:
      self._write(self._waiting[: self._each])
      del self._waiting[: self._each]
      self._first += self._each

  def flush(self) -> None:
    """See `Keeper`."""
    if self._waiting:
      self._write(self._waiting)
    for write in self._writes:
      write.result()
    self._writes = []

  def columns(self) -> dict[str, np.ndarray]:
    """See `Keeper`: the process that has it, and the row there."""
    return {'x_adv_process': self._process, 'x_adv_row': self._row}

  def _write(self, images):
    end = self._first + len(images)
    write = self._store[self._first : end].write(np.stack(images))
    self._writes.append(write)
    while len(self._writes) > _MOST_WRITES:  # which hold their images
      self._writes.pop(0).result()


def read(
  folder: str | os.PathLike,
  process: Int[np.ndarray, 'images'],
  row: Int[np.ndarray, 'images'],
  shape: tuple[int, int, int],
) -> Images:
  """Images of an archive.

  Args:
    folder: of one radius.
    process: the process that kept each image.
    row: the place of each among that process's.
    shape: of an image.

  Raises:
    UserError: they are damaged, or not there.
  """
  out = np.empty((len(row), *shape), np.float32)
  with _damage(folder):
    for number in np.unique(process):
      here = process == number
      store = _open(folder, int(number), shape, None)
      out[here] = store[row[here].tolist()].read().result()
    if np.isnan(out).any():  # which rows are that were never written
      raise ValueError('images are missing')
  return out


@contextlib.contextmanager
def _damage(folder) -> Iterator[None]:
  """Says in one line what cannot be read."""
  try:
    yield
  except (ValueError, OSError) as error:
    said = str(error).strip().split('\n')[0]
    raise UserError(
      f'the attacked images in {folder} are damaged ({said}); delete the '
      'folder of the attack, and run it again'
    ) from error


def require_space(folder: str | os.PathLike, needed: int, field: str) -> None:
  """Refuses to begin what the disk has no room for.

  Raises:
    UserError: less than `needed` bytes are free.
  """
  path = pathlib.Path(folder).absolute()
  while not path.exists():
    path = path.parent
  free = shutil.disk_usage(path).free
  if free < needed:
    raise UserError(
      f'{field} needs {needed / 1e9:.1f} GB at {folder}, where '
      f'{free / 1e9:.1f} GB are free; attack a part, such as '
      "config.data.split='test[:1000]', or leave the images out"
    )


def _open(folder, process, shape, each):
  place = os.fspath(folder)
  if '://' not in place:
    place = pathlib.Path(place).absolute().as_uri()
  store = f'{place}/process-{process}/'
  spec: dict[str, Any] = {'driver': 'zarr3', 'kvstore': store}
  if each is None:
    return ts.open(spec, read=True).result()
  grid = {'chunk_shape': [each, *shape]}
  blosc = {'cname': 'zstd', 'clevel': 1, 'shuffle': 'shuffle', 'typesize': 4}
  # Rows that were never written take no space, and are read as no number.
  spec['metadata'] = {
    'shape': [2**40 // each * each, *shape],
    'chunk_grid': {'name': 'regular', 'configuration': grid},
    'data_type': 'float32',
    'fill_value': 'NaN',
    'codecs': [
      {'name': 'bytes', 'configuration': {'endian': 'little'}},
      {'name': 'blosc', 'configuration': blosc},
      {'name': 'crc32c'},  # so that a flipped bit is an error
    ],
  }
  return ts.open(spec, open=True, create=True).result()
