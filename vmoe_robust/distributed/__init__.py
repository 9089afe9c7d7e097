"""Processes that start, agree and end together."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree


def together(name: str) -> None:
  """Waits for the other processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agreed(value: bool | int) -> bool | int:
  """The first process's answer, on all of them; they wait for it."""
  if jax.process_count() == 1:
    return value
  kind = type(value)
  return kind(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def fetch(tree: PyTree) -> PyTree:
  """The whole arrays of a tree, on every host."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)
