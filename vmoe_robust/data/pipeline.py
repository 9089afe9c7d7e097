"""Batches on the devices: the same path for training, evaluation and attack.

Everything is computed from positions in one global, endless order of
examples. Position p of epoch e has an example (a shuffle by seed and e) and a
random generator (by seed and p), so no thread, worker, host or batch size
changes what stands there, and a run resumes by the number of examples
consumed. A process loads only the rows of the global batch that its devices
hold.
"""

import sys
from collections.abc import Sequence
from concurrent import futures

import grain
import jax
import numpy as np
from absl import flags
from grain import experimental
from ml_collections import ConfigDict

from vmoe_robust.data import order
from vmoe_robust.data.corruptions import Corruption
from vmoe_robust.data.load import Loader, Skipped, Variants, require_images
from vmoe_robust.data.source import Source
from vmoe_robust.mesh.batch import BatchRows

_CHUNK = 16  # at most so many rows are loaded as one task


def train_batches(
  data: ConfigDict,
  source: Source,
  *,
  batch_size: int,
  seed: int,
  sharding: jax.sharding.NamedSharding,
  state: dict | None = None,
) -> 'TrainBatches':
  """Shuffled, augmented batches without end.

  Args:
    data: `config.data`.
    source: the examples.
    batch_size: of all devices together.
    seed: of the order and the augmentation.
    sharding: how the leading axis lies on the devices.
    state: of another run's `TrainBatches.state()`, to go on where it was.

  Raises:
    UserError: the state is that of other data or another seed.
  """
  identity = order.identity(data, source, seed)
  start = order.consumed(identity, state)
  numbers = order.shuffled(len(source), seed)
  positions = numbers.random_map(Loader(source, data, train=True))
  return TrainBatches(
    data, source, positions, batch_size, sharding, start, identity
  )


