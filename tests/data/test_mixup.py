import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vmoe_robust.data import mixup


def batch(size: int):
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.uniform(size=(size, 4, 4, 3)), jnp.float32)
  targets = jax.nn.one_hot(jnp.arange(size), size)
  return images, targets, jnp.arange(size, dtype=jnp.int32)


def test_neighbours_are_mixed_alike():
  images, targets, index = batch(8)
  mixed, labels = mixup(jax.random.key(0), images, targets, index, 0.5)
  for i in range(8):
    ratio = labels[i, i]
    partner = i ^ 1
    expected = ratio * images[i] + (1 - ratio) * images[partner]
    assert np.allclose(mixed[i], expected, atol=1e-6)
    assert np.isclose(labels[i, partner], 1 - ratio)
    assert np.isclose(labels[partner, partner], ratio)
  assert len({float(labels[i, i]) for i in range(0, 8, 2)}) == 4


@pytest.mark.parametrize('alpha', [0.2, 0.5, 1.0, 3.0])
def test_ratios_are_beta(alpha):
  size = 4096
  images, targets = jnp.zeros((size, 1, 1, 1)), jnp.eye(2)[jnp.arange(size) % 2]
  key, index = jax.random.key(1), jnp.arange(size)
  _, labels = mixup(key, images, targets, index, alpha)
  ratios = np.asarray(labels[::2, 0])
  assert stats.kstest(ratios, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_neither_microbatches_nor_mesh_change_anything(sharding):
  images, targets, index = batch(32)
  key = jax.random.key(2)
  whole = mixup(key, images, targets, index, 0.3)
  half = [
    mixup(key, images[s], targets[s], index[s], 0.3)
    for s in (slice(16), slice(16, 32))
  ]
  assert np.array_equal(whole[0], jnp.concatenate([h[0] for h in half]))
  arguments = jax.device_put((images, targets, index), sharding)
  step = jax.jit(mixup, static_argnums=4, out_shardings=sharding)
  compiled = step.lower(key, *arguments, 0.3).compile()
  sharded = compiled(key, *arguments)
  assert np.allclose(whole[0], sharded[0], atol=1e-6)
  assert np.allclose(whole[1], sharded[1], atol=1e-6)
  collective = r'all-(reduce|gather|to-all)|collective-permute|reduce-scatter'
  assert not re.search(collective, compiled.as_text())


def test_the_neighbour_of_a_missing_image_stays_as_it_is():
  images, targets, index = batch(4)
  mask = jnp.array([True, False, True, True])
  mixed, labels = mixup(jax.random.key(0), images, targets, index, 0.5, mask)
  whole = mixup(jax.random.key(0), images, targets, index, 0.5)
  assert np.array_equal(mixed[0], images[0])
  assert np.array_equal(labels[0], targets[0])
  assert np.array_equal(mixed[2:], whole[0][2:])
  assert np.array_equal(labels[2:], whole[1][2:])
