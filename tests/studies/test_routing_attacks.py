import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError, validate
from vmoe_robust.evaluate import adversarial
from vmoe_robust.models.divergence import route_scores
from vmoe_robust.studies import conditions, routing_attacks

EPS = 0.2
BLOCKS = ('encoderblock_0', 'encoderblock_1')


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'routing_attacks'
  config.study.routing_attacks.update(
    dict(left_by='apgd_ce', lambdas=(0.1, 1.0))
  )
  config.study.routing_attacks.batch_size = 8
  config.attack.update(dict(eps=(EPS,), steps=2))
  return config


def ignore_input(params):
  for block in BLOCKS:
    router = params['Encoder'][block]['Moe']['Router']['dense']
    router['kernel'] = np.zeros_like(router['kernel'])


@pytest.mark.slow
def test_divergence_and_margin_by_hand(config, model_of):
  model, params = model_of(config)
  x, y = jax.random.uniform(jax.random.key(0), (2, 3, 8, 8, 1))
  apply = jax.jit(model.apply)
  before, after = (apply(params, z)[1] for z in (x, y))
  expected = np.zeros(3)
  for block in BLOCKS:
    p, q = (
      np.array(aux.records[block].routing.probabilities, np.float64)
      for aux in (before, after)
    )
    expected += (p * np.log(p / q)).sum(-1).mean(-1)
  scores = route_scores(before.records, 3)
  found = routing_attacks.moved(scores, after)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(
    routing_attacks.moved(scores, before), 0, atol=1e-7
  )
  logits = jnp.array([[1.0, 3, 2], [5, 1, 2]])
  margin = routing_attacks.margin(logits, jnp.array([1, 2]))
  np.testing.assert_array_equal(margin, [-1, 3])
  several = jnp.array([[1, 1, 0], [0, 1, 1]])
  margin = routing_attacks.margin(logits, several)
  np.testing.assert_array_equal(margin, [-1, 3])


def test_the_first_attempt_that_breaks_an_image_counts():
  predictions = jnp.array([[0, 1, 1], [2, 0, 1], [3, 0, 1]])
  divergences = jnp.arange(9.0).reshape(3, 3)
  found = routing_attacks.worst(predictions, divergences, jnp.array([0, 1, 1]))
  np.testing.assert_array_equal(found[0], [2, 0, 1])
  np.testing.assert_array_equal(found[1], [3, 4, 2])


@pytest.mark.slow
def test_without_gates_only_the_gradient_changes(config, model_of):
  model, params = model_of(config)
  x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
  mask = jnp.ones(2, bool)

  def of(forward):
    # Compiled, as in the study: op by op the same sums round in another way.
    logits = jax.jit(lambda x: forward(params, x, mask, ())[0])
    return logits(x), jax.grad(lambda x: logits(x).sum())(x)

  same, full = of(adversarial.plain(model))
  logits, part = of(routing_attacks.without_gates(model))
  np.testing.assert_array_equal(logits, same)
  assert jnp.abs(full - part).max() > 1e-4


@pytest.mark.slow
def test_a_router_that_ignores_its_input(config, in_memory, model_of, opened):
  model, params = model_of(config)
  ignore_input(params)
  found = routing_attacks.run(opened(config, in_memory(8), model, params))
  for row in found.rows:
    if row['attack'] in routing_attacks.OURS:
      assert row['divergence']['value'] == 0
      here = conditions.of(found.columns, row['condition'])
      assert not here['divergence'].any()
  # Its gradient is that of the experts alone.
  plain, expert = (
    conditions.of(found.columns, f'eps 51/255, {kind}')['prediction_after']
    for kind in ('attack', 'expert_only')
  )
  np.testing.assert_array_equal(plain, expert)
  (fallen,) = found.summary['fallen'].values()
  first = conditions.of(found.columns, 'eps 51/255, first')
  joint = conditions.of(found.columns, 'eps 51/255, joint')
  left, right = conditions.right(first), conditions.right(joint)
  assert fallen['left'] == left.sum()
  assert fallen['joint']['fallen'] == (left & ~right).sum()
  # Without a divergence to raise, joint is the margin, from the same starts.
  alone = conditions.right(conditions.of(found.columns, 'eps 51/255, margin'))
  only = (left & alone & ~right).sum()
  assert fallen['only_joint'] == only
  assert fallen['margin_less_joint']['only_first'] == (alone & ~right).sum()
  np.testing.assert_array_equal(alone, right)
  # The first attack is told by its length.
  assert found.summary['first'] == 'apgd_ce, 2 steps'


def test_what_does_not_fit_is_told(config, in_memory, model_of, opened):
  model, params = model_of(config)
  config.attack.name = 'paper'
  with pytest.raises(UserError, match="name='paper' begins at the image"):
    routing_attacks.run(opened(config, in_memory(8), model, params))
  config.attack.update(dict(name='pgd', random_start=False))
  with pytest.raises(UserError, match=r'random_start=False .* no gradient'):
    routing_attacks.run(opened(config, in_memory(8), model, params))
  config.model.router.name = 'soft'
  model, params = model_of(config)
  with pytest.raises(UserError, match='about routers top_k, expert_choice'):
    routing_attacks.run(opened(config, in_memory(8), model, params))


@pytest.mark.parametrize('value', [0.0, -1.0, float('inf')])
def test_a_lambda_that_weighs_nothing_is_refused(config, value):
  config.study.routing_attacks.lambdas = (1.0, value)
  with pytest.raises(UserError, match='routing_attacks.lambdas'):
    validate(config, 1)


def test_an_attack_that_is_none_is_refused_before_weights_are_read(config):
  config.study.routing_attacks.left_by = 'apgd_ce+cw'
  with pytest.raises(UserError, match="routing_attacks.left_by='cw'"):
    validate(config, 1)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('experts', 'capacity'),
    ('compute_dtype', 'bfloat16'),
    ('every_steps', 5),
    ('at_end', False),
  ],
)
def test_what_would_change_the_first_attack_alone_is_refused(
  config, field, value
):
  config.attack.update(dict(queries=100, batch_size=4))  # which it may say
  validate(config, 1)
  config.attack[field] = value
  with pytest.raises(UserError, match=f'config.attack.{field}=.* no effect'):
    validate(config, 1)
