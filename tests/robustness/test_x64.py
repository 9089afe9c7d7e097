"""Attacks under JAX_ENABLE_X64, on functions in float32 and in float64."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vmoe_robust

ROOT = pathlib.Path(__file__).parents[2]
EPS = 0.1


def robust(dtype):
  """Which of six images stand, by a function of one pixel."""
  # The lead of class 0 is (pixel - 0.5) / 4; at most EPS of it is taken away.
  pixels = np.array([0.52, 0.55, 0.58, 0.62, 0.7, 0.9], np.float32)
  images = np.full((6, 6, 6, 1), 0.5, np.float32)
  images[:, 2, 3, 0] = pixels
  weight = jnp.asarray(0.25, dtype)

  def model(x):
    lead = (x[:, 2, 3, 0].astype(dtype) - 0.5) * weight
    return jnp.stack([lead, jnp.zeros_like(lead)], 1)

  asked = {'linf': ['apgd_ce', 'square'], 'l1': ['apgd_ce', 'square']}
  found = {
    norm: vmoe_robust.robust_accuracy(
      model,
      images,
      np.zeros(6, int),
      attack=attack,
      norm=norm,
      eps=EPS,
      iterations=20,
      queries=200,
      batch_size=8,
      progress=False,
    )
    for norm, attack in asked.items()
  }
  assert str(model(jnp.asarray(images)).dtype) == dtype
  return {norm: one.robust.tolist() for norm, one in found.items()}


def of_random_model():
  """Accuracy of a model in float64 that draws."""
  images = np.full((4, 6, 6, 1), 0.5, np.float32)

  def model(x, key):
    lead = x[:, 2, 3, 0].astype('float64') + 1
    return jnp.stack([lead, 0 * lead], 1) + 0.1 * jax.random.normal(key, ())

  found = vmoe_robust.robust_accuracy(
    model,
    images,
    np.zeros(4, int),
    attack='autoattack_rand',
    eps=0.01,
    iterations=2,
    progress=False,
  )
  return found.accuracy


@pytest.mark.slow
def test_every_float_gives_the_exact_answer():
  program = (
    'import json; from tests.robustness.test_x64 import *; '
    'print(of_random_model()); '
    "print(json.dumps([robust('float32'), robust('float64')]))"
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
  exact = [False, False, False, True, True, True]  # a pixel above 0.5 + EPS
  *_, accuracy, last = done.stdout.splitlines()
  assert float(accuracy) == 1
  for found in json.loads(last):
    assert found == {'linf': exact, 'l1': exact}
