"""Other gates, units and routers against an independent NumPy version."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.slow import all_slow_but
from vmoe_robust.config import UserError
from vmoe_robust.models.routers.hash import experts_of
from vmoe_robust.models.routers.top_k import summing_to_one

IMAGES, TOKENS, DIM, EXPERTS, GROUP = 16, 5, 8, 4, 2
LABELS = np.arange(IMAGES) * 7 % 10
LEARNT = {'dense': {'kernel': (DIM, EXPERTS)}}
FROZEN = {'frozen': (DIM, EXPERTS)}
BIASED = LEARNT | {'bias': (EXPERTS,)}
BALANCED = dict(balance_rate=0.001, load_weight=0.0)
VARIANTS = {
  'renormalised': (LEARNT, dict(selected=2, renormalize=True)),
  'sigmoid': (LEARNT, dict(selected=2, gate='sigmoid')),
  'sigmoid_renormalised': (
    LEARNT,
    dict(selected=2, gate='sigmoid', renormalize=True),
  ),
  'uniform': (LEARNT, dict(selected=2, gate='uniform')),
  'balanced': (BIASED, dict(selected=2, **BALANCED)),
  'balanced_sigmoid': (BIASED, dict(gate='sigmoid', **BALANCED)),
  'image': (LEARNT, dict(selected=2, unit='image')),
  'image_balanced': (
    BIASED,
    dict(selected=2, unit='image', renormalize=True, **BALANCED),
  ),
  'frozen': (FROZEN, dict(selected=2, frozen=True)),
  'hash': ({}, dict(selected=2, name='hash')),
  'oracle': ({}, dict(selected=2, name='oracle')),
}


def everything(tree):
  return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def scores_of(router, fields, x):
  """Gates of all experts, and by what they are chosen: [images, tokens, E]."""
  if fields.get('unit') == 'image':
    x = np.broadcast_to(x.mean(1, keepdims=True), x.shape)
  kernel = router['frozen' if 'frozen' in router else 'dense']
  kernel = kernel['kernel'] if isinstance(kernel, dict) else kernel
  exp = np.exp(x @ kernel)
  gates = exp / exp.sum(-1, keepdims=True)
  if fields.get('gate') == 'sigmoid':
    gates = exp / (1 + exp)
  return gates, gates + router.get('bias', 0)


def choices_of(params, fields, x):
  """Experts of each token and their gates: [images, tokens, K] both."""
  selected, name = fields.get('selected', 1), fields.get('name', 'top_k')
  equal = np.full((IMAGES, TOKENS, selected), 1 / selected)
  if name == 'hash':
    one = experts_of(TOKENS, selected, EXPERTS, 'Router')
    return np.broadcast_to(one, equal.shape), equal
  if name == 'oracle':
    first = LABELS[:, None, None] + np.arange(selected)
    return np.broadcast_to(first % EXPERTS, equal.shape), equal
  gates, order = scores_of(params['Router'], fields, x)
  chosen = np.argsort(-order, axis=-1, kind='stable')[..., :selected]
  gates = np.take_along_axis(gates, chosen, -1)
  if fields.get('renormalize'):
    gates = gates / gates.sum(-1, keepdims=True)
  return chosen, equal if fields.get('gate') == 'uniform' else gates


def kept_of(chosen, factor, mask):
  """Who finds room in each group: first choices first, then by place."""
  selected = chosen.shape[-1]
  size = math.ceil(GROUP * TOKENS * selected * factor / EXPERTS)
  size += -size % 4
  groups = chosen.reshape(-1, GROUP * TOKENS, selected)
  mask = np.repeat(mask, TOKENS).reshape(groups.shape[:2])
  kept = np.zeros(groups.shape, bool)
  for group, there, out in zip(groups, mask, kept, strict=True):
    room = [size] * EXPERTS
    for k in range(selected):
      for token in range(len(group)):
        expert = group[token, k]
        if there[token] and room[expert]:
          room[expert] -= 1
          out[token, k] = True
  return kept.reshape(chosen.shape)


def outputs(params, x):
  """Every expert's output for every token: [images, tokens, E, dim]."""
  first, second = params['Mlp']['Dense_0'], params['Mlp']['Dense_1']
  h = np.einsum('btd,edf->btef', x, first['kernel']) + first['bias']
  h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  return np.einsum('btef,efd->bted', h, second['kernel']) + second['bias']


