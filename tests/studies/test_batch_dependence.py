import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.evaluate.job import write
from vmoe_robust.robustness.slots import Goal
from vmoe_robust.studies import batch_dependence as study
from vmoe_robust.studies.conditions import of

RADIUS = 3  # of a name that ends as those of the draws do


@pytest.fixture
def config(config):
  config.mode, config.study.name = 'study', 'batch_dependence'
  config.study.batch_dependence.update(dict(draws=2, batch_size=8))
  config.model.update(dict(layers=1))
  config.model.router.update(dict(selected=1, capacity_factor=0.1))
  config.attack.update(dict(norm='l2', eps=(RADIUS,), steps=2))
  return config


def found(config, in_memory, model_of, opened, greedy=True):
  """Predictions by condition; with `greedy` all tokens go to expert 0."""
  model, params = model_of(config)
  moe = params['Encoder']['encoderblock_0']['Moe']
  if greedy:
    router = moe['Router']['dense']
    router['kernel'] = np.zeros_like(router['kernel'])
  moe['Mlp']['Dense_1']['bias'] = (
    9 * np.ones_like(moe['Mlp']['Dense_1']['bias']) * np.arange(16)
  )  # so that an expert decides the class
  job = opened(config, in_memory(16), model, params)
  findings = study.run(job)
  names = dict.fromkeys(findings.columns['condition'])
  return (
    job,
    findings,
    {n: of(findings.columns, n)['prediction_after'] for n in names},
  )


@pytest.mark.slow
def test_with_room_for_one_image_the_first_one_has_it(
  config, in_memory, model_of, opened, check_form
):
  """Four slots of one expert, four tokens an image, two images a group."""
  job, findings, by = found(config, in_memory, model_of, opened)
  write(job, findings)
  results = check_form(job.workdir)
  assert results['asked']['experts'] == 'capacity'
  assert results['summary']['group_images'] == 2
  alone, first = by['dropless'], np.arange(16) % 2 == 0
  for name in ('padding', 'groups of one'):
    np.testing.assert_array_equal(by[name], alone)
  ordered, reverse = by['in order'], by['reversed']
  np.testing.assert_array_equal(ordered[first], alone[first])
  np.testing.assert_array_equal(reverse[~first], alone[~first])
  assert (ordered[~first] != alone[~first]).any()  # its tokens are dropped
  rows = {row['condition']: row for row in results['rows']}
  share = (ordered != reverse).mean()
  assert rows['reversed']['flips']['value'] == pytest.approx(share)
  assert share > 0 and rows['in order']['flips']['value'] == 0
  # The router reads nothing, so that attacked neighbours change nothing.
  for name in ('neighbours attacked', 'neighbours at random'):
    np.testing.assert_array_equal(by[f'{name}, eps {RADIUS}'], ordered)
  attacked = rows[f'neighbours attacked, eps {RADIUS}']
  assert attacked['more_than_luck']['difference']['value'] == 0


@pytest.mark.slow
def test_with_room_for_all_neighbours_decide_nothing(
  config, in_memory, model_of, opened
):
  config.model.router.capacity_factor = 8.0
  _, findings, by = found(config, in_memory, model_of, opened, greedy=False)
  for name, prediction in by.items():
    np.testing.assert_array_equal(prediction, by['dropless'], name)
  assert findings.summary['ever_flipped']['value'] == 0
  shown = [row['condition'] for row in findings.rows]
  assert 'neighbours 1' not in shown and findings.summary['draws'] == 2
  assert f'neighbours attacked, eps {RADIUS}' in shown


def test_padding_is_nobodys_new_neighbour():
  mask = np.array([True, False, True, True, False, True, False, False])
  for seed in range(5):
    draw = np.random.default_rng(seed).permutation(8)
    order = np.asarray(study.drawn_order(jnp.asarray(mask), draw))
    assert mask[order].tolist() == 4 * [True] + 4 * [False]
    assert sorted(order) == list(range(8))
    real = [i for i in np.argsort(draw) if mask[i]]
    assert order[:4].tolist() == real


def test_one_group_has_no_other_neighbours(config, in_memory, model_of, opened):
  config.study.batch_dependence.batch_size = 2
  model, params = model_of(config)
  with pytest.raises(UserError, match='batch_size=2 is not 2 or more .* 4 or'):
    study.run(opened(config, in_memory(8), model, params))


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (dict(group_images=1), 'group_images=1; nothing can change'),
    (dict(group_images=3), 'batch_size=8 is not 2 or more groups.*use 6 or 9'),
    (dict(name='soft'), 'is about routers top_k, expert_choice'),
  ],
)
def test_what_does_not_fit_is_told(
  config, in_memory, model_of, opened, fields, words
):
  model, params = model_of(config)
  config.model.router.update(fields)
  with pytest.raises(UserError, match=words):
    study.run(opened(config, in_memory(8), model, params))


@pytest.mark.parametrize('router', ['top_k', 'expert_choice'])
def test_neighbours_can_want_the_experts_of_the_held_image(
  config, model_of, in_memory, router
):
  """What the attack raises depends on the neighbours, of either router."""
  config.model.router.update(dict(name=router, capacity_factor=0.5))
  model, params = model_of(config)
  kernel = params['Encoder']['encoderblock_0']['Moe']['Router']['dense']
  kernel['kernel'] = 3 * kernel['kernel']
  forward, value = study._of_the_held(model, 2), study._crowding(2, config)
  images = jnp.asarray(in_memory(4).images / 255, jnp.float32)
  held, mask = jnp.array([True, False, True, False]), jnp.ones(4, bool)
  goal = Goal(jnp.zeros(4, int), jnp.zeros(4, int), (images, held, mask))

  @jax.jit
  def raised(x):
    found = value(*forward(params, x, mask, (images, held, mask)), goal)
    return found.sum(), found

  (_, before), gradient = jax.value_and_grad(raised, has_aux=True)(images)
  assert abs(gradient[~held]).max() > 1e-3
  assert not gradient[held].any()
  _, after = raised(jnp.where(held[:, None, None, None], images, 1 - images))
  assert (abs(after - before) > 1e-2).all()
  # Padding wants nothing.
  goal = goal.replace(context=(images, held, held))
  assert not value(*forward(params, images, held, goal.context), goal).any()


@pytest.mark.slow
def test_flips_do_not_depend_on_the_labels(config, in_memory, model_of, opened):
  """An image that is wrong in order may flip to its label, as to any class."""
  by = []
  for label in range(3):
    source = in_memory(16)
    source.labels[:] = label
    memory = lambda _, source=source: source
    _, _, predictions = found(config, memory, model_of, opened, greedy=False)
    by.append(predictions[f'neighbours attacked, eps {RADIUS}'])
  assert (by[0] != predictions['in order']).any()
  for other in by[1:]:
    np.testing.assert_array_equal(other, by[0])


@pytest.mark.parametrize(
  ('fields', 'examples', 'words'),
  [
    (dict(selected=4), 8, 'selected=4 are all experts'),
    ({}, 1, 'has 1 examples, which are not 2 or more groups.*group_images=2'),
  ],
)
def test_what_nothing_can_change_is_refused(
  config, in_memory, model_of, opened, fields, examples, words
):
  config.model.router.update(fields)
  job = opened(config, in_memory(examples), *model_of(config))
  with pytest.raises(UserError, match=words):
    study.run(job)
