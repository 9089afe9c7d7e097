"""The model under JAX_ENABLE_X64, in a process of its own."""

import pathlib
import subprocess
import sys

import pytest

from tests.environment import child

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_double():
  script = pathlib.Path(__file__).with_name('double.py')
  done = subprocess.run(
    [sys.executable, str(script)],
    env=child(devices=4, JAX_ENABLE_X64='1', PYTHONPATH=str(ROOT)),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-3000:]