def combined(params, x, chosen, gates):
  rows = np.take_along_axis(outputs(params, x), chosen[..., None], 2)
  return (gates[..., None] * rows).sum(2)


def inputs_of(layer_inputs, variant):
  router, fields = VARIANTS[variant]
  params, x, dy = layer_inputs(IMAGES, TOKENS, router)
  params.setdefault('Router', {})
  return fields, params, x, dy


@pytest.mark.parametrize(
  'shape', all_slow_but([(2, 4, 1)], [(1, 1, 1), (2, 4, 1)]), ids=str
)
@pytest.mark.parametrize('variant', VARIANTS)
def test_dropless(layer_of, layer_inputs, variant, shape):
  fields, params, x, _ = inputs_of(layer_inputs, variant)
  layer = jax.jit(layer_of(fields, 1, shape, dropless=True))
  y, record = layer(params, x, labels=jnp.asarray(LABELS))
  chosen, gates = choices_of(everything(params), fields, everything(x))
  routing = record.routing
  np.testing.assert_array_equal(routing.experts, chosen)
  np.testing.assert_allclose(routing.gates, gates, atol=2e-6)
  expected = combined(everything(params), everything(x), chosen, gates)
  np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
  'shape', all_slow_but([(2, 2, 2)], [(1, 1, 1), (2, 2, 2)]), ids=str
)
@pytest.mark.parametrize('variant', VARIANTS)
def test_capacity(layer_of, layer_inputs, variant, shape):
  fields, params, x, _ = inputs_of(layer_inputs, variant)
  factor, mask = 0.4, np.arange(IMAGES) != 3
  layer = jax.jit(layer_of(fields | {'capacity_factor': factor}, GROUP, shape))
  y, record = layer(params, x, jnp.asarray(mask), labels=jnp.asarray(LABELS))
  chosen, gates = choices_of(everything(params), fields, everything(x))
  kept = kept_of(chosen, factor, mask)
  assert 0.2 < kept.mean() < 0.95
  by_image = lambda a: np.asarray(a).reshape(IMAGES, TOKENS, -1)
  np.testing.assert_array_equal(by_image(record.placement.kept), kept)
  assert (by_image(record.routing.experts)[3] == EXPERTS).all()
  expected = combined(everything(params), everything(x), chosen, gates * kept)
  np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
  'variant', all_slow_but(['renormalised', 'frozen', 'oracle'], VARIANTS)
)
def test_who_learns_of_the_output(layer_of, layer_inputs, variant):
  fields, params, x, dy = inputs_of(layer_inputs, variant)
  layer = layer_of(fields, 1, dropless=True)
  labels = jnp.asarray(LABELS)
  loss = lambda params: (layer(params, x, labels=labels)[0] * dy).sum()
  slope = jax.jit(jax.grad(loss))(params)['Router']
  for name, leaf in slope.items():
    learns = name == 'dense' and variant != 'uniform'
    for value in jax.tree.leaves(leaf):
      assert np.any(value) == learns, name


