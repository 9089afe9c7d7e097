"""Top-k routing against experts applied to every token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.slow import all_slow_but
from vmoe_robust.models import plan

IMAGES, TOKENS, DIM, EXPERTS = 8, 5, 8, 4
GROUP = 4
ROUTER = {'dense': {'kernel': (DIM, EXPERTS)}}


def gates_of(params, x):
  kernel = params['Router']['dense']['kernel']
  return jax.nn.softmax(x @ kernel)


def oracle(every_expert, params, x, selected, kept=None):
  """Every expert's output, weighted by the gates of the chosen ones."""
  gates = gates_of(params, x)
  _, chosen = jax.lax.top_k(gates, selected)
  weight = jax.nn.one_hot(chosen, EXPERTS) * (1 if kept is None else kept)
  return jnp.einsum(
    'bted,btke,bte->btd', every_expert(params, x), weight, gates
  )


def pulled(function):
  """The function's value and, of `dy`, its gradients."""

  @jax.jit
  def both(params, x, dy, *more):
    y, pull = jax.vjp(lambda *a: function(*a, *more), params, x)
    return y, pull(dy)

  return both


def crowd(params, x):
  """The same, with every token's first choice expert 2."""
  kernel = params['Router']['dense']['kernel'] / 10
  kernel = kernel.at[0, 2].add(1.5)  # not so much that gates saturate
  router = {'dense': {'kernel': kernel}}
  return params | {'Router': router}, x.at[..., 0].set(abs(x[..., 0]) + 1)


@pytest.mark.parametrize(
  'selected, shape',
  [
    pytest.param(1, (1, 1, 1), marks=pytest.mark.slow),
    pytest.param(2, (1, 1, 1), marks=pytest.mark.slow),
    pytest.param(2, (4, 1, 1), marks=pytest.mark.slow),
    (2, (2, 2, 2)),
  ],
  ids=str,
)
def test_dropless_serves_every_token(
  layer_of, layer_inputs, every_expert, close, selected, shape
):
  layer = layer_of({'selected': selected}, 1, shape, dropless=True)
  run = pulled(lambda params, x: layer(params, x)[0])
  expected = pulled(lambda *a: oracle(every_expert, *a, selected))
  params, x, dy = layer_inputs(IMAGES, TOKENS, ROUTER)
  close(run(params, x, dy), expected(params, x, dy))
  # All tokens of one expert: many rounds.
  params, x = crowd(params, x)
  assert (gates_of(params, x).argmax(-1) == 2).all()
  close(run(params, x, dy), expected(params, x, dy))


def naive_kept(gates, selected, size, mask, priority):
  """Which choices of one group find room, one after another."""
  tokens = len(gates)
  chosen = np.argsort(-gates, axis=1, kind='stable')[:, :selected]
  turns = list(range(tokens))
  if priority:
    turns.sort(key=lambda t: -gates[t].max())
  room, kept = [size] * EXPERTS, np.zeros((tokens, selected), bool)
  for k in range(selected):
    for token in turns:
      expert = chosen[token, k]
      if mask[token] and room[expert]:
        room[expert] -= 1
        kept[token, k] = True
  return kept


@pytest.mark.parametrize('priority', [False, True])
def test_capacity_drops_the_last_in_line(
  layer_of, layer_inputs, every_expert, close, priority
):
  router = {'selected': 2, 'capacity_factor': 0.7, 'batch_priority': priority}
  layer = layer_of(router, GROUP)
  params, x, dy = layer_inputs(IMAGES, TOKENS, ROUTER)
  mask = jnp.arange(IMAGES) != 1
  size = plan.capacity(GROUP * TOKENS, 2, 0.7, EXPERTS)
  groups = np.asarray(gates_of(params, x)).reshape(-1, GROUP * TOKENS, EXPERTS)
  real = np.repeat(mask, TOKENS).reshape(groups.shape[:2])
  kept = np.stack(
    [
      naive_kept(gates, 2, size, real_tokens, priority)
      for gates, real_tokens in zip(groups, real, strict=True)
    ]
  )
  assert 0.2 < kept[real].mean() < 0.9
  _, record = jax.jit(layer)(params, x, mask)
  np.testing.assert_array_equal(record.placement.kept, kept)
  run = pulled(lambda params, x, mask: layer(params, x, mask)[0])
  expected = pulled(lambda *a: oracle(every_expert, *a[:2], 2, a[2]))
  kept = jnp.asarray(kept).reshape(IMAGES, TOKENS, 2, 1)
  close(run(params, x, dy, mask), expected(params, x, dy, kept))


