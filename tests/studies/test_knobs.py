import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.studies.conftest import small_config
from vmoe_robust.config import UserError
from vmoe_robust.config.studies import validate_study
from vmoe_robust.models import build
from vmoe_robust.models.routers.routing import Routing
from vmoe_robust.report.table import radius
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import choices, knobs
from vmoe_robust.studies import conditions as under

IMAGES, EXPERTS = 11, 4


def settings(**fields):
  config = small_config()
  config.mode, config.study.name = 'study', 'knobs'
  config.model.layers, config.model.router.group_images = 1, 8
  config.study.knobs.update(
    dict(batch_size=8, attack_draws=2, verdict_draws=3)
    | dict(selected=(2, 4), kept=(1, 4), noise=(0.0,))
    | dict(capacity=(0.25, 8.0))
    | fields
  )
  config.attack.update(dict(steps=2, eps=(0.1,)))
  return config


@pytest.fixture(scope='module')
def turned(in_memory, model_of, opened):
  config = settings()
  model, params = model_of(config)
  source = in_memory(IMAGES)
  return config, model, params, source, opened


@pytest.fixture(scope='module')
def found(turned):
  config, model, params, source, opened = turned
  return knobs.run(opened(config, source, model, params))


def of(found, name, eps):
  at = f'eps {radius("linf", eps)}' if eps else under.CLEAN
  return under.of(found.columns, f'{name}, {at}')['prediction_after']


@pytest.mark.slow
def test_positions_that_the_model_has_are_not_run_again(found):
  names = [row['condition'].split(',')[0] for row in found.rows[::2]]
  assert names == [
    'as trained',
    'selected 4',
    'kept 1',
    'noise 0',
    'capacity 0.25',
    'capacity 8',
  ]
  for row in found.rows:
    assert row['accuracy']['n'] == IMAGES
    assert row['is_batch_dependent'] == (row['knob'] == 'capacity')
    expected = 'as trained' if row['knob'] == 'capacity' else 'itself'
    assert row['x_adv_of'] == expected


@pytest.mark.slow
def test_noise_of_nothing_and_room_for_all_change_nothing(found):
  for eps in (0, 0.1):
    trained = of(found, 'as trained', eps)
    for name in ('noise 0', 'capacity 8'):
      np.testing.assert_array_equal(of(found, name, eps), trained, name)
  for row in found.rows:  # nothing is random here
    share = row['one_draw']['value']
    assert share == pytest.approx(row['accuracy']['value'])


@pytest.mark.slow
def test_each_position_is_the_model_that_is_built_so(turned, found):
  config, model, params, source, _ = turned
  all_four = config.model.copy_and_resolve_references()
  all_four.router.selected = EXPERTS
  wide = build(all_four, (8, 8, 1), model.module.mesh)
  little = config.model.copy_and_resolve_references()
  little.router.capacity_factor = 0.25
  narrow = build(little, (8, 8, 1), model.module.mesh)
  images = jnp.array(source.images) / 255

  @jax.jit
  def predicted(params):
    logits, aux = model.apply(params, images)
    (record,) = aux.records.values()
    count = jnp.bincount(record.routing.experts.reshape(-1), length=EXPERTS)
    most = count.argmax()

    def force(block, tokens, routing):
      experts = jnp.full_like(routing.experts, EXPERTS)
      gates = jnp.zeros_like(routing.gates).at[..., 0].set(1)
      return tokens, routing._replace(
        experts=experts.at[..., 0].set(most), gates=gates
      )

    forced, _ = model.apply(params, images, intervene=force)
    every, _ = wide.apply(params, images)
    # Of the first batch: the images of a batch share what room there is.
    crowded, _ = narrow.apply(params, images[:8], experts='capacity')
    return [classes(x) for x in (logits, every, forced, crowded)]

  names = ('as trained', 'selected 4', 'kept 1', 'capacity 0.25')
  seen = {name: of(found, name, 0) for name in names}
  for name, expected in zip(names, predicted(params), strict=True):
    np.testing.assert_array_equal(seen[name][: len(expected)], expected, name)
  assert len({tuple(one) for one in seen.values()}) == 4


