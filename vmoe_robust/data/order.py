"""The one endless order of examples that training follows."""

from concurrent import futures

import grain
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data.permutation import permutation
from vmoe_robust.data.source import Source

_COMPARED = 32  # positions of an epoch


def shuffled(examples: int, seed: int) -> grain.MapDataset:
  """The number of the example at each position, without end.

  Every epoch is a permutation of its own.
  """
  return _one_epoch(examples, seed).repeat()


def _one_epoch(examples: int, seed: int) -> grain.MapDataset:
  # Grain takes seeds of 32 bits and hashes them itself.
  return grain.MapDataset.range(examples).seed(seed % 2**32).shuffle()


def identity(data: ConfigDict, source: Source, seed: int) -> dict:
  """What decides the order, as a checkpoint keeps it."""
  return dict(
    name=data.name,
    split=data.split,
    examples=len(source),
    seed=seed,
    fingerprint=source.fingerprint,
  )


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
    fingerprint='the fingerprint of the examples',
  )
  for name, field in fields.items():
    # Versions before this one kept no fingerprint.
    if name == 'fingerprint' and name not in state:
      continue
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
    # Grain's own; None if it has another shuffle than `permutation`.
    self._seed = getattr(_one_epoch(examples, seed), '_seed', None)
    places = np.unique(np.linspace(0, examples - 1, _COMPARED).astype(int))
    for epoch in (0, 1):
      if self._seed is not None:
        ours, first = self._epoch(epoch)[places], epoch * examples
        theirs = [self._numbers[first + int(place)] for place in places]
        self._seed = self._seed if ours.tolist() == theirs else None
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
    if self._seed is not None:
      return permutation(self._examples, (self._seed + epoch) % 2**32)
    first = epoch * self._examples
    return np.array([self._numbers[first + i] for i in range(self._examples)])