@pytest.mark.parametrize('priority', [False, True])
def test_padding_takes_no_capacity(layer_of, layer_inputs, priority):
  router = {'capacity_factor': 0.5, 'batch_priority': priority}
  layer = jax.jit(layer_of(router, GROUP))
  params, x, _ = layer_inputs(GROUP, TOKENS, ROUTER)
  last = layer(params, x, jnp.asarray([True, True, False, False]))
  moved = jnp.stack([100 * x[2], -x[3], x[0], x[1]])
  first = layer(params, moved, jnp.asarray([False, False, True, True]))
  unlike = layer(params, moved)
  np.testing.assert_array_equal(first[0][2:], last[0][:2])
  assert not np.array_equal(unlike[0][2:], last[0][:2])
  assert not first[0][:2].any()
  for name, loss in last[1].routing.losses.items():
    np.testing.assert_allclose(first[1].routing.losses[name], loss, rtol=1e-6)


def test_noise_follows_the_group(layer_of, layer_inputs):
  layer = jax.jit(layer_of({'noise_std': 4.0}, GROUP, noisy=True))
  params, x, _ = layer_inputs(IMAGES, TOKENS, ROUTER)
  key, index = jax.random.key(3), jnp.arange(IMAGES)
  swap = jnp.roll(index, GROUP)
  y, record = layer(params, x, None, index, key)
  y_swapped, swapped = layer(params, x[swap], None, swap, key)
  np.testing.assert_array_equal(y_swapped, y[swap])
  assert swapped.routing.auxiliary_loss.tolist() == (
    record.routing.auxiliary_loss[::-1].tolist()
  )
  # Neither another place in the batch nor another key draws the same.
  for other in ((index + IMAGES, key), (index, jax.random.key(4))):
    found = layer(params, x, None, *other)[1]
    assert (found.routing.experts != record.routing.experts).mean() > 0.2
    np.testing.assert_array_equal(found.routing.logits, record.routing.logits)


def test_losses_are_weighted_and_summed(layer_of, layer_inputs):
  weights = {'importance': 0.1, 'load': 0.2, 'gshard': 0.4, 'z': 0.8}
  router = {f'{name}_weight': value for name, value in weights.items()}
  params, x, _ = layer_inputs(IMAGES, TOKENS, ROUTER)
  more = None, jnp.arange(IMAGES), jax.random.key(0)
  for noisy in (False, True):
    layer = jax.jit(layer_of(router, GROUP, noisy=noisy))
    routing = layer(params, x, *more)[1].routing
    # Load is about the noise, so it is there only with it.
    names = set(weights) - (set() if noisy else {'load'})
    assert set(routing.losses) == names
    total = sum(weights[name] * routing.losses[name] for name in names)
    np.testing.assert_allclose(routing.auxiliary_loss, total, rtol=1e-6)


@pytest.mark.slow
def test_works_outside_of_jit(layer_of, layer_inputs, close):
  layer = layer_of({}, 1, dropless=True)
  params, x, dy = layer_inputs(2, TOKENS, ROUTER)
  slope = jax.grad(lambda x: (layer(params, x)[0] * dy).sum())
  close(slope(x), jax.jit(slope)(x))


@pytest.mark.parametrize('dropless', [False, True])
def test_an_attack_skips_the_gradient_of_the_weights(
  layer_of, layer_inputs, dropless
):
  layer = layer_of({}, 1, dropless=dropless)
  params, x, dy = layer_inputs(IMAGES, TOKENS, ROUTER)
  loss = lambda params, x: (layer(params, x)[0] * dy).sum()

  def products(wanted):
    gradient = jax.make_jaxpr(jax.grad(loss, wanted))(params, x)
    return str(gradient).count('dot_general')

  forward = str(jax.make_jaxpr(layer)(params, x)).count('dot_general')
  # The router's, and those of both layers; in blocks, two are there for their
  # type alone.
  assert products((0, 1)) - products(1) == forward - 2 * dropless


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize('dropless', all_slow_but([False], [False, True]))
def test_plain_is_differentiable_forward(
  layer_of, layer_inputs, close, dropless, shape
):
  make = functools.partial(layer_of, {}, 2, shape, dropless=dropless)
  layer, plain = make(), make(plain=True)
  params, x, dy = layer_inputs(IMAGES, TOKENS, ROUTER)
  params, x = crowd(params, x)  # several rounds

  @jax.jit
  def slopes(direction):
    y, along = jax.jvp(lambda x: plain(params, x)[0], (x,), (direction,))
    back = jax.vjp(lambda x: layer(params, x)[0], x)[1](dy)[0]
    return y, (along * dy).sum(), (back * direction).sum()

  y, along, back = slopes(jnp.sin(jnp.arange(x.size)).reshape(x.shape))
  close(y, jax.jit(layer)(params, x)[0])
  np.testing.assert_allclose(along, back, rtol=1e-4)
