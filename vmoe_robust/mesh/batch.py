"""Batches of a fixed size, and which of their rows a process holds."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Int


def process_rows(
  shards: Mapping[jax.Device, tuple[slice, ...]], batch_size: int
) -> Int[np.ndarray, 'rows']:
  """The rows of the global batch on some devices, ascending, each once.

  Args:
    shards: each device's part of the batch, as
      `sharding.addressable_devices_indices_map` gives it.
    batch_size: of all devices together.
  """
  parts = [np.arange(batch_size)[index[0]] for index in shards.values()]
  return np.unique(np.concatenate(parts))


class BatchRows:
  """Puts this process's rows of a batch on its devices, and takes them back."""

  def __init__(self, sharding: NamedSharding, batch_size: int):
    """For batches of so many rows, of all devices together."""
    self.sharding, self.batch_size = sharding, batch_size
    shards = sharding.addressable_devices_indices_map((batch_size,))
    self.mine = process_rows(shards, batch_size)  # ascending
    # The process from which `take` takes a row.
    self.owner = np.full(batch_size, -1)
    device: Any  # of whose type JAX says too little
    for device, index in sharding.devices_indices_map((batch_size,)).items():
      part = self.owner[index[0]]
      part[part < 0] = device.process_index

  def put(self, rows: np.ndarray) -> jax.Array:
    """An array over all devices, of the rows `mine`."""

    def part(index):
      first, stop, _ = index[0].indices(self.batch_size)
      low, high = np.searchsorted(self.mine, (first, stop))
      return rows[low:high]

    shape = (self.batch_size, *rows.shape[1:])
    return jax.make_array_from_callback(shape, self.sharding, part)

  def spread(self, whole: np.ndarray) -> jax.Array:
    """An array over all devices, of all rows, which every process has."""
    return self.put(whole[self.mine])

  def take(
    self, array: jax.Array, wanted: np.ndarray, out: np.ndarray, to: np.ndarray
  ) -> None:
    """Writes the rows that are `wanted` and lie here to `out[to]`."""
    for shard in array.addressable_shards:
      here = np.zeros(self.batch_size, bool)
      here[shard.index[0]] = True
      rows = np.flatnonzero(here & wanted)
      if len(rows) and shard.replica_id == 0:
        first = shard.index[0].indices(self.batch_size)[0]
        out[to[rows]] = np.asarray(shard.data)[rows - first]
