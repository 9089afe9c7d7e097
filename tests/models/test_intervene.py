"""What a study changes about routing is what happens, exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.errors import UserError
from vmoe_robust.models import plan

IMAGES, TOKENS, DIM, EXPERTS = 8, 6, 8, 4
DENSE = {'dense': {'kernel': (DIM, EXPERTS)}}
SOFT = {'phi': (DIM, EXPERTS), 'scale': ()}
# Two of the routers have one mode.
WAYS = pytest.mark.parametrize(
  'name, dropless',
  [('top_k', True), ('top_k', False), ('expert_choice', True), ('soft', True)],
)
MODES = pytest.mark.parametrize('dropless', [True, False])
MESHES = pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2)], ids=str)


@pytest.fixture(scope='module')
def images():
  return jnp.asarray(np.random.default_rng(0).random((8, 8, 8, 3), np.float32))


def mlp(params, expert, x):
  """One expert in NumPy, in float64."""
  first, second = (params['Mlp'][f'Dense_{i}'] for i in (0, 1))
  at = lambda leaf: np.asarray(leaf[expert], np.float64)
  h = np.asarray(x, np.float64) @ at(first['kernel']) + at(first['bias'])
  h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  return h @ at(second['kernel']) + at(second['bias'])


def every(params, x):
  return np.stack([mlp(params, e, x) for e in range(EXPERTS)], 2)


@pytest.fixture(scope='module')
def told(layer_of):
  """A layer whose choices and gates are arguments: (y, record)."""

  @functools.cache
  def make(images, shape=(1, 1, 1), dropless=False, **router):
    def run(params, x, mask, experts, gates):
      def change(block, tokens, routing):
        shape = routing.experts.shape
        return tokens, routing._replace(
          experts=experts.reshape(shape), gates=gates.reshape(shape)
        )

      fields = {'selected': 2, **router}
      layer = layer_of(fields, images, shape, dropless, intervene=change)
      return layer(params, x, mask)

    return jax.jit(run)

  return make


def choices(first, second=EXPERTS):
  """The same two choices for all tokens."""
  shape = (IMAGES, TOKENS, 1)
  return np.concatenate(
    [np.full(shape, e, np.int32) for e in (first, second)], 2
  )


@pytest.mark.slow
@WAYS
def test_identity_changes_no_bit(
  vmoe, weights_of, images, close, name, dropless
):
  router = {'name': name, 'group_images': 2, 'capacity_factor': 0.6}
  model = vmoe((2, 2, 1), router, layers=2, moe_every=2)
  params, seen = weights_of(model), []

  def same(block, tokens, routing):
    seen.append((block, tokens.shape))
    return tokens, routing

  def run(images, intervene):
    experts = 'dropless' if dropless else 'capacity'
    mask = jnp.arange(len(images)) != 1
    call = lambda images: model.apply(
      params, images, experts=experts, mask=mask, intervene=intervene
    )
    logits, pull = jax.vjp(lambda images: call(images)[0], images)
    return (logits, call(images)[1]), pull(jnp.cos(logits))

  run = jax.jit(run, static_argnums=1)
  expected, slope = run(images[:5], None)
  found, found_slope = run(images[:5], same)
  leaves = map(jax.tree.leaves, (found, expected))
  for value, other in zip(*leaves, strict=True):
    np.testing.assert_array_equal(value, other)
  close(found_slope, slope, 1e-6)  # XLA may sum its terms in another order
  # Groups that only fill the mesh are not shown.
  together = 1 if dropless or name == 'soft' else 2
  shape = (-(-5 // together), together * 4, 16)
  assert set(seen) == {('encoderblock_1', shape)}


@MESHES
@MODES
def test_told_choices_are_what_happens(told, layer_inputs, shape, dropless):
  """Forced, dropped, both at one expert, out of range: by hand."""
  run = told(1, shape, dropless, capacity_factor=4.0)
  params, x, _ = layer_inputs(IMAGES, TOKENS, DENSE)
  mask, outputs = np.arange(IMAGES) != 3, every(params, x)
  rng = np.random.default_rng(1)
  some = rng.integers(-1, EXPERTS + 2, (IMAGES, TOKENS, 2)).astype(np.int32)
  for experts in (choices(2), choices(EXPERTS, 1), choices(-1, 99), some):
    gates = rng.random(experts.shape, np.float32) if experts is some else 1.0
    gates = np.broadcast_to(np.float32(gates), experts.shape)
    y, record = run(params, x, mask, experts, gates)
    # Padding is forced nowhere.
    real = mask[:, None, None] & (experts >= 0) & (experts < EXPERTS)
    which = np.eye(EXPERTS)[np.where(real, experts, 0)] * real[..., None]
    weigh = np.einsum('gtk,gtke->gte', gates, which)
    expected = np.einsum('gte,gted->gtd', weigh, outputs)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_array_equal(record.placement.kept, real)
    np.testing.assert_array_equal(
      record.routing.experts, np.where(real, experts, EXPERTS)
    )
    # A token without an expert has its residual alone.
    assert not y[~real.any(-1)].any()


@pytest.mark.parametrize(
  'name, dropless, shape',
  [
    ('top_k', True, (1, 1, 1)),
    ('top_k', False, (2, 2, 2)),
    ('expert_choice', True, (2, 2, 2)),
    ('soft', True, (2, 2, 2)),
  ],
)
def test_freeze(layer_of, layer_inputs, name, shape, dropless):
  """The routing of other tokens, by hand."""
  router = {'name': name, 'selected': 2, 'capacity_factor': 2.0, 'slots': 1}
  weights = SOFT if name == 'soft' else DENSE
  params, x, other = layer_inputs(IMAGES, TOKENS, weights)

  @jax.jit
  def three(params, x, other):
    own = layer_of(router, 1, shape, dropless)
    _, clean = own(params, x)
    change = lambda block, tokens, _: (tokens, clean.routing)
    frozen = layer_of(router, 1, shape, dropless, intervene=change)
    return clean, frozen(params, other), own(params, other)[0]

  clean, (y, record), again = three(params, x, other)
  jax.tree.map(np.testing.assert_array_equal, record, clean)
  routing, kept = clean.routing, np.asarray(clean.placement.kept)
  logits, gates = (np.asarray(a) for a in (routing.logits, routing.gates))
  if name == 'soft':
    mix = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slots = np.einsum('gtd,gts->gsd', other, mix)
    out = np.stack([mlp(params, e, slots[:, e]) for e in range(EXPERTS)], 1)
    expected = np.einsum('gsd,gts->gtd', out, gates)
  else:
    which = np.eye(EXPERTS)[np.asarray(routing.experts)]
    weigh = np.einsum('gtk,gtke->gte', gates * kept, which)
    expected = np.einsum('gte,gted->gtd', weigh, every(params, other))
  np.testing.assert_allclose(y, expected, atol=5e-5)
  assert np.abs(again - y).max() > 0.1


@pytest.mark.slow
@WAYS
def test_paths_of_the_gradient_add_up(vmoe, weights_of, images, name, dropless):
  """The gates' and the experts' input's terms are the whole of the block's."""
  model = vmoe(router={'name': name, 'selected': 2, 'group_images': 2})
  params, stop = weights_of(model), jax.lax.stop_gradient

  def change(gates, inputs):
    def intervene(block, tokens, routing):
      if not gates:
        routing = routing._replace(
          gates=stop(routing.gates), logits=stop(routing.logits)
        )
      return tokens if inputs else stop(tokens), routing

    return intervene

  experts = 'dropless' if dropless else 'capacity'
  direction = jnp.sin(jnp.arange(images.size)).reshape(images.shape)

  @jax.jit
  def along(params, images):
    def slope(intervene):
      apply = lambda images: model.apply(
        params, images, experts=experts, plain=True, intervene=intervene
      )[0]
      return jax.jvp(apply, (images,), (direction,))[1]

    ways = [(True, False), (False, True), (False, False)]
    return slope(None), [slope(change(*way)) for way in ways]

  whole, (gates, inputs, residual) = along(params, images)
  scale = np.abs(whole).max()
  np.testing.assert_allclose(
    gates + inputs - residual, whole, rtol=0, atol=1e-5 * scale
  )
  for part in (gates, inputs):
    assert np.abs(part - residual).max() > 1e-3 * scale


@pytest.mark.parametrize('priority', [False, True])
def test_told_choices_overflow(told, layer_inputs, priority):
  run = told(2, capacity_factor=0.5, batch_priority=priority)
  params, x, _ = layer_inputs(IMAGES, TOKENS, DENSE)
  token = np.arange(2 * TOKENS)
  gates = np.tile(1 + token, IMAGES // 2).reshape(IMAGES, TOKENS, 1)
  gates = np.float32(gates) * np.ones(2, np.float32)
  y, record = run(params, x, np.ones(IMAGES, bool), choices(1), gates)
  room = plan.capacity(2 * TOKENS, 2, 0.5, EXPERTS)
  assert room == 4
  kept = token >= 2 * TOKENS - room if priority else token < room
  kept = np.broadcast_to(kept[:, None], (IMAGES // 2, 2 * TOKENS, 1))
  found = np.asarray(record.placement.kept)
  np.testing.assert_array_equal(found[..., :1], kept)
  assert not found[..., 1].any()
  expected = mlp(params, 1, x).reshape(-1, 2 * TOKENS, DIM)
  expected = expected * kept * (1 + token[:, None])
  np.testing.assert_allclose(y, expected.reshape(y.shape), rtol=2e-5, atol=2e-4)


def test_gates_of_experts_that_were_not_chosen(layer_of, layer_inputs):
  """The next best expert, with its own gate."""

  def second(block, tokens, routing):
    order = jnp.argsort(-routing.probabilities, -1)[..., 1:2].astype(jnp.int32)
    gates = jnp.take_along_axis(routing.probabilities, order, -1)
    return tokens, routing._replace(experts=order, gates=gates)

  params, x, _ = layer_inputs(IMAGES, TOKENS, DENSE)
  run = lambda selected, **more: (
    jax.jit(
      layer_of({'selected': selected, 'noise_std': 9.0}, 1, noisy=True, **more)
    )(params, x, key=jax.random.key(3))[1].routing
  )
  both, found = run(2), run(1, intervene=second)
  np.testing.assert_array_equal(found.experts, both.experts[..., 1:])
  np.testing.assert_array_equal(found.gates, both.gates[..., 1:])


@pytest.mark.slow
def test_under_remat(vmoe, weights_of, images, close):
  params = weights_of(vmoe())
  _, aux = jax.jit(vmoe().apply)(params, images[::-1])

  def run(model):
    def loss(images, clean):
      change = lambda block, tokens, routing: (
        tokens,
        routing._replace(gates=clean[block].routing.gates),
      )
      logits, _ = model.apply(params, images, intervene=change)
      return jnp.sin(logits).sum()

    return jax.jit(jax.value_and_grad(loss))(images, aux.records)

  close(run(vmoe(remat='blocks')), run(vmoe()))


@pytest.mark.parametrize(
  'change',
  [
    lambda tokens, routing: (tokens[:1], routing),
    lambda tokens, routing: (tokens.astype(jnp.bfloat16), routing),
    lambda tokens, routing: (
      tokens,
      routing._replace(experts=routing.experts[..., None]),
    ),
  ],
)
def test_other_shapes_are_refused(vmoe, weights_of, images, change):
  model = vmoe()
  params = weights_of(model)
  apply = lambda params: model.apply(
    params, images, intervene=lambda block, *x: change(*x)
  )
  with pytest.raises(UserError, match='encoderblock_0.*keep the shapes'):
    jax.eval_shape(apply, params)
