import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.studies.conftest import identical, small_config
from vmoe_robust.config import UserError
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import conditions as under
from vmoe_robust.studies import pruning

IMAGES, TOKENS, EXPERTS = 11, 4, 4


def settings(**fields):
  config = small_config()
  config.mode, config.study.name = 'study', 'pruning'
  config.study.pruning.update(dict(batch_size=8) | fields)
  config.attack.update(dict(steps=2, eps=(0.1,)))
  return config


@pytest.fixture(scope='module')
def alike(in_memory, model_of, opened):
  """Of four experts that are the same one, with a gate of 1."""
  config = settings(draws=2)
  config.model.layers = 1
  config.model.router.update(dict(selected=1, gate='uniform'))
  model, params = model_of(config)
  identical(params)
  return pruning.run(opened(config, in_memory(IMAGES), model, params))


@pytest.mark.slow
def test_identical_experts_can_all_be_removed_but_one(alike):
  assert len(alike.rows) == 2 * (1 + 4 * 3)
  for row in alike.rows:
    both = row['against_unpruned']
    assert (both['only_first'], both['only_second']) == (0, 0), row
    assert row['accuracy']['n'] == IMAGES
  for row in alike.summary['random'].values():
    assert row['lowest'] == row['highest']
    assert row['accuracy']['value'] == pytest.approx(row['lowest'])


@pytest.mark.slow
def test_use_counts_every_token_of_every_image_once(alike):
  assert alike.summary['x_adv_of'] == 'the unpruned model'
  for use in alike.summary['use'].values():
    assert sum(use) == IMAGES * TOKENS and len(use) == EXPERTS


@pytest.fixture(scope='module')
def own(in_memory, model_of, opened):
  """Of two choices a token, pruned to one expert, each attacked itself."""
  config = settings(draws=1, removed=(3,), attack_pruned=True)
  model, params = model_of(config)
  source = in_memory(IMAGES)
  found = pruning.run(opened(config, source, model, params))
  return config, model, params, source, found


@pytest.mark.slow
def test_one_expert_left_is_forced_and_all_are_the_model(own):
  _, model, params, source, found = own
  use = np.array(list(found.summary['use'].values()))
  assert use.sum() == 2 * 2 * IMAGES * TOKENS  # blocks x K x images x tokens
  most, least = use.argmax(1), (EXPERTS - 1) - use[:, ::-1].argmin(1)

  @jax.jit
  def predicted(params, left, forced):
    def force(block, tokens, routing):
      experts = jnp.full_like(routing.experts, EXPERTS)
      experts = experts.at[..., 0].set(left[int(block[-1])])
      experts = jnp.where(forced, experts, routing.experts)
      one = jnp.zeros_like(routing.gates).at[..., 0].set(1)
      gates = jnp.where(forced, one, routing.gates)
      return tokens, routing._replace(experts=experts, gates=gates)

    images = jnp.array(source.images) / 255
    return classes(model.apply(params, images, intervene=force)[0])

  seen = set()
  for name, left, forced in (
    ('all experts', most, False),
    ('3 least used', most, True),
    ('3 most used', least, True),
  ):
    here = under.of(found.columns, f'clean, {name}')['prediction_after']
    np.testing.assert_array_equal(here, predicted(params, left, forced))
    seen.add(tuple(here))
  assert len(seen) == 3


def test_which_experts_go_first():
  use = np.array([[3, 1, 1, 2], [0, 5, 6, 7]])
  of = lambda *one: pruning._kept(use, *one, 0).astype(int).tolist()
  assert of('none', 0, 0) == [[1, 1, 1, 1], [1, 1, 1, 1]]
  assert of('least used', 0, 1) == [[1, 0, 1, 1], [0, 1, 1, 1]]
  assert of('least used', 0, 3) == [[1, 0, 0, 0], [0, 0, 0, 1]]
  assert of('most used', 0, 2) == [[0, 1, 1, 0], [1, 1, 0, 0]]
  two, three = (pruning._kept(use, 'random', 1, n, 0) for n in (2, 3))
  assert (two.sum(1) == 2).all() and (three.sum(1) == 1).all()
  assert (three <= two).all()  # the more are removed, the fewer are left
  draws = [pruning._kept(use, 'random', i, 2, 0) for i in range(1, 9)]
  assert len({draw.tobytes() for draw in draws}) > 1


def test_all_experts_of_equal_use_go_in_their_order():
  use = np.full((1, 3), 5)
  for order in ('least used', 'most used'):
    assert pruning._kept(use, order, 0, 1, 0).tolist() == [[False, True, True]]


@pytest.mark.parametrize(
  ('model', 'router', 'fields', 'words'),
  [
    (dict(experts=0), {}, {}, 'asks about experts.*is dense'),
    ({}, dict(name='expert_choice'), {}, 'routers top_k.*expert_choice'),
    ({}, dict(name='soft'), {}, "routers top_k.*'soft'"),
    ({}, {}, dict(removed=(4,)), r'removed=\(4,\) has 4, .* are 1 to 3'),
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
    pruning.run(opened(config, in_memory(IMAGES), *given))
