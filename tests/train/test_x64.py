"""JAX_ENABLE_X64, which other code of a user may need, changes no training."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.train.conftest import Run, small

ROOT = pathlib.Path(__file__).parents[2]


def three_steps(balance_rate):
  """What three steps of every kind of draw and sum leave."""
  config = small()
  config.data.mixup = 0.5
  config.model.router.update(dict(gshard_weight=0.01, z_weight=0.01))
  if balance_rate:
    router = dict(balance_rate=balance_rate, load_weight=0.0, gate='sigmoid')
    config.model.router.update(router)
  config.train.update(dict(accumulate=2, ema=0.9, label_smoothing=0.1))
  optimizer = dict(name='adamw', learning_rate=1e-3, warmup_steps=2)
  config.train.optimizer.update(optimizer)
  run = Run(config, (1, 1, 1))
  types = lambda: [x.dtype.name for x in jax.tree.leaves(run.state)]
  before = types()
  found = []
  for i in range(3):
    run.state, metrics = run.step(run.state, run.batch(i))
    found.append({name: x.tolist() for name, x in metrics.items()})
  assert types() == before, 'each step would be compiled again'
  return {'types': before, 'metrics': found}


@pytest.mark.slow
@pytest.mark.parametrize('balance_rate', [0.0, 0.01])
def test_three_steps_are_those_of_float32(balance_rate):
  program = (
    'import json; from tests.train.test_x64 import three_steps; '
    f'print(json.dumps(three_steps({balance_rate})))'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    env=os.environ | {'JAX_ENABLE_X64': '1'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  there, here = (
    json.loads(done.stdout.splitlines()[-1]),
    three_steps(balance_rate),
  )
  assert there['types'] == here['types'] and 'float64' not in here['types']
  for found, expected in zip(there['metrics'], here['metrics'], strict=True):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
