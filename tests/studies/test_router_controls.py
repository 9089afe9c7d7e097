import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.evaluate.job import write
from vmoe_robust.models import build
from vmoe_robust.studies import router_controls as controls

BLOCKS = ('encoderblock_0', 'encoderblock_1')


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'router_controls'
  config.study.router_controls.draws = 2
  config.attack.update(dict(steps=1, eps=(0.1,)))
  return config


@pytest.mark.slow
def test_with_identical_experts_no_control_is_another_router(
  config, in_memory, model_of, opened
):
  config.model.layers = 1
  model, params = model_of(config)
  moe = params['Encoder'][BLOCKS[0]]['Moe']
  moe['Mlp'] = jax.tree.map(
    lambda w: np.stack([np.array(w[0])] * len(w)), moe['Mlp']
  )
  job = opened(config, in_memory(11), model, params)
  found = controls.run(job)
  names = [(row['eps'], row['control'], row['draw']) for row in found.rows]
  kinds = [('learned', 0), ('hash', 0), ('random', 1), ('random', 2)]
  kinds += [('oracle', 0), ('uniform', 0)]
  assert names == [(eps, *kind) for kind in kinds for eps in (0.0, 0.1)]
  for row in found.rows:
    one = row['against_learned']
    assert (one['only_first'], one['only_second']) == (0, 0), row
  changed = {row['eps']: row['accuracy']['value'] for row in found.rows}
  assert changed[0.1] < changed[0.0]  # the attack found something
  assert 'hash of the position' in controls.render(write(job, found))


@pytest.mark.slow
def test_controls_are_the_routers_that_models_are_trained_with(
  config, model_of
):
  config.model.router.renormalize = True  # gates sum to 1, as a hash's do
  model, params = model_of(config)
  images = jax.random.uniform(jax.random.key(3), (5, 8, 8, 1))
  label, mask = jnp.array([0, 1, 2, 3, 1]), jnp.ones(5, bool)
  forward = controls.controlled(model, config, BLOCKS)

  @jax.jit
  def found(kinds):
    logits = lambda k: forward(params, images, mask, (k, 2, label))[0]
    return jax.lax.map(logits, kinds)

  logits = dict(zip(controls._KINDS, found(jnp.arange(4)), strict=True))
  apply = jax.jit(model.apply)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
  close(logits['learned'], apply(params, images)[0])
  for name in ('hash', 'oracle'):
    settings = config.model.copy_and_resolve_references()
    settings.router.name = name
    other = build(settings, (8, 8, 1), model.module.mesh)
    close(logits[name], jax.jit(other.apply)(params, images, labels=label)[0])
  key = jax.random.fold_in(jax.random.key(config.seed), 2)
  tokens = jnp.zeros((1, 4, config.model.hidden))
  for place, block in enumerate(BLOCKS):
    router = params['Encoder'][block]['Moe']['Router']['dense']
    router['kernel'] = controls.random_kernel(
      jax.random.fold_in(key, place), tokens, 4
    )
  close(logits['random'], apply(params, images)[0])
  every = [np.array(one) for one in logits.values()]
  for a, b in itertools.pairwise(every):
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.slow
def test_all_experts_with_equal_gates_in_closed_form(config, two_experts):
  rng = np.random.default_rng(0)
  outputs = rng.normal(size=(2, 16))
  w = rng.normal(size=(4, 4))
  model, params = two_experts(w, 1.0, outputs)
  images = jax.random.uniform(jax.random.key(3), (3, 8, 8, 1))
  mask = jnp.ones(3, bool)
  forward = controls.uniform(model, config)
  found, _ = jax.jit(forward)(params, images, mask, ())
  # The mean of both experts, as loud as the one that was chosen.
  _, params = two_experts(w, 1.0, 2 * [outputs.mean(0)])
  expected, _ = jax.jit(model.apply)(params, images)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_draws_are_summed_up_image_by_image(config):
  right = {'learned': [1, 1, 0, 1], 'random 1': [1, 0, 0, 1]}
  right['random 2'] = [0, 0, 1, 1]
  columns = {
    'condition': np.repeat([f'clean, {name}' for name in right], 4),
    'prediction_after': np.concatenate(list(right.values())),
    'label': np.ones(12, int),
  }
  named = [('learned', 0), ('random', 1), ('random', 2)]
  found = controls._of_draws(columns, config, 0.0, named)
  assert found['accuracy']['value'] == 0.5
  assert (found['lowest_draw'], found['highest_draw']) == (0.5, 0.5)
  assert found['difference']['value'] == -0.25
  assert found['accuracy']['n'] == 4


def test_other_models_are_told(config, in_memory, model_of, opened):
  assert ('oracle', 0) in controls._controls(config)
  config.train.loss = 'sigmoid'
  assert ('oracle', 0) not in controls._controls(config)
  config.model.router.name = 'hash'
  model, params = model_of(config)
  with pytest.raises(UserError, match='about routers top_k.*hash'):
    controls.run(opened(config, in_memory(8), model, params))
  config.model.experts = 0
  with pytest.raises(UserError, match='is dense'):
    controls.run(opened(config, in_memory(8), model, params))
