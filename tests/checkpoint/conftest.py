import gc
import tracemalloc

import pytest


@pytest.fixture
def peak_of():
  """The most memory that an action takes at any time, in bytes."""

  def measure(action):
    action()  # what is made once, such as checks of types, does not count
    gc.collect()
    tracemalloc.start()
    try:
      action()
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  return measure
