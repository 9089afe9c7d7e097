"""The one endless order of examples that training follows."""

import grain
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
