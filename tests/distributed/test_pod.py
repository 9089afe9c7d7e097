"""Processes that end together: two real ones, of which one is stopped."""

import os
import socket
import subprocess
import sys

import pytest

from tests.environment import xla_flags
from vmoe_robust.distributed import pod

PROGRAM = """
import os, signal, sys, time
from vmoe_robust.distributed import pod

def stop(*_):
  raise {error}

with pod.together():
  signal.signal(signal.SIGTERM, stop)  # JAX sets one of its own
  print('in', flush=True)
  time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize('error', ['KeyboardInterrupt', 'SystemExit(0)'])
def test_a_signal_to_one_stops_all_and_is_no_error(error):
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
        [sys.executable, '-c', PROGRAM.format(error=error)],
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
