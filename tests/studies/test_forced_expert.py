import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.studies.conftest import identical, small_config
from vmoe_robust.config import UserError
from vmoe_robust.config.studies import validate_study
from vmoe_robust.models import build
from vmoe_robust.models.routers.routing import Routing
from vmoe_robust.report.statistics import paired
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies import forced_expert

IMAGES = 11


def settings(**fields):
  config = small_config()
  config.mode, config.study.name = 'study', 'forced_expert'
  config.study.forced_expert.update(dict(batch_size=8) | fields)
  config.attack.update(dict(steps=2, eps=(0.1,)))
  return config


@pytest.fixture(scope='module')
def alike(in_memory, model_of, opened):
  """Of four experts that are the same one, with a gate of 1."""
  config = settings()
  config.model.layers = 1
  config.model.router.update(dict(selected=1, gate='uniform'))
  model, params = model_of(config)
  identical(params)
  return forced_expert.run(opened(config, in_memory(IMAGES), model, params))


@pytest.mark.slow
def test_of_identical_experts_any_may_be_forced(alike):
  assert len(alike.rows) == 2 * (1 + 1 + 4)
  for row in alike.rows:
    both = row['against_router']
    assert (both['only_first'], both['only_second']) == (0, 0), row
    assert row['accuracy']['n'] == IMAGES
  for found in alike.summary['beats_the_router'].values():
    assert (found['forced'], found['better'], found['worse']) == (4, 0, 0)


@pytest.fixture(scope='module')
def chosen(in_memory, model_of, opened):
  """Of two choices a token, two experts of block 1 alone."""
  config = settings(blocks=(1,), experts=(2, 0))
  model, params = model_of(config)
  source = in_memory(IMAGES)
  job = opened(config, source, model, params)
  return config, model, params, source, forced_expert.run(job)


@pytest.mark.slow
def test_a_forced_expert_is_the_block_that_has_no_other(chosen):
  config, model, params, source, found = chosen
  names = [row['condition'] for row in found.rows[:4]]
  assert names == [
    'clean, router',
    'clean, encoderblock_1, gate 1',
    'clean, encoderblock_1, expert 0',
    'clean, encoderblock_1, expert 2',
  ]
  images, seen = jnp.array(source.images) / 255, set()
  mine = {name: under.of(found.columns, name) for name in names}
  predicted = jax.jit(lambda params: classes(model.apply(params, images)[0]))
  expected = predicted(params)
  np.testing.assert_array_equal(
    mine['clean, router']['prediction_after'], expected
  )

  def halves(block, tokens, routing):
    equal = jnp.full_like(routing.gates, 0.5)
    gates = equal if block == 'encoderblock_1' else routing.gates
    return tokens, routing._replace(gates=gates)

  apply = jax.jit(
    lambda weights: model.apply(weights, images, intervene=halves)[0]
  )
  for expert in (0, 2):
    weights = jax.tree.map(np.asarray, params)
    moe = weights['Encoder']['encoderblock_1']['Moe']
    # Both choices run the expert, with gates that sum to 1.
    moe['Mlp'] = jax.tree.map(
      lambda a, expert=expert: np.repeat(a[expert : expert + 1], 4, 0),
      moe['Mlp'],
    )
    here = mine[f'clean, encoderblock_1, expert {expert}']['prediction_after']
    np.testing.assert_array_equal(here, classes(apply(weights)))
    seen.add(tuple(here))
  assert len(seen) == 2


@pytest.mark.slow
def test_of_one_choice_the_control_is_the_router_with_uniform_gates(chosen):
  config, _, params, source, _ = chosen
  one = config.copy_and_resolve_references()
  one.model.router.update(dict(selected=1))
  uniform = one.copy_and_resolve_references()
  uniform.model.router.gate = 'uniform'
  mesh = chosen[1].module.mesh
  of = lambda c: build(c.model, (8, 8, 1), mesh)
  images = jnp.array(source.images) / 255
  mask = jnp.ones(IMAGES, bool)
  # Block 1 alone has its gates set, so that the other one must be alike.
  shallow = jax.tree.map(np.asarray, params)
  first = shallow['Encoder']['encoderblock_0']['Moe']['Mlp']['Dense_1']
  for name in first:
    first[name] = np.zeros_like(first[name])
  blocks = ('encoderblock_0', 'encoderblock_1')
  forward = forced_expert.forced(of(one), blocks)

  @jax.jit
  def both(shallow):
    forced = forward(shallow, images, mask, jnp.array([1, -1]))
    return forced[0], of(uniform).apply(shallow, images)[0]

  logits, expected = both(shallow)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_nobody_else_has_a_token():
  gates = jnp.array([[[0.5, 0.3], [0.6, 0.2]]])
  experts = jnp.array([[[0, 2], [1, 0]]])
  zeros = jnp.zeros((1, 2, 3))
  routing = Routing(zeros, experts, gates, {}, jnp.zeros(1), zeros)
  found = forced_expert.alone(routing, jnp.array(2))
  assert found.experts.tolist() == [[[2, 3], [2, 3]]]
  assert found.gates.tolist() == [[[1, 0], [1, 0]]]
  own = forced_expert.alone(routing, jnp.array(-1))
  assert own.experts.tolist() == [[[0, 3], [1, 3]]]


def test_who_beats_the_router():
  router = np.arange(40) < 20
  better, worse, same = np.ones(40, bool), np.zeros(40, bool), router.copy()
  same[0], same[-1] = False, True
  rows = [
    {
      'eps': 0.0,
      'forced': 'forced',
      'condition': name,
      'against_router': paired(right, router),
    }
    for name, right in (('a', same), ('b', better), ('c', worse))
  ]
  found = forced_expert._beating(rows, 0.0)
  assert (found['forced'], found['better'], found['worse']) == (3, 1, 1)
  assert found['best'] == 'b'
  assert found['best_less_router']['value'] == 0.5
  assert found['best_p_of_all'] == pytest.approx(3 * 2 * 0.5**20)


@pytest.mark.parametrize(
  ('model', 'router', 'fields', 'words'),
  [
    (dict(experts=0), {}, {}, 'asks about experts.*is dense'),
    ({}, dict(name='expert_choice'), {}, 'routers top_k, hash.*expert_choice'),
    ({}, dict(name='soft'), {}, "routers top_k, hash.*'soft'"),
    ({}, {}, dict(blocks=(2,)), r'blocks=\(2,\) has 2, .* are 0, 1; use'),
    ({}, {}, dict(experts=(4,)), r'experts=\(4,\) has 4, .* are 0 to 3'),
  ],
)
def test_what_does_not_fit_is_told(
  in_memory, model_of, opened, model, router, fields, words
):
  config = settings(**fields)
  given = model_of(config)
  config.model.update(model)
  config.model.router.update(router)
  with pytest.raises(UserError, match=words):
    forced_expert.run(opened(config, in_memory(IMAGES), *given))


@pytest.mark.parametrize('field', ['blocks', 'experts'])
def test_a_number_twice_is_told(field):
  config = settings()
  config.study.forced_expert[field] = (1, 1)
  with pytest.raises(UserError, match=rf'{field}=\(1, 1\) has a value twice'):
    validate_study(config.study)
