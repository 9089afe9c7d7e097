import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.robustness.smoothness import jump, slopes, spectral_norm
from vmoe_robust.studies import lipschitz

RNG = np.random.default_rng(0)
# Two linear experts of 16 pixels and 3 classes, and a linear router.
EXPERTS = RNG.normal(size=(2, 3, 16)).astype(np.float32)
ROUTER = RNG.normal(size=(2, 16)).astype(np.float32)
IMAGES = RNG.uniform(0.3, 0.7, (5, 4, 4, 1)).astype(np.float32)


def answer(images, experts=EXPERTS, selected=1, gated=True):
  """Logits of `selected` of both experts, and the one of the higher score."""
  x = images.reshape(len(images), 16)
  scores = (x - 0.5) @ ROUTER.T
  each = jnp.einsum('ecd,bd->bec', experts, x)
  first = jax.nn.one_hot(scores.argmax(-1), 2)
  gates = jax.nn.softmax(scores) if gated else jnp.ones_like(scores)
  gates = gates * (first if selected == 1 else 1)
  logits = jnp.einsum('be,bec->bc', gates, each)
  return logits, first[:, None, None].astype(bool)


def two_sides():
  """Images, others on the other side, and where the router's scores tie."""
  normal = ROUTER[0] - ROUTER[1]
  flat = IMAGES.reshape(5, 16)
  score = (flat - 0.5) @ normal
  away = flat - 2.5 * score[:, None] * normal / (normal @ normal)
  away += RNG.uniform(-0.02, 0.02, away.shape)
  other = (away - 0.5) @ normal
  assert (score * other < 0).all()
  share = (score / (score - other))[:, None]
  tie = flat + share * (away - flat)
  return jnp.asarray(away, jnp.float32).reshape(IMAGES.shape), tie


def test_the_jump_of_two_linear_experts_in_closed_form():
  others, tie = two_sides()
  found = jax.jit(lambda x, z: jump(answer, x, z))(IMAGES, others)
  # Both have the gate 1/2 where their scores tie.
  f = np.einsum('ecd,bd->bec', EXPERTS, tie)
  expected = np.linalg.norm(f[:, 0] - f[:, 1], axis=-1) / 2
  np.testing.assert_allclose(found.size, expected, rtol=1e-4)
  of = np.take_along_axis(f, np.array(_cells(IMAGES))[:, None, None], 1)[:, 0]
  relative = expected / (np.linalg.norm(of, axis=-1) / 2)
  np.testing.assert_allclose(found.relative, relative, rtol=1e-4)
  assert found.found.all() and (found.distance < 4 * 16**0.5 * 2.0**-24).all()
  assert found.order.tolist() == found.changed.tolist() == 5 * [1]
  assert (found.rounding < 1e-5).all()
  flips = f[:, 0].argmax(-1) != f[:, 1].argmax(-1)
  assert found.flips.tolist() == flips.tolist()


def _cells(images):
  return np.asarray(answer(jnp.asarray(images))[1])[:, 0, 0].argmax(-1)


@pytest.mark.parametrize('way', ['identical experts', 'all experts'])
def test_what_does_not_jump(way):
  others, _ = two_sides()
  experts, selected = EXPERTS, 2
  if way == 'identical experts':
    experts, selected = np.stack(2 * [EXPERTS[0]]), 1
  of = lambda x: answer(x, experts, selected)
  found = jax.jit(lambda x, z: jump(of, x, z))(IMAGES, others)
  assert found.found.all() and (found.relative < 1e-5).all()
  # Within its own cell an image has no boundary.
  inside = jax.jit(lambda x: jump(of, x, x))(IMAGES)
  assert not inside.found.any()


