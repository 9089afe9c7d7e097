import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.studies.conftest import small_config
from vmoe_robust.config import UserError
from vmoe_robust.evaluate.job import write
from vmoe_robust.models import Record
from vmoe_robust.models.routers.routing import Placement, Routing
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies import crowding, load

IMAGES, BLOCKS = 11, ('encoderblock_0', 'encoderblock_1')


def settings(images=2, **fields):
  config = small_config()
  config.mode, config.study.name = 'study', 'load'
  config.study.load.batch_size = 8
  router = dict(selected=1, capacity_factor=0.1, group_images=images)
  config.model.router.update(router | fields)
  config.attack.update(dict(steps=2, eps=(0.1, 0.3)))
  return config


@pytest.fixture(scope='module')
def greedy(in_memory, model_of, opened):
  """Of a router that ignores its input, so that expert 0 has all tokens."""
  config = settings()
  config.model.layers = 1
  model, params = model_of(config)
  router = params['Encoder']['encoderblock_0']['Moe']['Router']['dense']
  router['kernel'] = np.zeros_like(router['kernel'])
  job = opened(config, in_memory(IMAGES), model, params)
  return job, load.run(job)


@pytest.mark.slow
def test_one_expert_has_all_tokens_whatever_is_attacked(greedy, check_form):
  """Eight choices a group, of which the four slots of expert 0 hold half."""
  job, found = greedy
  assert found.summary['choices_of_a_group'] == 8
  assert found.summary['slots_of_an_expert'] == 4
  assert found.summary['slots_over_choices'] == 2  # of all four experts
  assert len(found.rows) == 5
  for row in found.rows:
    # The last group has one image and padding: room for all of its tokens.
    assert row['groups'] == 5 and row['accuracy']['n'] == IMAGES
    assert row['dropped']['value'] == 0.5
    assert row['more_dropped']['value'] == 0
    block = row['blocks']['encoderblock_0']
    for name in ('max_over_mean', 'split_max_over_mean'):
      assert block[name]['value'] == pytest.approx(4)
      assert block[name]['interval'] is None  # all groups are alike
    for name in ('cv', 'split_cv'):
      assert block[name]['value'] == pytest.approx(math.sqrt(3))
  write(job, found)
  results = check_form(job.workdir)
  assert results['asked']['experts'] == 'capacity'
  assert 'depends on the batch: groups of 2' in load.render(results)


@pytest.mark.slow
def test_only_the_second_image_of_a_group_is_dropped(greedy):
  _, found = greedy
  clean = under.of(found.columns, under.CLEAN)
  kept = clean['index'] % 2 == 0
  np.testing.assert_array_equal(
    clean['prediction_after'][kept], clean['prediction_dropless'][kept]
  )
  whole = clean['whole_group']
  assert whole.tolist() == [True] * 10 + [False]
  lost = clean['encoderblock_0/dropped']
  np.testing.assert_array_equal(lost, np.where(whole, 0.5, 0))


@pytest.fixture(scope='module')
def attacked(in_memory, model_of, opened):
  config = settings(capacity_factor=1.0)
  config.attack.update(dict(steps=3, eps=(0.3,)))
  model, params = model_of(config)
  return load.run(opened(config, in_memory(16), model, params))


@pytest.mark.slow
def test_overflow_is_never_less_than_clean(attacked):
  lost = {
    name: np.mean(
      [under.of(attacked.columns, name)[f'{b}/dropped'] for b in BLOCKS], 0
    )
    for name in ('clean', 'class, eps 76.5/255', 'overflow, eps 76.5/255')
  }
  assert (lost['overflow, eps 76.5/255'] >= lost['clean'] - 1e-6).all()
  clean, by_class, by_overflow = (values.mean() for values in lost.values())
  assert by_overflow > max(clean, by_class)
  row = attacked.rows[-1]
  assert row['dropped']['value'] == pytest.approx(by_overflow)
  assert row['more_dropped']['value'] == pytest.approx(by_overflow - clean)


def record(experts, kept, probabilities):
  experts, probabilities = jnp.array([experts]), jnp.array([probabilities])
  nothing = jnp.zeros(1)
  gates = jnp.zeros(experts.shape)
  routing = Routing(probabilities, experts, gates, {}, nothing, probabilities)
  slot = jnp.zeros(experts.shape, jnp.int32)
  return Record(routing, Placement(slot, jnp.array([kept])), 2)


def test_load_by_hand():
  """Four tokens, three experts, two choices; the last token is padding."""
  some = record(
    [[0, 1], [0, 2], [0, 1], [3, 3]],
    [[True, True], [True, True], [False, False], [False, False]],
    np.zeros((4, 3)),
  )
  share, largest, spread = crowding.load(some)
  assert share[0] == pytest.approx(2 / 6)
  assert largest[0] == pytest.approx(3 / 2)  # 3, 2 and 1
  assert spread[0] == pytest.approx(math.sqrt(2 / 3) / 2)
  padding = record([[3, 3]], [[False, False]], np.zeros((1, 3)))
  assert [float(x[0]) for x in crowding.load(padding)] == [0, 0, 0]


@pytest.mark.slow
def test_overflow_is_counted_and_its_gradient_is_that_of_full_experts():
  """Expert 0 overflows, expert 1 has as many, expert 2 has room."""

  def value(probabilities):
    some = record(
      [[0], [0], [1], [1], [2], [3]],
      [[True], [False], [True], [True], [True], [False]],
      np.zeros((6, 3)),
    )
    routing = some.routing._replace(probabilities=probabilities[None])
    aux = types.SimpleNamespace(records={'a': some.replace(routing=routing)})
    return crowding.overflow(jnp.zeros((2, 5)), aux, None)

  probabilities = jnp.full((6, 3), 0.3)
  found = value(probabilities)
  np.testing.assert_array_equal(found, np.full(2, np.float32(1 / 5)))
  slope = jax.grad(lambda p: value(p)[0])(probabilities)
  expected = np.zeros((6, 3))
  expected[:5, :2] = 1 / 6  # of tokens, and none of the padding
  np.testing.assert_allclose(slope, expected, rtol=1e-6)
  broken = probabilities.at[0, 0].set(jnp.nan)
  np.testing.assert_array_equal(value(broken), found)


def test_balance():
  largest, spread = crowding.balance(np.array([[2.0, 2, 2], [6, 0, 0]]))
  np.testing.assert_allclose(largest, [1, 3])
  np.testing.assert_allclose(spread, [0, math.sqrt(2)])


@pytest.mark.parametrize(
  ('experts', 'fields', 'examples', 'words'),
  [
    (0, {}, 8, 'asks about experts.*is dense'),
    (4, dict(name='expert_choice'), 8, 'routers top_k, hash.*expert_choice'),
    (4, dict(name='soft'), 8, "routers top_k, hash.*'soft'"),
    (
      4,
      dict(images=3),
      8,
      r'load\.batch_size=8 is not 1 or more groups.* 6 or 9',
    ),
    (4, {}, 1, 'has 1 examples, which are not 1 or more .*group_images=2'),
  ],
)
def test_what_does_not_fit_is_told(
  in_memory, model_of, opened, experts, fields, examples, words
):
  config = settings(**fields)
  given = model_of(settings())
  config.model.experts = experts
  with pytest.raises(UserError, match=words):
    load.run(opened(config, in_memory(examples), *given))