@pytest.mark.parametrize('shift', [-20, -44, -50, -87, -200])
@pytest.mark.parametrize('gate', ['sigmoid', 'softmax'])
def test_gates_that_sum_to_one_are_so_where_all_are_small(gate, shift):
  """A shift of all scores is all but none of the gates over their sum."""
  logits = jnp.asarray([[[0.3, -0.2, 0.1, -1.0]]])
  found = lambda shift: summing_to_one(logits + shift, gate == 'sigmoid')
  np.testing.assert_allclose(found(shift), jax.nn.softmax(logits), rtol=1e-4)
  slope = jax.jacrev(lambda x: summing_to_one(x, gate == 'sigmoid'))
  expected = jax.jacrev(jax.nn.softmax)(logits)
  np.testing.assert_allclose(slope(logits + shift), expected, rtol=2e-4)


@pytest.mark.parametrize('renormalize', [False, True])
def test_sigmoid_gates_have_gradients_where_all_are_small(
  layer_of, layer_inputs, renormalize
):
  fields = dict(selected=2, gate='sigmoid', renormalize=renormalize)
  fields |= dict(importance_weight=1.0, gshard_weight=0.0, load_weight=0.0)
  params, x, dy = layer_inputs(IMAGES, TOKENS, LEARNT)
  # One direction of the tokens lowers all scores alike.
  x = jnp.concatenate([x[..., :-1], jnp.ones_like(x[..., :1])], -1)
  kernel = params['Router']['dense']['kernel']
  params['Router']['dense']['kernel'] = kernel.at[-1].set(-60.0)
  layer = layer_of(fields, 1, dropless=True)

  def loss(params, x):
    y, record = layer(params, x)
    return (y * dy).sum() + record.routing.auxiliary_loss.sum()

  slopes = jax.jit(jax.grad(loss, (0, 1)))(params, x)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
  assert np.any(slopes[0]['Router']['dense']['kernel'])
  assert not renormalize or np.any(slopes[1])


def test_losses_of_sigmoid_gates_are_of_their_shares(layer_of, layer_inputs):
  fields = dict(gate='sigmoid', gshard_weight=1.0)
  params, x, _ = layer_inputs(IMAGES, TOKENS, LEARNT)
  routing = jax.jit(layer_of(fields, GROUP))(params, x)[1].routing
  gates, _ = scores_of(everything(params)['Router'], fields, everything(x))
  share = gates / gates.sum(-1, keepdims=True)
  share = share.reshape(-1, GROUP * TOKENS, EXPERTS)
  total = share.sum(1)
  expected = total.var(1) / total.mean(1) ** 2
  np.testing.assert_allclose(
    routing.losses['importance'], expected, rtol=1e-4, atol=1e-7
  )
  first = np.eye(EXPERTS)[share.argmax(-1)]
  expected = (share.mean(1) * first.mean(1)).mean(1) * EXPERTS**2
  np.testing.assert_allclose(routing.losses['gshard'], expected, rtol=1e-5)
  assert np.isclose(np.asarray(routing.losses['gshard']).mean(), 1, atol=0.6)


def test_no_load_loss_where_a_bias_chooses(layer_of, layer_inputs):
  params, x, _ = layer_inputs(IMAGES, TOKENS, BIASED)
  layer = jax.jit(layer_of(BALANCED, GROUP, noisy=True))
  more = None, jnp.arange(IMAGES), jax.random.key(0)
  found = layer(params, x, *more)[1].routing.losses
  assert set(found) == {'importance', 'gshard', 'z'}


def test_losses_of_images_are_of_their_routes(layer_of, layer_inputs):
  params, x, _ = layer_inputs(IMAGES, TOKENS, LEARNT)
  image = jax.jit(layer_of(dict(unit='image', z_weight=1.0), GROUP))
  # Tokens that are alike have their mean's route, each by itself.
  alike = jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)
  token = jax.jit(layer_of(dict(z_weight=1.0), GROUP))
  found, expected = image(params, x)[1].routing, token(params, alike)[1].routing
  for name, loss in expected.losses.items():
    np.testing.assert_allclose(found.losses[name], loss, rtol=1e-5, atol=1e-6)
  for name in ('experts', 'gates', 'logits', 'probabilities'):
    np.testing.assert_allclose(
      getattr(found, name), getattr(expected, name), atol=2e-6
    )