def test_slopes_within_a_cell_are_those_of_its_expert():
  of = lambda x: answer(x, gated=False)
  norms = np.linalg.norm(EXPERTS, ord=2, axis=(1, 2))
  keys = jax.random.split(jax.random.key(0), (40, 5))

  @jax.jit
  def found(images, eps):
    jacobian = spectral_norm(lambda x, plain: of(x)[0], images, keys[0], 60)
    return jacobian, slopes(of, images, eps, 'l2', keys)

  jacobian, near = found(IMAGES, jnp.float32(1e-3))
  np.testing.assert_allclose(jacobian, norms[_cells(IMAGES)], rtol=1e-3)
  assert near['pairs/random/within'].tolist() == 5 * [40]
  assert near['pairs/directed/across'].tolist() == 5 * [0]
  assert not near['directed/across'].any()
  # No pair is steeper than the operator norm, and directed ones come near.
  assert (near['directed/within'] <= jacobian * 1.01).all()
  assert (near['directed/within'] > 0.9 * jacobian).all()
  assert (near['random/within'] < near['directed/within']).all()
  # On the boundary's other side the slope is unbounded.
  _, far = found(IMAGES, jnp.float32(0.5))
  assert (far['pairs/directed/across'] > 0).any()
  assert (far['directed/within'] <= norms.max() * 1.01).all()
  assert far['directed/across'].max() > 2 * norms.max()


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_model_whose_jump_is_known(
  config, in_memory, two_experts, opened, dtype
):
  """In bfloat16 rounding would be as large as the jump."""
  config.mode, config.study.name = 'study', 'lipschitz'
  config.model.compute_dtype = dtype
  config.study.lipschitz.update(dict(pairs=2, iterations=2))
  config.attack.update(dict(steps=3, eps=(0.3,)))
  c, a = 4.0, 3.0
  outputs = np.zeros((2, 16))
  outputs[0, 4:6], outputs[1, 4:6] = (a, -a), (-a, a)
  model, params = two_experts(RNG.normal(size=(4, 4)), c, outputs)
  found = lipschitz.run(opened(config, in_memory(6), model, params))
  # A token at the boundary is (0, 0, C, -C, +-a/2, -+a/2, 0, ...), over its
  # deviation, and one of four that are pooled.
  deviation = np.sqrt((2 * c**2 + a**2 / 2) / 16)
  head = np.asarray(params['head']['kernel'])
  expected = np.linalg.norm(head[4] - head[5]) * a / deviation / 4
  _, row = found.rows
  one = row['jump']
  assert one['found']['value'] > 0.5
  assert one['size']['value'] == pytest.approx(expected, rel=1e-3)
  assert one['order']['value'] == one['changed']['value'] == 1
  assert one['rounding']['value'] < 1e-5
  assert one['distance']['value'] < 1e-6 and not found.warnings
  shown = {'rows': found.rows, 'summary': found.summary}
  assert 'eps 76.5/255' in lipschitz.render(shown)
  router = params['Encoder']['encoderblock_0']['Moe']['Router']['dense']
  router['kernel'] = np.zeros_like(router['kernel'])
  found = lipschitz.run(opened(config, in_memory(6), model, params))
  _, row = found.rows
  assert row['jump']['found']['value'] == 0 and row['jump']['size'] is None
  assert row['across']['directed'] == {'mean': None, 'largest': None}
  assert row['within']['directed']['largest'] > 0
  assert [figure.name for figure in found.figures] == ['lipschitz']
  shown = {'rows': found.rows, 'summary': found.summary}
  assert ' 0.0%' in lipschitz.render(shown)


def test_other_models_are_told(config, in_memory, model_of, opened):
  config.mode, config.study.name = 'study', 'lipschitz'

  def told(words):
    model, params = model_of(config)
    with pytest.raises(UserError, match=words):
      lipschitz.run(opened(config, in_memory(8), model, params))

  config.attack.name = 'paper'
  told("name='paper' begins at the image .*'lipschitz' attacks with a loss")
  config.attack.update(dict(name='pgd', random_start=False))
  told('random_start=False')
  config.model.router.name = 'soft'
  told('about routers top_k.*soft')
  config.model.experts = 0
  told('is dense')
