"""Examples by number, for whoever does not want them in order."""

import contextlib
from collections.abc import Iterable, Iterator
from concurrent import futures

import numpy as np
from jaxtyping import Float, Int32, UInt8
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data.load import Loader, describe_skipped
from vmoe_robust.data.source import Source

# The fields of `load.Row`, by name.
Fields = dict[str, np.ndarray]


class Rows:
  """Reads and decodes what is asked for, in threads, and what will be.

  Decoded rows stay in memory until they fill `config.data.cache_bytes`; rows
  that come later are decoded each time. An attack passes over the same examples
  again and again, in the same order. Then a cache that replaced old rows by new
  ones would always have dropped what is asked for next.

  Besides the cache, memory holds the rows that `ahead` named last, or in
  `batches` those of `config.data.prefetch` batches and the batch in use.
  """

  def __init__(self, source: Source, data: ConfigDict):
    """`data` is `config.data`; images come as evaluation sees them."""
    self._source, self._ahead = source, {}
    self._load = Loader(source, data, train=False)
    self._cache: dict[int, Fields] = {}
    self._free, self._prefetch = data.cache_bytes, data.prefetch
    self._threads = futures.ThreadPoolExecutor(data.threads, 'vmoe-rows')

  def __len__(self) -> int:
    return len(self._source)

  def ahead(self, indices: Iterable[int]) -> None:
    """Begins to load examples that will be asked for; others are forgotten."""
    before, self._ahead = self._ahead, {}
    for index in indices:
      if index not in self._cache:
        self._ahead[index] = before.pop(index, None) or self._submit(index)
    for future in before.values():
      future.cancel()

  def __call__(self, indices: np.ndarray) -> Fields:
    """The rows of examples, stacked; -1 is padding."""
    wanted = indices.tolist()
    waiting = {
      i: self._ahead.pop(i, None) or self._submit(i)
      for i in dict.fromkeys(wanted)
      if i not in self._cache
    }
    new = {i: future.result() for i, future in waiting.items()}
    for index, row in new.items():
      self._keep(index, row)
    rows = [new[i] if i in new else self._cache[i] for i in wanted]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def batches(self, indices: np.ndarray, size: int) -> Iterator[Fields]:
    """Rows batch by batch, while the next batches are loaded.

    Args:
      indices: examples, -1 for padding; a multiple of `size` of them.
      size: rows of a batch.
    """
    reach = (1 + self._prefetch) * size
    for start in range(0, len(indices), size):
      self.ahead(indices[start : start + reach].tolist())
      yield self(indices[start : start + size])

  def describe(self, index: int) -> str:
    """A name by which a person finds the example, and why it was skipped."""
    return describe_skipped(self._source, index)

  def close(self) -> None:
    """Stops the threads and empties the cache."""
    self._ahead, self._cache = {}, {}
    self._threads.shutdown(wait=True, cancel_futures=True)

  def _keep(self, index, row):
    size = sum(value.nbytes for value in row.values())
    if size <= self._free:
      self._cache[index] = row
      self._free -= size

  def _submit(self, index):
    place = index if index >= 0 else len(self._source)
    # Evaluation draws nothing.
    return self._threads.submit(self._load, place, np.random.default_rng(0))


def examples(
  source: Source, data: ConfigDict, count: int
) -> tuple[
  UInt8[np.ndarray, 'examples size size channels'],
  Int32[np.ndarray, 'examples'] | Float[np.ndarray, 'examples classes'],
]:
  """Images and labels from all over a split, as evaluation sees them.

  Args:
    source: the split.
    data: `config.data`, which says how images are resized and cropped.
    count: as many, or all there are if they are fewer; images that are
      skipped by `data.on_corrupt` or `data.on_unlabelled` are missing.

  Raises:
    UserError: an image is corrupt and `data.on_corrupt='error'`, or its label
      is no class and `data.on_unlabelled='error'`, or `count` is below 1.
  """
  if count < 1:
    raise UserError(f'count={count} asks for no examples; use 1 or more')
  count = min(count, len(source))
  with contextlib.closing(Rows(source, data)) as rows:
    # Not the first, which may be alike.
    found = rows(np.arange(count) * len(source) // count)
  good = found['mask']
  return found['image'][good], found['label'][good]
