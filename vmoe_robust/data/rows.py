"""Examples by number, for whoever does not want them in order."""

import contextlib
from collections.abc import Iterable
from concurrent import futures

import numpy as np
from jaxtyping import Float, Int32, UInt8
from ml_collections import ConfigDict

from vmoe_robust.data.load import Loader, Row
from vmoe_robust.data.source import Source


class Rows:
  """Reads and decodes what is asked for, in threads, and what will be."""

  def __init__(self, source: Source, data: ConfigDict):
    """`data` is `config.data`; images come as evaluation sees them."""
    self._source, self._ahead = source, {}
    self._load = Loader(source, data, train=False)
    self._threads = futures.ThreadPoolExecutor(data.threads, 'vmoe-rows')

  def __len__(self) -> int:
    return len(self._source)

  def ahead(self, indices: Iterable[int]):
    """Begins to load examples that will be asked for; others are forgotten."""
    before, self._ahead = self._ahead, {}
    for index in indices:
      self._ahead[index] = before.pop(index, None) or self._submit(index)
    for future in before.values():
      future.cancel()

  def __call__(self, indices: np.ndarray) -> Row:
    """The rows of examples, stacked; -1 is padding."""
    waiting = [
      self._ahead.pop(i, None) or self._submit(i) for i in indices.tolist()
    ]
    rows = [future.result() for future in waiting]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def describe(self, index: int) -> str:
    """A name by which a person finds the example."""
    return self._source.describe(index)

  def close(self):
    """Stops the threads."""
    self._ahead = {}
    self._threads.shutdown(wait=True, cancel_futures=True)

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
    count: as many, or all there are if they are fewer; corrupt images that
      `data.on_corrupt='skip'` skips are missing.

  Raises:
    UserError: an image is corrupt and `data.on_corrupt='error'`.
  """
  count = min(count, len(source))
  with contextlib.closing(Rows(source, data)) as rows:
    # Not the first: folders are sorted by class.
    found = rows(np.arange(count) * len(source) // count)
  good = found['mask']
  return found['image'][good], found['label'][good]