def of_router(**fields):
  config = settings().model
  config.router.update(dict(noise_std=2.0) | fields)
  logits = jnp.zeros((2, 3, EXPERTS))
  experts = jnp.zeros((2, 3, 1), jnp.int32)
  routing = Routing(logits, experts, logits, {}, jnp.zeros(2), logits)
  return routing, config.router


def test_noise_follows_the_image_and_is_as_large_as_it_says():
  routing, router = of_router()
  key, scale = jax.random.key(0), jnp.float32(3.0)

  def drawn(index, place=0):
    (keys,) = choices.keys_of(key, 1, jnp.array(index))
    noise = choices.Noise(scale, keys)
    return np.asarray(choices.noise_of(noise, place, routing, router))

  one, other = drawn([5, 7]), drawn([7, 9])
  np.testing.assert_array_equal(one[1], other[0])
  assert (one[0] != other[0]).all() and (one[0] != drawn([5, 7], 1)[0]).all()
  many = np.stack([drawn([2 * i, 2 * i + 1]) for i in range(100)])
  # 3 times 2 / 4, of 2,400 numbers
  assert many.std() == pytest.approx(1.5, rel=0.06)
  assert abs(many.mean()) < 0.1
  routing, router = of_router(unit='image')
  image = drawn([5, 7])
  assert (image == image[:, :1]).all() and (image[0] != image[1]).all()


def test_draws_differ():
  keys = choices.keys_of(jax.random.key(0), 3, jnp.array([4, 4]))
  data = np.asarray(jax.random.key_data(keys))
  np.testing.assert_array_equal(data[:, 0], data[:, 1])
  assert len({tuple(one) for one in data[:, 0]}) == 3


def test_noise_is_judged_by_mean_probabilities():
  draws = jnp.log(jnp.array([[[0.9, 0.1]], [[0.4, 0.6]], [[0.4, 0.6]]]))
  mean = choices.mean_of(draws)
  np.testing.assert_allclose(np.exp(mean), [[1.7 / 3, 1.3 / 3]], rtol=1e-5)
  broken = draws.at[1].set(jnp.nan)
  assert classes(choices.mean_of(broken)).tolist() == [-1]


@pytest.mark.parametrize(
  ('group', 'fields', 'words'),
  [
    ('model', dict(experts=0), 'asks about experts.*is dense'),
    ('router', dict(name='hash'), "routers top_k.*'hash'"),
    ('router', dict(noise_std=0.0), r'noise=\(0\.0,\) .*noise_std=0, of which'),
    (
      'router',
      dict(group_images=3),
      r'knobs\.batch_size=8 is not 1 or more groups',
    ),
    ('train', dict(loss='sigmoid'), "train.loss='sigmoid', for its verdict"),
    ('knobs', dict(selected=(5,)), r'selected=\(5,\) has 5, and K are 1 to 4'),
    ('knobs', dict(kept=(0,)), r'kept=\(0,\) has 0, .* are 1 to 4'),
    (
      'knobs',
      dict(selected=(2,), kept=(4,), noise=(), capacity=()),
      'turns nothing, for the model has K=2 and 4 experts',
    ),
  ],
)
def test_what_does_not_fit_is_told(turned, group, fields, words):
  _, model, params, source, opened = turned
  config = settings()
  place = {
    'router': config.model.router,
    'knobs': config.study.knobs,
  }.get(group) or config[group]
  place.update(fields)
  with pytest.raises(UserError, match=words):
    knobs.run(opened(config, source, model, params))


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (dict(noise=(-1.0,)), r'noise=-1\.0 must be between 0'),
    (dict(noise=(float('inf'),)), r'noise=inf must be between 0'),
    (dict(capacity=(0.0,)), r'capacity=0\.0 must be between'),
    (dict(selected=(1, 1)), 'selected.* has a value twice'),
    (dict(attack_draws=0), 'attack_draws=0 must be 1 or more'),
  ],
)
def test_values_that_make_no_sense_are_told(fields, words):
  with pytest.raises(UserError, match=words):
    validate_study(settings(**fields).study)
