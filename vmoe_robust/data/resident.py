"""A training split that is kept on the devices, decoded.

The order of examples is that of `pipeline.train_batches`, so a run may change
between the two when it resumes. What augmentation draws for an example is a
function of (seed, epoch, number of the example); it is not what the other
path draws.
"""

from collections.abc import Iterator
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, UInt8
from ml_collections import ConfigDict

from vmoe_robust.data import order
from vmoe_robust.data.load import Loader, Row, Skipped, require_images
from vmoe_robust.data.source import Source
from vmoe_robust.mesh.batch import BatchRows

# Set apart from all other draws from the run's seed ('data' in ASCII).
_STREAM = 0x64617461
_HALF = np.float32(0.5)
_TASK = 256  # examples that are decoded as one task


class Resident:
  """A decoded split on every device, and a place in the order of examples."""

  def __init__(
    self,
    data: ConfigDict,
    source: Source,
    *,
    batch_size: int,
    seed: int,
    sharding: NamedSharding,
    state: dict | None = None,
  ):
    """Decodes the split; the arguments are those of `train_batches`.

    Raises:
      UserError: as `train_batches`, and for an image that cannot be used.
    """
    self._identity = order.identity(data, source, seed)
    self._start = order.consumed(self._identity, state)
    self._taken = 0
    self._order = order.Epochs(len(source), seed)
    self._rows = BatchRows(sharding, batch_size)
    batch = (None, *sharding.spec)
    self._steps = NamedSharding(sharding.mesh, PartitionSpec(*batch))
    self._skipped = Skipped(source)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    rows = decoded(data, source)
    skipped = np.flatnonzero(~rows['mask'])
    self._skipped.note(self._skipped.names(skipped))
    require_images(data.split, len(source) - len(skipped), len(skipped))
    key = jax.random.fold_in(jax.random.key(seed), _STREAM)
    rows['key'] = np.asarray(jax.random.key_data(key))
    self.arrays = {name: _on_all(x, whole) for name, x in rows.items()}

  @property
  def corrupt(self) -> list[str]:
    """The images that are skipped: see `TrainBatches.corrupt`."""
    return self._skipped.named

  def take(self, steps: int, most: int) -> dict[str, jax.Array]:
    """Which examples the next steps see.

    Args:
      steps: how many.
      most: the steps for which the arrays have room; the rest is 0.

    Returns:
      'index' and 'epoch', int32 [most, batch]: the number of the example in
      the split, and how often all examples were seen before.
    """
    size = self._rows.batch_size
    first = self._start + self._taken * size
    index, epoch = self._order(first, steps * size)
    self._taken += steps
    return {'index': self._put(index, most), 'epoch': self._put(epoch, most)}

  def state(self) -> dict:
    """That of `TrainBatches`, after the last steps taken."""
    consumed = self._start + self._taken * self._rows.batch_size
    return dict(self._identity, consumed=consumed, resident=True)

  def close(self) -> None:
    """Stops preparing the order, and says how many images were skipped."""
    self._order.close()
    self._skipped.close()

  def _put(self, values, most):
    padded = np.zeros((most, self._rows.batch_size), np.int32)
    padded.reshape(-1)[: len(values)] = values
    return jax.make_array_from_callback(
      padded.shape, self._steps, lambda index: padded[index]
    )


def resident_batch(
  arrays: dict[str, Array],
  index: Int[Array, 'batch'],
  epoch: Int[Array, 'batch'],
  data: ConfigDict,
) -> dict[str, Array]:
  """The batch of some examples, augmented; pure, for a compiled program.

  Args:
    arrays: of `Resident`.
    index: the numbers of the examples.
    epoch: how often all examples were seen before.
    data: `config.data`.

  Returns:
    'image', 'label' and 'mask' as those of `TrainBatches`.
  """
  found = {
    name: arrays[name].at[index].get(mode='promise_in_bounds')
    for name in ('image', 'label', 'mask')
  }
  if data.crop == 'pad' or data.flip:
    base = jax.random.wrap_key_data(arrays['key'])

    def key(epoch, index):
      return jax.random.fold_in(jax.random.fold_in(base, epoch), index)

    keys = jax.vmap(key)(epoch, index)
    pad = data.pad if data.crop == 'pad' else 0
    tops, lefts, mirrored = jax.vmap(lambda k: draws(k, pad))(keys)
    mirrored &= data.flip
    cut = lambda image, top, left, flips: crop(image, top, left, flips, pad)
    found['image'] = jax.vmap(cut)(found['image'], tops, lefts, mirrored)
  return found


def draws(key: Key[Array, ''], pad: int) -> tuple[Array, Array, Array]:
  """Top and left of a crop in 0 to 2 * `pad`, and whether to mirror."""
  for_crop, for_mirror = jax.random.split(key)
  places = jax.random.randint(for_crop, (2,), 0, 2 * pad + 1, jnp.int32)
  # In float32 whatever the default is, which draws would follow.
  return places[0], places[1], jax.random.bernoulli(for_mirror, _HALF)


def crop(
  image: UInt8[Array, 'height width channels'],
  top: Int[Array, ''],
  left: Int[Array, ''],
  mirror: Array,
  pad: int,
) -> UInt8[Array, 'height width channels']:
  """Pads by `pad` black pixels, crops the old size, and may mirror."""
  padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
  return jnp.where(mirror, image[:, ::-1], image)


def decoded(data: ConfigDict, source: Source) -> dict[str, np.ndarray]:
  """All examples as training sees them before augmentation.

  Returns:
    'image' uint8 [examples, size, size, channels], 'label' and 'mask'.
  """
  # Crops as evaluation does, but keeps an image without any of several labels.
  plain = data.copy_and_resolve_references()
  plain.update(crop='none', flip=False, randaugment_layers=0)
  load, count = Loader(source, plain, train=True), len(source)
  shape = (data.image_size, data.image_size, source.channels)
  images = np.empty((count, *shape), np.uint8)
  labels = np.empty(count, np.int32)
  if source.multi_label:
    labels = np.empty((count, source.num_classes), np.float32)
  mask = np.empty(count, bool)

  def fill(start: int) -> None:
    rng = np.random.default_rng(0)  # nothing is drawn
    for i in range(start, min(start + _TASK, count)):
      row: Row = load(i, rng)
      images[i], labels[i], mask[i] = row['image'], row['label'], row['mask']

  with futures.ThreadPoolExecutor(data.threads, 'vmoe-decode') as threads:
    done: Iterator[None] = threads.map(fill, range(0, count, _TASK))
    try:
      list(done)
    except BaseException:
      threads.shutdown(cancel_futures=True)
      raise
  return {'image': images, 'label': labels, 'mask': mask}


def _on_all(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )
