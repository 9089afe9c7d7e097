"""Expert choice against experts that pick one after another."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

IMAGES, TOKENS, DIM, EXPERTS = 8, 5, 8, 4
GROUP = 4
ROUTER = {'dense': {'kernel': (DIM, EXPERTS)}}


def layer_args(**fields):
  return {'name': 'expert_choice', 'capacity_factor': 1.5, **fields}


def gates_of(params, x):
  return jax.nn.softmax(x @ params['Router']['dense']['kernel'])


def picks(gates, size, mask):
  """Which tokens of one group each expert takes: (tokens, experts)."""
  taken = np.zeros(gates.shape, bool)
  for expert in range(EXPERTS):
    line = sorted(np.flatnonzero(mask), key=lambda t: -gates[t, expert])
    taken[line[:size], expert] = True
  return taken


@pytest.mark.parametrize('selected', [1, 2])
def test_experts_pick_their_tokens(
  layer_of, layer_inputs, every_expert, close, selected
):
  layer = layer_of(layer_args(selected=selected), GROUP)
  params, x, dy = layer_inputs(IMAGES, TOKENS, ROUTER)
  mask = jnp.arange(IMAGES) != 1
  size = math.ceil(GROUP * TOKENS * selected * 1.5 / EXPERTS)
  groups = np.asarray(gates_of(params, x)).reshape(-1, GROUP * TOKENS, EXPERTS)
  real = np.repeat(mask, TOKENS).reshape(groups.shape[:2])
  taken = np.stack(
    [picks(*a) for a in zip(groups, [size] * 2, real, strict=True)]
  )
  assert (taken.sum(1) == np.minimum(size, real.sum(1))[:, None]).all()

  @jax.jit
  def run(params, x, dy):
    y, pull, record = jax.vjp(
      lambda *a: layer(*a, mask), params, x, has_aux=True
    )
    return record.placement.kept, (y, pull(dy))

  @jax.jit
  def expected(params, x, dy):
    weight = jnp.asarray(taken).reshape(IMAGES, TOKENS, EXPERTS)

    def apply(params, x):
      gates = jnp.where(weight, gates_of(params, x), 0)
      return jnp.einsum('bted,bte->btd', every_expert(params, x), gates)

    y, pull = jax.vjp(apply, params, x)
    return y, pull(dy)

  kept, found = run(params, x, dy)
  np.testing.assert_array_equal(kept, taken)
  close(found, expected(params, x, dy))


def test_ties_go_to_the_earlier_token(layer_of, layer_inputs):
  layer = jax.jit(layer_of(layer_args(), 1))
  params, x, _ = layer_inputs(1, TOKENS, ROUTER)
  record = layer(params, jnp.broadcast_to(x[:, :1], x.shape))[1]
  size = math.ceil(TOKENS * 1.5 / EXPERTS)
  expected = np.arange(TOKENS)[:, None] < np.full(EXPERTS, size)
  np.testing.assert_array_equal(record.placement.kept[0], expected)


def test_padding_is_never_picked(layer_of, layer_inputs):
  layer = jax.jit(layer_of(layer_args(), GROUP))
  params, x, _ = layer_inputs(GROUP, TOKENS, ROUTER)
  last, _ = layer(params, x, jnp.asarray([True, True, False, False]))
  moved = jnp.stack([100 * x[2], -x[3], x[0], x[1]])
  first, _ = layer(params, moved, jnp.asarray([False, False, True, True]))
  np.testing.assert_array_equal(first[2:], last[:2])
  assert not first[:2].any()


def test_a_group_of_one_image_is_independent(layer_of, layer_inputs):
  params, x, _ = layer_inputs(IMAGES, TOKENS, ROUTER)
  other = x.at[1:].multiply(-2)
  alone = jax.jit(layer_of(layer_args(), 1))
  together = jax.jit(layer_of(layer_args(), GROUP))
  np.testing.assert_allclose(
    alone(params, x)[0][0], alone(params, other)[0][0], atol=1e-6
  )
  change = together(params, x)[0][0] - together(params, other)[0][0]
  assert np.abs(change).max() > 0.01
