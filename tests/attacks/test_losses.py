"""Losses of logits that are far apart, or that mask classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.attacks import LOSSES, fab, norms

LABEL, TARGET = jnp.array([0]), jnp.array([1])


def value_and_slope(name, logits):
  logits = jnp.array([logits], jnp.float32)
  loss = lambda logits: LOSSES[name](logits, LABEL, TARGET).sum()
  return (np.asarray(a) for a in jax.value_and_grad(loss)(logits))


@pytest.mark.parametrize('lead', [-5.0, 0.0, 16.0, 17.9, 18.1, 60.0, 80.0])
def test_cross_entropy_does_not_round(lead):
  exact = np.log1p(np.exp(-lead))
  value, slope = value_and_slope('cross_entropy', [lead, 0])
  np.testing.assert_allclose(value, exact, rtol=1e-5)
  np.testing.assert_allclose(slope[0, 1], 1 / (1 + np.exp(lead)), rtol=1e-5)
  logarithm, _ = value_and_slope('log_cross_entropy', [lead, 0])
  np.testing.assert_allclose(logarithm, np.log(exact), rtol=1e-5, atol=1e-6)


def test_the_logarithm_keeps_value_and_gradient_however_sure_a_model_is():
  value, slope = value_and_slope('log_cross_entropy', [3000, 0, 0])
  np.testing.assert_allclose(value, np.log(2) - 3000, rtol=1e-6)
  np.testing.assert_allclose(slope, [[-1, 0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize('name', sorted(LOSSES))
def test_masked_classes_change_nothing(name):
  logits = [2.0, 1.5, 0.25, -1.0, -2.0]
  value, slope = value_and_slope(name, logits)
  masked, masked_slope = value_and_slope(name, [*logits, -np.inf, -np.inf])
  if name == 'rivals':  # their sum, in which the masked are far away
    assert np.isfinite(masked) and np.isfinite(masked_slope).all()
    return
  np.testing.assert_allclose(masked, value, rtol=1e-6)
  np.testing.assert_allclose(masked_slope[:, :5], slope, rtol=1e-6)
  assert (masked_slope[:, 5:] == 0).all()


@pytest.mark.parametrize('name', sorted(LOSSES))
def test_losses_stay_finite_where_two_classes_are_left(name):
  value, slope = value_and_slope(name, [2.0, 1.0, -np.inf, -np.inf, -np.inf])
  assert np.isfinite(value) and np.isfinite(slope).all()


@pytest.mark.parametrize('norm, dual', [('linf', 1), ('l2', 2), ('l1', np.inf)])
def test_fab_keeps_the_nearest_of_all_rivals(norm, dual):
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(7, 2, 2, 1)).astype(np.float32)
  weights[3] = 0  # out of reach
  x = rng.uniform(size=(5, 2, 2, 1)).astype(np.float32)
  offset = rng.normal(size=(5, 7)).astype(np.float32)

  def loss(x):
    values = jnp.einsum('bhwc,rhwc->br', x, weights) + offset
    return values, jnp.zeros(len(x), bool)

  value, slope = fab.nearest_rival(loss, jnp.asarray(x), norm)
  values = np.asarray(loss(x)[0])
  steep = np.linalg.norm(weights.reshape(7, -1), dual, axis=1)
  with np.errstate(divide='ignore'):
    chosen = (np.abs(values) / steep).argmin(1)
  # Both are divided by one number of each image.
  power = norms.rescale(jnp.asarray(weights[chosen]))[1]
  np.testing.assert_array_equal(
    slope, weights[chosen] / power[:, None, None, None]
  )
  np.testing.assert_allclose(
    value, values[np.arange(5), chosen] / power, rtol=1e-5
  )


def test_fab_holds_one_gradient_at_a_time():
  classes, x = 500, jnp.ones((64, 16, 16, 3))
  weights = jnp.ones((classes, 16, 16, 3))
  loss = lambda x: (jnp.einsum('bhwc,rhwc->br', x, weights), x[:, 0, 0, 0] > 2)
  run = jax.jit(lambda x: fab.nearest_rival(loss, x, 'linf'))
  used = run.lower(x).compile().memory_analysis().temp_size_in_bytes
  assert used < classes * x.nbytes / 4


@pytest.mark.parametrize('size', [1e-30, 1.0, 1e30])
@pytest.mark.parametrize('norm', ['l2', 'l1'])
def test_lengths_neither_underflow_nor_overflow(norm, size):
  x = jnp.array([3.0, 4.0]).reshape(1, 2, 1, 1) * size
  exact = {'l2': 5, 'l1': 7}[norm]
  np.testing.assert_allclose(norms.length(x, norm), exact * size, rtol=1e-6)
  unit = norms.unit(x, norm).ravel()
  np.testing.assert_allclose(unit, [3 / exact, 4 / exact], rtol=1e-6)
