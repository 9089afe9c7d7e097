import itertools
import threading
import time

import jax
import pytest

from vmoe_robust.distributed import barriers

PROCESSES, PLACES = 3, 2


class Client:
  """The service of `jax.distributed`, for threads in place of processes."""

  def __init__(self, slow):
    self.told, self.rows, self.lock = {}, {}, threading.Lock()
    self.slow = slow  # the process that looks for news late

  def wait_at_barrier(self, key, milliseconds):
    with self.lock:
      row = self.rows.setdefault(key, threading.Barrier(PROCESSES))
    try:
      row.wait(milliseconds / 1000)
    except threading.BrokenBarrierError as error:
      raise jax.errors.JaxRuntimeError(f'timed out at {key}') from error

  def key_value_set(self, key, value):
    with self.lock:
      if key in self.told:
        raise jax.errors.JaxRuntimeError('already exists')
      self.told[key] = value

  def key_value_try_get(self, key):
    if jax.process_index() == self.slow:
      time.sleep(0.02)
    if key not in self.told:
      raise jax.errors.JaxRuntimeError('not found')
    return self.told[key]


# Of each process after how many barriers it fails, if it does.
CASES = list(itertools.product((0, 1, None), repeat=PROCESSES))


@pytest.mark.parametrize('failures', CASES, ids=str)
@pytest.mark.parametrize('slow', range(PROCESSES))
def test_one_that_fails_ends_all_and_nobody_waits(monkeypatch, failures, slow):
  client, here = Client(slow), threading.local()
  monkeypatch.setattr(barriers, '_client', lambda: client)
  monkeypatch.setattr(jax, 'process_count', lambda: PROCESSES)
  monkeypatch.setattr(jax, 'process_index', lambda: here.process)
  ends = {}

  def run(process):
    here.process, row = process, barriers.Barriers('row')
    try:
      for place in range(PLACES):
        if failures[process] == place:
          raise ValueError('it failed')
        row.wait(5)
      ends[process] = None
    except (ValueError, RuntimeError) as error:
      row.fail(str(error), 5)
      ends[process] = str(error)

  threads = [threading.Thread(target=run, args=(p,)) for p in range(PROCESSES)]
  began = time.monotonic()
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert time.monotonic() < began + 3, 'one waited in vain for another'
  first = min((f for f in failures if f is not None), default=None)
  for process, failure in enumerate(failures):
    if first is None:
      assert ends[process] is None
    elif failure == first:
      assert ends[process] == 'it failed'
    else:
      assert ends[process].endswith(': it failed')