def test_noise_of_an_image_is_one(layer_of, layer_inputs):
  fields = dict(unit='image', noise_std=40.0)
  layer = jax.jit(layer_of(fields, GROUP, noisy=True))
  params, x, _ = layer_inputs(IMAGES, TOKENS, LEARNT)
  index = jnp.arange(IMAGES)
  routing = layer(params, x, None, index, jax.random.key(0))[1].routing
  experts = np.asarray(routing.experts).reshape(IMAGES, TOKENS)
  assert (experts == experts[:, :1]).all()
  assert len(np.unique(experts)) == EXPERTS
  clean = jax.jit(layer_of(fields, GROUP))(params, x)[1].routing
  assert np.any(clean.experts != routing.experts)


@pytest.mark.parametrize('selected', [1, 3])
def test_a_hash_deals_positions_out_evenly(selected):
  found = experts_of(64, selected, 8, 'a')
  assert found.shape == (64, selected)
  for column in found.T:
    assert np.bincount(column).tolist() == [8] * 8
  assert all(len(set(row)) == selected for row in found.tolist())
  np.testing.assert_array_equal(found, experts_of(64, selected, 8, 'a'))
  assert (found != experts_of(64, selected, 8, 'b')).mean() > 0.5
  # Not a stripe of the grid.
  assert np.any(np.diff(found[:, 0]) % 8 != 1)


@pytest.mark.slow
def test_each_block_has_a_hash_of_its_own(vmoe, weights_of):
  model = vmoe(layers=2, router=dict(name='hash'), image=(32, 32, 3))
  images = jnp.zeros((1, *model.image_shape))
  records = jax.jit(model.apply)(weights_of(model), images)[1].records
  first, second = (np.asarray(r.routing.experts) for r in records.values())
  assert (first != second).mean() > 0.4


def test_the_oracle_is_told_or_refuses(vmoe, weights_of):
  model = vmoe(router=dict(name='oracle'))
  params = weights_of(model)
  images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
  with pytest.raises(UserError, match="'oracle' is told.*use another router"):
    model.apply(params, images)
  run = jax.jit(functools.partial(model.apply, experts='capacity'))
  # Padded to a group of four, without a label of its own.
  labels = jnp.asarray([3, 6, 9])
  aux = run(params, images[:3], labels=labels)[1]
  experts = np.asarray(aux.records['encoderblock_0'].routing.experts)
  np.testing.assert_array_equal(experts[0, :12, 0], np.repeat([3, 2, 1], 4))
  assert (experts[0, 12:] == 4).all()


@pytest.mark.slow
def test_shared_experts_are_always_on(vmoe, weights_of):
  model = vmoe(expert_mlp=6, shared_experts=2, router=dict(selected=2))
  params = weights_of(model)
  block = params['Encoder']['encoderblock_0']
  assert block['Moe']['Mlp']['Dense_0']['kernel'].shape == (4, 16, 6)
  assert block['Shared']['Dense_0']['kernel'].shape == (16, 12)
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  # Experts of zeros leave the dense twin, whose MLP is the shared one.
  none = jax.tree.map(jnp.zeros_like, block['Moe'])
  silent = params | {'Encoder': dict(params['Encoder'])}
  silent['Encoder']['encoderblock_0'] = block | {'Moe': none}
  twin = dict(block, Mlp=block['Shared'])
  del twin['Moe'], twin['Shared']
  dense = params | {'Encoder': params['Encoder'] | {'encoderblock_0': twin}}
  found = jax.jit(model.apply)(silent, images)[0]
  expected = jax.jit(vmoe(experts=0, moe_every=0, mlp=12).apply)(dense, images)
  np.testing.assert_allclose(found, expected[0], atol=1e-5)
  assert np.abs(jax.jit(model.apply)(params, images)[0] - found).max() > 0.01
