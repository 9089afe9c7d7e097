"""Processes that start, agree and end together."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree


def together(name: str) -> None:
  """Waits for the other processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


_Answer = TypeVar('_Answer', bool, int)


def agreed(value: _Answer) -> _Answer:
  """The first process's answer, on all of them; they wait for it.

  A number has up to 62 bits.
  """
  if jax.process_count() == 1:
    return value
  # In halves, for JAX keeps 32 bits of a number.
  halves = np.array([value >> 31, value & (2**31 - 1)], np.int32)
  high, low = multihost_utils.broadcast_one_to_all(halves).tolist()
  return type(value)((high << 31) + low)


def least(value: float) -> float:
  """The least of the processes' values, in float32, on all of them."""
  if jax.process_count() == 1:
    return value
  every = multihost_utils.process_allgather(np.asarray(value, np.float32))
  return float(np.min(every))


def fetch(tree: PyTree) -> PyTree:
  """The whole arrays of a tree, on every host."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def shared(read: Callable[[], bytes | None]) -> bytes | None:
  """What the first process reads, on all of them; only it calls `read`.

  All wait for it, so that none enters a collective that others do not.
  """
  data = read() if jax.process_index() == 0 else None
  if jax.process_count() == 1:
    return data
  length = agreed(-1 if data is None else len(data))
  if length < 0:
    return None
  room = np.zeros(length, np.uint8)
  if jax.process_index() == 0:
    room[:] = np.frombuffer(data, np.uint8)
  return multihost_utils.broadcast_one_to_all(room).tobytes()