def eval_batches(
  data: ConfigDict,
  source: Source,
  *,
  batch_size: int,
  sharding: jax.sharding.NamedSharding,
  corruptions: Sequence[Corruption] = (),
  first: int = 0,
) -> 'EvalBatches':
  """Every example once, in order; the last batch is padded and masked.

  Args:
    data: `config.data`.
    source: the examples.
    batch_size: of all devices together.
    sharding: how the leading axis lies on the devices.
    corruptions: every example once under each of them, one after the other;
      'variant' int32 [batch] says which.
    first: leaves out the batches before this one.
  """
  loader = Loader(source, data, train=False)
  rows = len(source) * max(len(corruptions), 1)
  padded = -(-rows // batch_size) * batch_size
  positions = (
    grain.MapDataset.range(padded)
    .seed(0)  # not drawn from
    .random_map(Variants(loader, tuple(corruptions)) if corruptions else loader)
  )
  start = first * batch_size
  return EvalBatches(data, source, positions, batch_size, sharding, start)


class _Batches:
  """Loads ahead in the background and keeps batches ready on the devices."""

  def __init__(
    self,
    data: ConfigDict,
    source: Source,
    positions: grain.MapDataset,
    batch_size: int,
    sharding: jax.sharding.NamedSharding,
    start: int = 0,
  ):
    self._start, self._skipped = start, Skipped(source)
    self._rows = BatchRows(sharding, batch_size)
    mine = self._rows.mine
    rows = ProcessRows(positions, mine, batch_size, start)
    self._chunks = _chunks(len(mine))
    self._iterator = iter(_iter_dataset(rows, self._chunks, data))
    self._total = len(rows) // len(mine)  # batches there are
    self._taken = 0
    # One thread, so that batches come in order; it waits for the loading
    # threads and starts the transfers, and its errors surface in __next__.
    self._thread = futures.ThreadPoolExecutor(1, 'vmoe-batches')
    ahead = min(data.prefetch, self._total)
    self._ready = [self._thread.submit(self._load) for _ in range(ahead)]

  def __iter__(self) -> '_Batches':
    return self

  def __next__(self) -> dict[str, jax.Array]:
    if self._taken == self._total or not self._ready:
      raise StopIteration
    try:
      batch, corrupt = self._ready.pop(0).result()
    except BaseException:
      self.close()  # what comes after a failure would be out of step
      raise
    self._taken += 1
    if self._taken + len(self._ready) < self._total:
      self._ready.append(self._thread.submit(self._load))
    self._skipped.note(corrupt)
    return batch

  @property
  def corrupt(self) -> list[str]:
    """The images skipped so far by this process, each named once.

    They are corrupt, or their label is no class, which their name then says.
    """
    return self._skipped.named

  def close(self):
    """Stops the threads and worker processes; the iterator is then empty."""
    self._skipped.close()
    self._ready = []
    self._thread.shutdown(wait=True, cancel_futures=True)
    self._iterator.close()

  def _load(self) -> tuple[dict[str, jax.Array], list[str]]:
    chunks = [next(self._iterator) for _ in range(self._chunks)]
    rows = {
      name: np.concatenate([chunk[name] for chunk in chunks])
      for name in chunks[0]
    }
    skipped = rows['index'][~rows['mask'] & (rows['index'] >= 0)]
    corrupt = self._skipped.names(skipped)
    return {name: self._rows.put(x) for name, x in rows.items()}, corrupt


class TrainBatches(_Batches):
  """An endless iterator of batches; `state()` says where it is.

  A batch has 'image' uint8 [batch, height, width, channels], 'label' int32
  [batch] (float32 [batch, classes] if there are several labels an image) and
  'mask' bool [batch], False where an image was skipped: it is corrupt, or its
  label is no class.
  """

  def __init__(
    self, data, source, positions, batch_size, sharding, start, identity
  ):
    self._identity, self._split = identity, data.split
    self._examples, self._usable = len(source), False
    super().__init__(data, source, positions, batch_size, sharding, start)

  def __next__(self) -> dict[str, jax.Array]:
    batch = super().__next__()
    if not self._usable:
      self._require_images(batch)
    del batch['index']
    return batch

  def _require_images(self, batch):
    """Refuses to go on if all examples came twice, and none could be used.

    It looks until the first batch with an image, on this process's devices.
    """
    shards = batch['mask'].addressable_shards
    self._usable = any(np.asarray(shard.data).any() for shard in shards)
    if self._taken * self._rows.batch_size >= 2 * self._examples:
      require_images(self._split, self._usable, self._examples)

  def state(self) -> dict:
    """What `train_batches` needs to go on after the last batch taken."""
    consumed = self._start + self._taken * self._rows.batch_size
    return dict(self._identity, consumed=consumed, resident=False)


class EvalBatches(_Batches):
  """One pass over the examples, of `len()` batches.

  A batch is that of `TrainBatches` with 'index' int32 [batch]: the example's
  number in the split, or -1 where the mask hides padding.
  """

  def __len__(self) -> int:
    return self._total


class ProcessRows(grain.MapDataset):
  """Of each batch of positions, this process's rows."""

  def __init__(self, parent, rows, batch_size: int, start: int):
    super().__init__(parent)
    self._rows, self._batch_size, self._start = rows, batch_size, start

  def __len__(self) -> int:
    batches = (len(self._parent) - self._start) // self._batch_size
    # The endless stream has sys.maxsize positions; more rows cannot be.
    return min(batches, sys.maxsize // len(self._rows)) * len(self._rows)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, len(self._rows))
    position = self._start + batch * self._batch_size + int(self._rows[row])
    return self._parent[position]


def _chunks(rows: int) -> int:
  """Into how many equal tasks a batch is cut."""
  return next(n for n in range(-(-rows // _CHUNK), rows + 1) if rows % n == 0)


def _iter_dataset(rows: ProcessRows, chunks: int, data: ConfigDict):
  dataset = rows.batch(len(rows._rows) // chunks).to_iter_dataset(
    grain.ReadOptions(data.threads, max(data.threads, chunks))
  )
  if not data.workers:
    return dataset
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's workers insist; nothing is parsed
  # Workers send arrays through pipes. Grain frees shared memory in a thread
  # which the end of the process stops, and keeps a stream's last chunk until
  # then, so that some would be left behind.
  dataset = experimental.WithOptionsIterDataset(
    dataset, experimental.DatasetOptions(min_shm_size=sys.maxsize)
  )
  # Whole chunks go round the workers in turn, which keeps their order.
  return dataset.mp_prefetch(
    grain.MultiprocessingOptions(
      num_workers=data.workers, per_worker_buffer_size=chunks
    )
  )
