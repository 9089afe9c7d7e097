"""Processes that end together: two real ones, of which one is stopped."""

import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from tests.environment import xla_flags
from vmoe_robust import distributed
from vmoe_robust.distributed import pod

PROGRAM = """
import os, signal, sys, time
from vmoe_robust.distributed import pod

def stop(*_):
  raise KeyboardInterrupt

with pod.together():
  signal.signal(signal.SIGTERM, stop)  # JAX sets one of its own
  print('in', flush=True)
  time.sleep(60)
"""


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_is_no_error():
  """Launchers queue a run again by these codes and last lines."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  processes = []
  for number in range(2):
    environment = dict(
      JAX_PLATFORMS='cpu',
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(number),
      XLA_FLAGS=xla_flags(),
    )
    processes.append(
      subprocess.Popen(
        [sys.executable, '-c', PROGRAM],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  for process in processes:
    assert process.stdout.readline() == 'in\n'
  processes[1].terminate()
  last = [p.communicate(timeout=60)[1].splitlines()[-1] for p in processes]
  assert [p.returncode for p in processes] == 2 * [pod.STOPPED], last
  assert last[1].startswith('stopped by a signal; start all again')
  assert last[0].startswith('stopped: process 1 ended the run')


@pytest.mark.parametrize('value', [True, False, -1, 0, 2**31 + 5, 2**40, 7])
def test_an_answer_of_more_than_32_bits_arrives(value, monkeypatch):
  def broadcast(numbers):
    return np.asarray(jnp.asarray(numbers))  # JAX keeps 32 bits of each

  monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', broadcast)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  found = distributed.agreed(value)
  assert found == value and type(found) is type(value)
