"""Noise of the routers' logits without training's other draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.errors import UserError

KEY = jax.random.key(3)
ROUTER = {'noise_std': 4.0, 'selected': 2, 'group_images': 4}
MAKE = dict(layers=2, router=ROUTER)


@pytest.fixture(scope='module')
def images():
  return jnp.asarray(np.random.default_rng(0).random((8, 8, 8, 3), np.float32))


@pytest.mark.slow
def test_noise_is_of_the_image_alone(vmoe, weights_of, images, close):
  params = weights_of(vmoe(**MAKE))
  run = jax.jit(functools.partial(vmoe(**MAKE).apply, gate_noise=1.0))
  expected, aux = run(params, images, key=KEY)
  clean, clean_aux = jax.jit(vmoe(**MAKE).apply)(params, images)
  assert np.abs(expected - clean).max() > 1e-2
  assert set(aux.records['encoderblock_0'].routing.losses) == set(
    clean_aux.records['encoderblock_0'].routing.losses
  )
  # Other images beside it, and another place in the batch.
  order = jnp.asarray([3, 0, 7, 7, 1, 3, 5, 2])
  close(run(params, images[order], key=KEY, index=order)[0], expected[order])
  other = jnp.asarray([3, 0, 7, 7, 1, 3, 5, 2]) + 8
  found, _ = run(params, images[order], key=KEY, index=other)
  assert np.abs(found - expected[order]).max() > 1e-2
  # Any mesh, with a batch that is no multiple of it.
  sharded = functools.partial(vmoe((2, 2, 2), **MAKE).apply, gate_noise=1.0)
  close(jax.jit(sharded)(params, images[:5], key=KEY)[0], expected[:5], 1e-5)


@pytest.mark.slow
def test_nothing_else_is_drawn(vmoe, weights_of, images):
  model = vmoe(**MAKE, dropout=0.3, stochastic_depth=0.5)
  params = weights_of(model)
  run = jax.jit(functools.partial(model.apply, key=KEY))
  clean, _ = jax.jit(model.apply)(params, images)
  none, _ = run(params, images, gate_noise=0.0)
  np.testing.assert_array_equal(none, clean)
  found, _ = run(params, images, gate_noise=1.0)
  without = jax.jit(functools.partial(vmoe(**MAKE).apply, key=KEY))
  expected, _ = without(params, images, gate_noise=1.0)
  np.testing.assert_array_equal(found, expected)
  training, _ = run(params, images)
  assert np.abs(training - found).max() > 1e-2


@pytest.mark.slow
def test_one_is_the_noise_of_training(vmoe, weights_of, images):
  """Where training routes each image alone and drops nothing else."""
  model = vmoe(layers=2, router=dict(ROUTER, group_images=1))
  params = weights_of(model)
  run = jax.jit(functools.partial(model.apply, key=KEY))
  training, aux = run(params, images)
  found, other = run(params, images, gate_noise=1.0)
  np.testing.assert_allclose(found, training, atol=1e-6)
  half = vmoe(layers=2, router=dict(ROUTER, group_images=1, noise_std=2.0))
  expected, _ = jax.jit(functools.partial(half.apply, key=KEY))(params, images)
  found, _ = run(params, images, gate_noise=0.5)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  for name, record in aux.records.items():
    routing = other.records[name].routing
    np.testing.assert_array_equal(routing.experts, record.routing.experts)
    # The load loss is defined by the noise of training.
    assert set(record.routing.losses) - set(routing.losses) == {'load'}


@pytest.mark.parametrize(
  'fields, more, message',
  [
    ({}, {'gate_noise': 1.0}, 'gate_noise=1.0 is drawn with a key'),
    ({}, {'gate_noise': -1.0, 'key': KEY}, 'gate_noise=-1.0 multiplies'),
    ({}, {'gate_noise': np.nan, 'key': KEY}, 'gate_noise=nan multiplies'),
    ({'router': {'name': 'soft'}}, {'gate_noise': 1.0, 'key': KEY}, "'soft'"),
    ({'router': {'noise_std': 0.0}}, {'gate_noise': 1.0, 'key': KEY}, 'std=0'),
    ({'experts': 0}, {'gate_noise': 1.0, 'key': KEY}, 'experts=0'),
  ],
)
def test_noise_that_would_not_be_drawn(vmoe, images, fields, more, message):
  with pytest.raises(UserError, match=message):
    vmoe(**fields).apply({}, images, **more)
