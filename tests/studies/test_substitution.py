import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.models.routers.routing import Routing
from vmoe_robust.models.routers.top_k import gates_of, highest
from vmoe_robust.studies import choices, substitution
from vmoe_robust.studies import conditions as under


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'substitution'
  config.study.substitution.batch_size = 8
  config.attack.update(dict(steps=2, eps=(0.1,)))
  return config


@pytest.mark.slow
def test_identical_experts_can_stand_for_each_other(
  config, in_memory, model_of, opened
):
  model, params = model_of(config)
  for block in ('encoderblock_0', 'encoderblock_1'):
    mlp = params['Encoder'][block]['Moe']['Mlp']
    params['Encoder'][block]['Moe']['Mlp'] = jax.tree.map(
      lambda a: np.broadcast_to(np.asarray(a)[:1], a.shape).copy(), mlp
    )
  found = substitution.run(opened(config, in_memory(11), model, params))
  assert config.model.router.selected == 2
  kinds = {'rank', 'random', 'shuffled', 'uniform', 'dropped'}
  assert {row['kind'] for row in found.rows} == kinds | {'unchanged'}
  predictions = {
    one: under.of(found.columns, one)['prediction_after']
    for one in dict.fromkeys(found.columns['condition'])
  }
  # All but a choice that is dropped leave the sum of the gates as it was.
  for row in found.rows:
    base = predictions[f'{under.radius(config, row["eps"])}, unchanged']
    same = predictions[row['condition']] == base
    both = row['against_unchanged']
    assert same.all() or row['kind'] == 'dropped', row
    if same.all():
      assert (both['only_first'], both['only_second']) == (0, 0)
  dropped = [r['condition'] for r in found.rows if r['kind'] == 'dropped']
  assert len(dropped) == 2 * 3 * 2  # radii, places, choices
  assert any(
    (predictions[name] != predictions[name.split(',')[0] + ', unchanged']).any()
    for name in dropped
  )


def test_a_dense_model_is_told(config, in_memory, model_of, opened):
  config.model.experts = 0
  model, params = model_of(config)
  with pytest.raises(UserError, match='asks about experts.*is dense'):
    substitution.run(opened(config, in_memory(8), model, params))


def test_what_each_change_makes_of_a_decision():
  # One image of two tokens, three experts, two choices.
  probabilities = jnp.array([[[0.5, 0.2, 0.3], [0.1, 0.3, 0.6]]])
  gates, experts = jax.lax.top_k(probabilities, 2)
  nothing = jnp.zeros(1)
  routing = Routing(probabilities, experts, gates, {}, nothing, probabilities)
  keys = jax.random.split(jax.random.key(0), 1)

  def of(kind, number=0, unit='token'):
    options = substitution._options(routing, probabilities, number, keys, unit)
    new, weights = options[substitution._KINDS.index(kind)]()
    return new.tolist()[0], np.asarray(weights)[0]

  assert of('unchanged')[0] == [[0, 2], [2, 1]]
  assert of('rank', 2)[0] == [[2, 2], [1, 1]]
  assert of('rank', 3)[0] == [[1, 2], [0, 1]]
  assert of('dropped', 1)[0] == [[3, 2], [3, 1]]
  assert of('dropped', 2)[0] == [[0, 3], [2, 3]]
  assert sorted(of('shuffled')[0]) == [[0, 2], [2, 1]]
  first = [token[0] for token in of('random')[0]]
  assert first[0] in (1, 2) and first[1] in (0, 1)
  # Where images are routed, both tokens move alike.
  for number in range(8):
    keys = jax.random.split(jax.random.key(number), 1)
    moved = [token[0] for token in of('random', unit='image')[0]]
    steps = [(new - old) % 3 for new, old in zip(moved, (0, 2), strict=True)]
    assert steps in ([1, 1], [2, 2])
  np.testing.assert_allclose(of('rank', 3)[1], gates[0])
  np.testing.assert_allclose(of('uniform')[1], [[0.4, 0.4], [0.45, 0.45]])


def test_tokens_that_are_routed_alike_are_not_shuffled(config):
  kinds = lambda: {c[0] for c in substitution._changes(config.model, ('b',))}
  assert 'shuffled' in kinds()
  config.model.router.unit = 'image'
  assert 'shuffled' not in kinds() and 'random' in kinds()


@pytest.mark.slow
def test_of_two_experts_rank_2_is_the_model_with_experts_exchanged(
  config, in_memory, model_of, opened
):
  config.model.experts, config.model.router.selected = 2, 1
  config.attack.eps = ()
  model, params = model_of(config)
  source = in_memory(32)
  found = substitution.run(opened(config, source, model, params)).columns
  mlp = params['Encoder']['encoderblock_1']['Moe']['Mlp']
  params['Encoder']['encoderblock_1']['Moe']['Mlp'] = jax.tree.map(
    lambda a: np.asarray(a)[::-1].copy(), mlp
  )
  exchanged = substitution.run(opened(config, source, model, params)).columns

  def predicted(columns, name):
    return under.of(columns, f'clean, {name}')['prediction_after']

  before = predicted(found, 'unchanged')
  assert (before != predicted(exchanged, 'unchanged')).any()
  for change in ('rank 2', 'random'):
    np.testing.assert_array_equal(
      predicted(found, f'{change}, encoderblock_1'),
      predicted(exchanged, 'unchanged'),
    )


def test_a_router_that_has_no_ranks_is_told(
  config, in_memory, model_of, opened
):
  config.model.router.name = 'expert_choice'
  model, params = model_of(config)
  with pytest.raises(UserError, match='about routers top_k.*expert_choice'):
    substitution.run(opened(config, in_memory(8), model, params))


@pytest.mark.parametrize(
  ('gate', 'logits', 'bias'),
  [
    ('sigmoid', [17.0, 20.0, 40.0, 18.0], None),  # gates that are equal
    ('softmax', [-150.0, -110.0, 0.0, -120.0], None),  # gates that are 0
    ('sigmoid', [2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.6, 0.0]),  # balanced
  ],
)
def test_rank_r_is_the_routers(config, gate, logits, bias):
  logits, router = jnp.array([[logits]]), config.model.router
  router.update(dict(gate=gate, selected=1))
  probabilities, own = gates_of(logits, gate), {}
  order = logits
  if bias is not None:
    router.balance_rate, own['bias'] = 0.1, jnp.array(bias)
    order = probabilities + own['bias']
  experts = highest(order, 1)
  gates = jnp.take_along_axis(probabilities, experts, -1)
  routing = Routing(logits, experts, gates, {}, jnp.zeros(1), probabilities)
  params = {'Encoder': {'b': {'Moe': {'Router': own}}}}
  scores = choices.scores_of(config, params, 'b', routing)
  keys = jax.random.split(jax.random.key(0), 1)
  ran = [experts[0, 0, 0]]
  for rank in (2, 3, 4):
    options = substitution._options(routing, scores, rank, keys, 'token')
    chosen, _ = options[1]()
    ran.append(chosen[0, 0, 0])
  expected = np.argsort(-np.asarray(order[0, 0]), kind='stable')
  np.testing.assert_array_equal(ran, expected)
