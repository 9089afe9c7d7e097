"""The losses against the official numbers and their formulas."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logsumexp

from vmoe_robust.models import losses

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'vmoe_small.npz'
ALL = jnp.ones((1, 64), bool)


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as file:
    found = {k: v for k, v in file.items() if k.startswith('losses/')}
  return {k.removeprefix('losses/'): jnp.asarray(v) for k, v in found.items()}


def same(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('selected', [1, 2])
def test_load_and_its_gradient(golden, selected):
  noise_std = float(golden['noise_std'])
  noise = golden['noisy_logits'] - golden['logits']

  def load(logits):
    noisy = logits + noise  # so that the threshold has a gradient too
    threshold = jax.lax.top_k(noisy, selected)[0][None, :, -1]
    return losses.load(logits[None], threshold, ALL, noise_std)[0]

  value, gradient = jax.jit(jax.value_and_grad(load))(golden['logits'])
  same(value, golden[f'load_K{selected}'])
  same(gradient, golden[f'load_K{selected}_grad_logits'])


def test_importance_and_gshard(golden):
  gates = jax.nn.softmax(golden['logits'])[None]
  same(losses.importance(gates, ALL)[0], golden['importance'])
  same(losses.gshard(gates, ALL)[0], golden['gshard'])


def test_router_z_is_the_mean_squared_log_partition(golden):
  logits = np.asarray(golden['logits'], np.float64)
  expected = np.mean(logsumexp(logits, axis=-1) ** 2)
  same(losses.router_z(golden['logits'][None], ALL)[0], expected)


@jax.jit
def all_losses(logits, noisy, mask):
  gates = jax.nn.softmax(logits)
  return {
    'importance': losses.importance(gates, mask),
    'load': losses.load(logits, noisy.max(-1), mask, 0.5),
    'gshard': losses.gshard(gates, mask),
    'z': losses.router_z(logits, mask),
  }


def total(logits, noisy, mask):
  return sum(v.sum() for v in all_losses(logits, noisy, mask).values())


slope = jax.jit(jax.grad(total))


def test_zero_variance_has_a_finite_gradient():
  logits = jnp.zeros((1, 8, 4))
  found = all_losses(logits, logits, ALL[:, :8])
  same(found['importance'], 0)
  same(found['load'], 0)
  assert np.isfinite(slope(logits, logits, ALL[:, :8])).all()


def test_a_group_of_padding_adds_nothing(golden):
  logits = jnp.stack([golden['logits'], golden['logits']])
  mask = jnp.stack([ALL[0], ~ALL[0]])
  for name, value in all_losses(logits, logits, mask).items():
    assert value[1] == 0 and value[0] > 0, name
  gradient = slope(logits, logits, mask)
  assert np.isfinite(gradient).all()
  assert not gradient[1].any() and gradient[0].any()


def test_masked_tokens_do_not_matter(golden):
  logits, noisy = golden['logits'][None], golden['noisy_logits'][None]
  mask = jnp.arange(64)[None] % 3 > 0
  hidden = jnp.where(mask[..., None], logits, 7.0)
  left = all_losses(logits[:, mask[0]], noisy[:, mask[0]], ALL[:, : mask.sum()])
  noisy_hidden = jnp.where(mask[..., None], noisy, -9.0)
  for inputs in ((logits, noisy), (hidden, noisy_hidden)):
    for name, value in all_losses(*inputs, mask).items():
      same(value, left[name])
  gradient = slope(logits, noisy, mask)
  assert not gradient[~mask].any() and gradient[mask].any(-1).all()


def test_load_is_stable_where_an_expert_is_hopeless():
  # 1 - cdf(9) is 0 in float32; the survival function is not.
  logits = jnp.asarray([[[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]]])
  chance = stats.norm.sf([[0, 9], [9, 0], [0, 9]]).sum(0)
  expected = chance.var() / chance.mean() ** 2
  load = jax.jit(
    jax.value_and_grad(
      lambda x, noisy: losses.load(x, noisy.max(-1), ALL[:, :3], 1.0)[0]
    )
  )
  value, gradient = load(logits, logits)
  same(value, expected)
  assert np.isfinite(gradient).all() and (gradient[0, :, 1] != 0).all()
  far = jnp.tile(jnp.asarray([3e6, -3e6]), (1, 3, 1))
  value, gradient = load(far, far)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_classification():
  rng = np.random.default_rng(0)
  logits = 5 * rng.normal(size=(6, 3))
  wanted = rng.dirichlet([1, 1, 1], 6)
  expected = -(wanted * (logits - logsumexp(logits, -1, keepdims=True))).sum(-1)
  as_jax = jnp.asarray(logits), jnp.asarray(wanted)
  same(losses.classification(*as_jax, 'softmax'), expected)
  chance = expit(logits)
  expected = wanted * np.log(chance) + (1 - wanted) * np.log(1 - chance)
  same(losses.classification(*as_jax, 'sigmoid'), -expected.sum(-1))
  half = as_jax[0].astype(jnp.bfloat16)
  half = losses.classification(half, as_jax[1], 'softmax')
  assert half.dtype == jnp.float32


def test_targets():
  labels = jnp.asarray([2, 0])
  np.testing.assert_array_equal(losses.targets(labels, 3), np.eye(3)[[2, 0]])
  same(losses.targets(labels, 4, 0.2)[0], [0.05, 0.05, 0.85, 0.05])
  several = jnp.asarray([[1.0, 0, 1, 0]])
  same(losses.targets(several, 4), several)


@pytest.mark.parametrize(
  'wanted, right',
  [
    ([0, 0, 1, 0], [0, 0, 1, 0]),  # one label
    ([0.05, 0.05, 0.85, 0.05], [0, 0, 1, 0]),  # smoothed
    ([0.3, 0, 0.7, 0], [0, 0, 1, 0]),  # mixup's larger share
    ([1, 0, 1, 0], [1, 0, 1, 0]),  # several labels
    ([1, 1, 1, 1], [1, 1, 1, 1]),  # all of them
    ([0, 0, 0, 0], [0, 0, 0, 0]),  # none
    ([0.05, 0.05, 0.05, 0.05], [0, 0, 0, 0]),  # none, smoothed
  ],
)
def test_top_is_right(wanted, right):
  wanted = jnp.tile(jnp.asarray(wanted, jnp.float32), (4, 1))
  found = losses.top_is_right(10 * jnp.eye(4) - 3, wanted)
  np.testing.assert_array_equal(found, np.asarray(right, bool))
