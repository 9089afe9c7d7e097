"""Checkpoints of the official V-MoE code, read piece by piece.

PREFIX.index tells, for each array, its shape and in which of the files
PREFIX.data-SSSSS-of-NNNNN its chunks lie (for experts, one a device). Opening
reads the index and finds where in these files each chunk begins. All of it is
untrusted: what is claimed is checked before it is believed, and memory is asked
for only to hold what is there.
"""

import concurrent.futures
import contextlib
import io
import math

import jax
import numpy as np

from vmoe_robust.checkpoint.files import file_system, open_to_hop, stamp
from vmoe_robust.checkpoint.msgpack import Broken, Scanner
from vmoe_robust.checkpoint.official_format import (
  Bounds,
  Leaf,
  describe,
  is_state,
  read_index,
  read_places,
)
from vmoe_robust.config import UserError

_INDEX_BYTES = 1 << 22  # the public ones have less than 1 MiB
_BLOCK = 1 << 25  # bytes read at once, unless a row of a chunk is longer
_THREADS = 8  # files looked through at once; in the cloud each look is slow


class OfficialWeights:
  """An official checkpoint; the names are also this project's."""

  config = None
  class_names: tuple[str, ...] = ()
  step: int | None = None

  def __init__(self, where: str, field: str):
    self.where, self._field = where, field
    self._fs, self._prefix = file_system(where, field)
    leaves, self._shards = self._index()
    used = sorted({shard for leaf in leaves for shard in leaf.chunks.values()})
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      found = pool.map(lambda shard: self._look_through(shard, leaves), used)
      self._pieces = dict(zip(used, found, strict=True))
    # A training state has the weights beside those of the optimizer.
    prefix = 'params/' if is_state(leaves) else ''
    self._leaves = {
      leaf.name.removeprefix(prefix): (number, leaf)
      for number, leaf in enumerate(leaves)
      if leaf.name.startswith(prefix)
    }
    self.renamed = {
      name: leaf.name
      for name, (_, leaf) in self._leaves.items()
      if name != leaf.name
    }
    self.shapes = {
      name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
      for name, (_, leaf) in self._leaves.items()
    }

  def read(
    self, name: str, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """An array, or a part of it; reads only the chunks that have it."""
    number, leaf = self._leaves[name]
    index = index or (slice(None),) * len(leaf.shape)
    wanted = tuple(
      s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True)
    )
    out = np.empty([stop - start for start, stop in wanted], leaf.dtype)
    for chunk, shard in leaf.chunks.items():
      shared = tuple(
        (max(a, c), min(b, d))
        for (a, b), (c, d) in zip(chunk, wanted, strict=True)
      )
      if all(start < stop for start, stop in shared):
        pieces = self._pieces[shard][number, chunk]
        self._paste(out, wanted, shared, chunk, shard, pieces)
    return out

  def stamp(self) -> str:
    """Of the files' ends and the time, for they have no checksums."""
    return stamp(self.where)

  def close(self) -> None:
    """There is nothing to let go of."""

  def _paste(self, out, wanted, shared, chunk, shard, pieces):
    """Copies what `wanted` and `chunk` share, a block of rows at a time."""
    shape = [stop - start for start, stop in chunk]
    if not shape:
      out[...] = self._bytes(shard, pieces, 0, out.nbytes).view(out.dtype)[0]
      return
    row = math.prod(shape[1:]) * out.dtype.itemsize
    step = max(1, _BLOCK // row)
    (first, last), rest = shared[0], shared[1:]
    inside = _relative(rest, chunk[1:])
    for start in range(first, last, step):
      stop = min(start + step, last)
      begin, end = (row * (r - chunk[0][0]) for r in (start, stop))
      block = self._bytes(shard, pieces, begin, end).view(out.dtype)
      block = block.reshape(stop - start, *shape[1:])
      to = _relative(((start, stop), *rest), wanted)
      out[to] = block[:, *inside]

  def _bytes(self, shard, pieces, begin, end) -> np.ndarray:
    """Bytes `begin` to `end` of a chunk that lies in pieces."""
    parts, before = [], 0
    with self._blamed(self._data(shard)) as path:
      for place, length in pieces:
        start, stop = max(begin - before, 0), min(end - before, length)
        before += length
        if start < stop:
          part = self._fs.cat_file(path, place + start, place + stop)
          if len(part) != stop - start:
            raise Broken('became shorter')
          parts.append(part)
    return np.frombuffer(parts[0] if len(parts) == 1 else b''.join(parts), 'u1')

  def _data(self, shard: int) -> str:
    return f'.data-{shard:05}-of-{self._shards:05}'

  def _index(self) -> tuple[list[Leaf], int]:
    with self._blamed('.index') as path:
      size = self._fs.size(path)
      if size > _INDEX_BYTES:
        raise Broken(f'has {size} bytes; {_INDEX_BYTES} at most are read')
      scanner = Scanner(io.BytesIO(self._fs.cat_file(path)), size)
      return read_index(scanner)

  def _look_through(self, shard, leaves):
    with self._blamed(self._data(shard)) as path:
      size = self._fs.size(path)
      with open_to_hop(self._fs, path) as file:
        found = read_places(Scanner(file, size), leaves)
      for number, leaf in enumerate(leaves):
        for chunk, holder in leaf.chunks.items():
          if holder == shard and (number, chunk) not in found:
            raise Broken(f'lacks {describe(leaf, chunk)}')
      for number, chunk in found:
        if leaves[number].chunks.get(chunk) != shard:
          what = describe(leaves[number], chunk)
          raise Broken(f'has {what}, which the index does not expect in it')
      return found

  @contextlib.contextmanager
  def _blamed(self, suffix: str):
    try:
      yield self._prefix + suffix
    except (OSError, Broken) as error:
      what = (
        str(error) if isinstance(error, Broken) else f'cannot be read: {error}'
      )
      raise UserError(
        f'{self._field}={self.where!r} is no whole V-MoE checkpoint: '
        f'{self._prefix}{suffix} {what}'
      ) from error


def _relative(bounds: Bounds, to: Bounds) -> tuple[slice, ...]:
  return tuple(
    slice(start - origin, stop - origin)
    for (start, stop), (origin, _) in zip(bounds, to, strict=True)
  )
