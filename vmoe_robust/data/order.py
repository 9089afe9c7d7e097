"""The one endless order of examples that training follows."""

from concurrent import futures

import grain
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data.source import Source


def shuffled(examples: int, seed: int) -> grain.MapDataset:
  """The number of the example at each position, without end.

  Every epoch is a permutation of its own.
  """
  # Grain takes seeds of 32 bits and hashes them itself.
  return grain.MapDataset.range(examples).seed(seed % 2**32).shuffle().repeat()


def identity(data: ConfigDict, source: Source, seed: int) -> dict:
  """What decides the order, as a checkpoint keeps it."""
  return dict(name=data.name, split=data.split, examples=len(source), seed=seed)


def consumed(identity: dict, state: dict | None) -> int:
  """The number of examples that an earlier run consumed.

  Args:
    identity: of the order.
    state: the identity and the number, as a checkpoint has them.

  Raises:
    UserError: the order was another.
  """
  if state is None:
    return 0
  fields = dict(
    name='config.data.name',
    split='config.data.split',
    examples='the number of examples of config.data.split',
    seed='config.seed',
  )
  for name, field in fields.items():
    if state.get(name) != identity[name]:
      raise UserError(
        f'{field}={identity[name]!r} was {state.get(name)!r} when the '
        'checkpoint was saved, which would change the order of the examples; '
        'set it back, or start with a new --workdir'
      )
  return int(state['consumed'])


class Epochs:
  """Parts of the order, of which the next epoch is prepared in a thread."""

  def __init__(self, examples: int, seed: int):
    """The order that `shuffled` gives position by position."""
    self._examples, self._numbers = examples, shuffled(examples, seed)
    self._thread = futures.ThreadPoolExecutor(1, 'vmoe-order')
    self._epochs: dict[int, futures.Future] = {}

  def __call__(
    self, first: int, count: int
  ) -> tuple[Int[np.ndarray, 'positions'], Int[np.ndarray, 'positions']]:
    """The numbers of the examples at `count` positions, and their epochs."""
    epochs, places = np.divmod(first + np.arange(count), self._examples)
    index = np.empty(count, np.int64)
    now = first // self._examples
    last = int(epochs[-1]) if count else now
    for epoch in range(now, last + 2):
      if epoch not in self._epochs:
        self._epochs[epoch] = self._thread.submit(self._epoch, epoch)
    for epoch in range(now, last + 1):
      here = epochs == epoch
      index[here] = self._epochs[epoch].result()[places[here]]
    self._epochs = {e: found for e, found in self._epochs.items() if e >= last}
    return index, epochs

  def close(self) -> None:
    """Stops the thread."""
    self._thread.shutdown(wait=True, cancel_futures=True)

  def _epoch(self, epoch: int) -> np.ndarray:
    first = epoch * self._examples
    return np.array([self._numbers[first + i] for i in range(self._examples)])
