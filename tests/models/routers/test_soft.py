"""Soft MoE against its formulas, written with einsums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

IMAGES, TOKENS, DIM, EXPERTS = 8, 5, 8, 4


def layer_args(slots):
  return {'name': 'soft', 'slots': slots}


def router(slots):
  return {'phi': (DIM, EXPERTS * slots), 'scale': ()}


def oracle(params, x, slots):
  """Algorithms 1 and 2 of arXiv:2308.00951."""
  weights, mlp = params['Router'], params['Mlp']
  phi = weights['phi'] / jnp.linalg.norm(weights['phi'], axis=0)
  unit = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  scores = weights['scale'] * jnp.einsum('btd,ds->bts', unit, phi)
  mixed = jnp.einsum('bts,btd->bsd', jax.nn.softmax(scores, axis=1), x)
  mixed = mixed.reshape(len(x), EXPERTS, slots, DIM)
  hidden = jnp.einsum('besd,edf->besf', mixed, mlp['Dense_0']['kernel'])
  hidden = jax.nn.gelu(hidden + mlp['Dense_0']['bias'][:, None])
  out = jnp.einsum('besf,efd->besd', hidden, mlp['Dense_1']['kernel'])
  out = (out + mlp['Dense_1']['bias'][:, None]).reshape(len(x), -1, DIM)
  return jnp.einsum('bts,bsd->btd', jax.nn.softmax(scores, axis=2), out)


def pulled(function):
  @jax.jit
  def both(params, x, dy):
    y, pull = jax.vjp(function, params, x)
    return y, pull(dy)

  return both


@pytest.mark.parametrize('slots', [1, 3])
@pytest.mark.parametrize('dropless', [False, True])
def test_mixes_and_unmixes(layer_of, layer_inputs, close, slots, dropless):
  layer = layer_of(layer_args(slots), 1, dropless=dropless)
  inputs = layer_inputs(IMAGES, TOKENS, router(slots))
  found = pulled(lambda *a: layer(*a)[0])(*inputs)
  expected = pulled(lambda *a: oracle(*a, slots))(*inputs)
  close(found, expected, 1e-5)


def test_images_are_independent(layer_of, layer_inputs):
  layer = jax.jit(layer_of(layer_args(2), 1))
  params, x, _ = layer_inputs(IMAGES, TOKENS, router(2))
  y, record = layer(params, x)
  other, _ = layer(params, x.at[1:].multiply(-2))
  np.testing.assert_allclose(y[0], other[0], atol=1e-6)
  assert not record.routing.auxiliary_loss.any()


def test_the_record_names_the_expert_of_each_slot(layer_of, layer_inputs):
  layer = jax.jit(layer_of(layer_args(2), 1))
  params, x, _ = layer_inputs(2, TOKENS, router(2))
  _, record = layer(params, x, jnp.asarray([True, False]))
  experts, slot = record.routing.experts, record.placement.slot
  expected = np.tile([0, 0, 1, 1, 2, 2, 3, 3], (TOKENS, 1))
  np.testing.assert_array_equal(experts[0], expected)
  np.testing.assert_array_equal(slot[0, 0], [0, 1] * EXPERTS)
  assert (experts[1] == EXPERTS).all()  # padding has none
  assert record.placement.kept[0].all() and not record.placement.kept[1].any()


def test_a_token_of_zeros_has_a_finite_gradient(layer_of, layer_inputs):
  layer = layer_of(layer_args(1), 1)
  params, x, dy = layer_inputs(2, TOKENS, router(1))
  y, gradients = pulled(lambda *a: layer(*a)[0])(params, x.at[:, 0].set(0), dy)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
  assert np.isfinite(y).all()
