from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.studies import jacobian

BLOCK = 'encoderblock_0'
MASK = jnp.ones(2, bool)


def constant_experts(params, outputs):
  """Experts that return `outputs`, whatever they see."""
  own = params['Encoder'][BLOCK]['Moe']['Mlp']
  for name in ('Dense_0', 'Dense_1'):
    own[name] = jax.tree.map(np.zeros_like, own[name])
  own['Dense_1']['bias'] = outputs


def norms_of(config, model_of, change):
  model, params = model_of(config)
  change(params)
  tokens = jax.random.normal(jax.random.key(5), (2, 4, config.model.hidden))
  apply = partial(jacobian.layer, model, params, BLOCK, MASK)
  norms = jax.jit(lambda t: jacobian.layer_norms(apply, t, 40))(tokens)
  kernel = params['Encoder'][BLOCK]['Moe']['Router']['dense']['kernel']
  return norms, np.array(kernel), np.array(tokens @ kernel)


def softmax(scores):
  e = np.exp(scores - scores.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.slow
def test_two_constant_experts_that_share_every_token(config, model_of):
  config.model.experts = 2
  f = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
  found, kernel, scores = norms_of(
    config, model_of, lambda p: constant_experts(p, f)
  )
  # Of K = E gates the sum is 1, and the gate term is
  # p_1 p_2 (f_1 - f_2) (w_1 - w_2)^T.
  p = softmax(scores)
  rank_one = np.linalg.norm(f[0] - f[1]) * np.linalg.norm(kernel @ [1, -1])
  expected = p[..., 0] * p[..., 1] * rank_one
  np.testing.assert_allclose(found['gate'], expected, rtol=1e-4)
  np.testing.assert_allclose(found['total'], expected, rtol=1e-4)
  np.testing.assert_allclose(found['expert'], 0, atol=1e-6)
  np.testing.assert_allclose(found['sum_of_gates'], 0, atol=1e-5)


@pytest.mark.slow
def test_one_expert_a_token_has_a_sum_of_gates_alone(config, model_of):
  config.model.router.selected = 1
  f = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
  found, kernel, scores = norms_of(
    config, model_of, lambda p: constant_experts(p, f)
  )
  p, chosen = softmax(scores), scores.argmax(-1)
  own = np.take_along_axis(p, chosen[..., None], -1)
  slope = own * (kernel.T[chosen] - p @ kernel.T)  # of the chosen gate
  expected = np.linalg.norm(slope, axis=-1) * np.linalg.norm(f[chosen], axis=-1)
  np.testing.assert_allclose(found['sum_of_gates'], expected, rtol=1e-4)
  np.testing.assert_allclose(found['total'], expected, rtol=1e-4)
  np.testing.assert_allclose(found['gate'], 0, atol=1e-6)


@pytest.mark.slow
def test_identical_experts_leave_the_sum_of_gates_alone(config, model_of):
  def same(params):
    moe = params['Encoder'][BLOCK]['Moe']
    moe['Mlp'] = jax.tree.map(
      lambda w: np.stack([np.array(w[0])] * len(w)), moe['Mlp']
    )

  found, _, _ = norms_of(config, model_of, same)
  np.testing.assert_allclose(found['gate'], 0, atol=1e-5)
  assert (found['sum_of_gates'] > 1e-3).all()
  assert found['error'].max() < 1e-5


@pytest.mark.slow
def test_margin_terms_are_paths_by_their_last_gates(config, model_of):
  model, params = model_of(config)
  images = jax.random.uniform(jax.random.key(3), (2, 8, 8, 1))
  logits, found = jax.jit(partial(jacobian.margin_terms, model))(
    params, images, MASK
  )
  first, second = np.argsort(-np.array(logits), 1)[:, :2].T
  rows = np.arange(2)

  def gradient(stopped):
    def margin(x):
      def stop(block, tokens, routing):
        if block not in stopped:
          return tokens, routing
        gates = jax.lax.stop_gradient(routing.gates)
        return tokens, routing._replace(gates=gates)

      out, _ = model.apply(params, x, intervene=stop)
      return (out[rows, first] - out[rows, second]).sum()

    return jax.jit(jax.grad(margin))(images)

  both = ('encoderblock_0', 'encoderblock_1')
  none, last, every = (gradient(b) for b in ((), both[1:], both))
  scale = float(jnp.abs(none).max())
  close = partial(np.testing.assert_allclose, atol=1e-5 * scale)
  close(found['total'], none)
  close(found['expert'], every)
  for block, expected in zip(both, (last - every, none - last), strict=True):
    close(found[f'gate/{block}'] + found[f'sum_of_gates/{block}'], expected)
    assert jnp.abs(expected).max() > 1e-3 * scale


@pytest.mark.slow
def test_a_router_that_ignores_its_input(config, in_memory, model_of, opened):
  config.mode, config.study.name = 'study', 'jacobian'
  model, params = model_of(config)
  for block in ('encoderblock_0', 'encoderblock_1'):
    router = params['Encoder'][block]['Moe']['Router']['dense']
    router['kernel'] = np.zeros_like(router['kernel'])
  found = jacobian.run(opened(config, in_memory(8), model, params))
  (row,) = found.rows
  assert found.warnings == []
  for place in ('encoderblock_0', 'encoderblock_1', 'margin'):
    assert row[place]['gate']['value'] == pytest.approx(0, abs=1e-6)
    assert row[place]['sum_of_gates']['value'] == pytest.approx(0, abs=1e-6)
    total = row[place]['total']['value']
    assert row[place]['expert']['value'] == pytest.approx(total, rel=1e-4)


def test_other_models_are_told(config, in_memory, model_of, opened):
  config.model.router.name = 'soft'
  model, params = model_of(config)
  with pytest.raises(UserError, match='about routers top_k'):
    jacobian.run(opened(config, in_memory(8), model, params))


@pytest.mark.slow
def test_a_dense_model_has_the_gradient_of_its_margin(
  config, in_memory, model_of, opened
):
  config.model.experts = 0
  model, params = model_of(config)
  job = opened(config, in_memory(8), model, params)
  (row,) = jacobian.run(job).rows
  images = jnp.array([job.source[i]['image'] for i in range(8)]) / 255

  def margin(image):
    first, second = jax.lax.top_k(model.apply(params, image[None])[0][0], 2)[0]
    return first - second

  norms = jax.jit(jax.vmap(lambda x: jnp.linalg.norm(jax.grad(margin)(x))))
  expected = float(norms(images).mean())
  found = row['margin']
  assert found['total']['value'] == pytest.approx(expected, rel=1e-4)
  assert found['expert'] == found['total'] and found['of_layer'] == {}
  assert found['gate']['value'] == found['sum_of_gates']['value'] == 0


def test_a_route_of_the_whole_image_is_refused(
  config, in_memory, model_of, opened
):
  config.mode, config.study.name = 'study', 'jacobian'
  config.model.router.unit = 'image'
  job = opened(config, in_memory(8), *model_of(config))
  with pytest.raises(UserError, match=r"config\.model\.router\.unit='image'"):
    jacobian.run(job)
