import contextlib
import random
import tracemalloc

import pytest

from vmoe_robust.checkpoint import open_weights
from vmoe_robust.config import UserError


@pytest.fixture
def peak_of():
  """The most memory that an action takes at any time, in bytes."""

  def measure(action):
    action()  # what is made once, such as checks of types, does not count
    tracemalloc.start()
    try:
      action()
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  return measure


@pytest.fixture
def flipped():
  """What comes of files of which a bit flips, or whose end is cut off."""

  def outcomes(path, files, arrays, times):
    rng, seen = random.Random(0), set()
    for trial in range(times):
      file = rng.choice(files)
      whole = file.read_bytes()
      changed = bytearray(whole)
      changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
      if trial % 4 == 0:
        del changed[rng.randrange(len(whole)) :]
      file.write_bytes(changed)
      seen.add(_outcome(path, arrays))
      file.write_bytes(whole)
    assert _outcome(path, arrays) == 'equal'
    return seen

  return outcomes


def _outcome(path, arrays):
  """Not more than one array or name may be wrong, and no type or shape."""
  try:
    with contextlib.closing(open_weights(path)) as weights:
      found = {name: weights.read(name) for name in weights.shapes}
  except UserError:
    return 'refused'
  if found.keys() != arrays.keys():
    assert len(found.keys() - arrays.keys()) <= 1
    return 'other name'
  for name, array in arrays.items():
    assert found[name].shape == array.shape
    assert found[name].dtype == array.dtype
  other = [n for n in arrays if found[n].tobytes() != arrays[n].tobytes()]
  assert len(other) <= 1
  return 'other value' if other else 'equal'
