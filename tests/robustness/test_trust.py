"""The test of independence sees what it claims, and refuses nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.robustness.problems import QUICK, problem
from vmoe_robust import robust_accuracy
from vmoe_robust.config import UserError
from vmoe_robust.robustness.independence import require_independent
from vmoe_robust.robustness.trust import after, of_radii


def alone(x):
  """Logits of each image on its own, of five classes."""
  rng = np.random.default_rng(0)
  weights = jnp.asarray(rng.normal(size=(x[0].size, 5)), jnp.float32)
  return jnp.tanh(x.reshape(len(x), -1) @ weights)


def contrast(x):
  return x.max((1, 2, 3)) - x.min((1, 2, 3))


def normalised(x):
  x = x.reshape(len(x), -1)
  return alone((x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5))


def masked(x):
  logits = alone(x) + alone(x).mean(0)
  return logits.at[:, 3:].set(-jnp.inf)


def without(logits, low):
  """With a class that is not used."""
  unused = jnp.full((len(logits), 1), low)
  return jnp.concatenate([logits, unused], 1)


DEPENDENT = {
  'the mean': lambda x: alone(x) + alone(x).mean(0),
  'the first image moves all': lambda x: alone(x) + 0.1 * alone(x[:1]),
  'the last image moves all': lambda x: alone(x) + 0.1 * alone(x[-1:]),
  'the mean of even images': lambda x: alone(x) + alone(x[::2]).mean(0),
  'the maximum of contrast': lambda x: alone(x) * contrast(x).max(),
  'symmetric under 1 - x': lambda x: (
    alone(x) * (1 + jnp.square(x - 0.5).mean())
  ),
  'only away from the data': lambda x: (
    alone(x) + jnp.where(contrast(x) > 0.97, 1.0, 0.0).max()
  ),
  'previous to next': lambda x: alone(x) + 0.1 * jnp.roll(alone(x), 1, 0),
  'next to previous': lambda x: alone(x) + 0.1 * jnp.roll(alone(x), -1, 0),
  'batch normalisation': normalised,
  'unused classes are -inf': masked,
  'an unused class is -1e9': lambda x: without(normalised(x), -1e9),
  'an unused class is -1e4': lambda x: without(normalised(x), -1e4),
  'an unused class is the least float': lambda x: without(
    normalised(x), np.finfo(np.float32).min
  ),
  'small logits': lambda x: 1e-6 * (alone(x) + alone(x).mean(0)),
  'the size of the batch': lambda x: alone(x) * len(x),
}
INDEPENDENT = {
  'alone': alone,
  'masked': lambda x: alone(x).at[:, 3:].set(-jnp.inf),
  'an unused class is -1e9': lambda x: without(alone(x), -1e9),
  'logarithms of probabilities': lambda x: jax.nn.log_softmax(1e6 * alone(x)),
  'NaN': lambda x: alone(x) * jnp.nan,
  'NaN of some': lambda x: (
    jnp.where(contrast(x)[:, None] > 0.9, jnp.nan, 1.0) * alone(x)
  ),
  'large': lambda x: 1e20 * alone(x),
  'zero': lambda x: 0 * alone(x),
  'rounding': lambda x: jnp.round(3 * alone(x)),
  # Other kernels for other sizes add in another order.
  'half precision': lambda x: alone(x) * (1 + 0.01 * (len(x) % 3)),
}


def require(fn, count):
  rng = np.random.default_rng(1)
  images = rng.uniform(0.1, 0.9, size=(count, 4, 4, 1)).astype(np.float32)
  ask = lambda x: np.asarray(fn(jnp.asarray(x)))
  require_independent(ask, images, ask(images))


@pytest.mark.parametrize('count', [2, 3, 16])
@pytest.mark.parametrize('name', DEPENDENT)
def test_a_dependence_is_refused(name, count):
  with pytest.raises(UserError, match='change the predictions of others'):
    require(DEPENDENT[name], count)


def test_batch_normalisation_over_one_image_is_refused():
  with pytest.raises(UserError, match='change the predictions of others'):
    require(normalised, 1)


@pytest.mark.parametrize('count', [1, 2, 16])
@pytest.mark.parametrize('name', INDEPENDENT)
def test_what_is_independent_is_not_refused(name, count):
  require(INDEPENDENT[name], count)


run = functools.partial(robust_accuracy, eps=0.05, **QUICK)


def test_a_model_of_nan_is_told_that_it_is_not_finite():
  fn, images, labels = problem()
  for bad in (jnp.nan, jnp.inf):
    found = run(lambda x, bad=bad: fn(x) + bad, images, labels, attack='fgsm')
    assert found.accuracy == found.clean_accuracy == 0
    assert found.per_attack == {'fgsm': 0.0} and not found.robust.any()
    assert (found.prediction == -1).all()
    assert '44 of 44 images have outputs that are not finite' in str(
      found.warnings
    )


def test_a_function_that_is_nan_on_every_x_adv_has_accuracy_0():
  """`argmax` of NaN is class 0, and all labels are 0 here."""
  _, images, _ = problem()
  images = np.round(images * 255).astype(np.uint8)
  zero = np.zeros(len(images), int)

  def fn(x):
    levels = x.reshape(len(x), -1) * 255
    clean = jnp.abs(levels - jnp.round(levels)).max(-1, keepdims=True) < 1e-3
    logits = jnp.stack([levels.mean(-1) + 300, levels[:, 0]], -1)
    return jnp.where(clean, logits, jnp.nan)

  found = run(fn, images, zero, attack=['square', 'fgsm'])
  assert found.clean_accuracy == 1 and found.accuracy == 0
  assert list(found.per_attack.values())[-1] == 0 == found.robust.mean()
  assert 'eps 12.75/255: 44 attacked images have logits that are not' in str(
    found.warnings
  )


@pytest.mark.slow
def test_warnings_follow_the_loss_in_use():
  fn, images, labels = problem()
  # Rounded logits have no gradient, whichever loss is followed.
  flat = lambda x: jnp.round(fn(x))
  for attack in ('fgsm', 'apgd_ce', 'fab'):
    found = run(flat, images, labels, attack=attack)
    count = int(found.robust.sum())
    assert count
    assert f'stand ({attack} on {count}): the acc' in str(found.warnings)
  # The margin moves, but the ratio of differences cannot: two classes tie.
  tied = lambda x: jnp.concatenate([fn(x)[:, :1], 0 * fn(x)[:, :3]], -1)
  found = run(tied, images, labels * 0, attack='apgd_dlr')
  assert found.robust.any() and 'apgd_dlr on' in str(found.warnings)
  # Square follows none.
  assert not run(flat, images, labels, attack='square').warnings


def test_images_without_gradient_are_found_where_they_stand():
  """None of the first batch, all of those that no attack breaks."""
  fn, images, labels = problem()
  images, late = np.array(images), np.arange(len(images)) >= 24
  images[:, 0, 0, 0] = np.where(late, 1.0, 0.0)

  def masked(x):
    logits = fn(x)
    flat = jax.lax.stop_gradient(logits)
    return jnp.where(x[:, :1, 0, 0] > 0.5, flat, logits)

  labels = np.asarray(fn(jnp.asarray(images)).argmax(-1))
  found = run(masked, images, labels, attack='pgd', eps=0.4, batch_size=8)
  count = found.robust.sum()
  assert found.robust[late].sum() == count > 8
  (warning,) = found.warnings
  assert f'images that stand (pgd on {count}): ' in warning
  honest = run(fn, images, labels, attack='pgd', eps=0.01, batch_size=8)
  assert honest.robust.any() and not honest.warnings


@pytest.mark.parametrize('attack', ['fgsm', 'apgd_ce', 'apgd_t', 'fab_t'])
def test_images_whose_gradient_is_lost_on_the_way_are_found(attack):
  """The clean image has a gradient, and what is near it none."""
  fn, images, labels = problem()
  levels = np.round(images * 255).astype(np.float32) / 255

  def masked(x):
    logits = fn(x)
    off = jnp.abs(255 * x - jnp.round(255 * x)).max((1, 2, 3)) > 1e-2
    flat = jax.lax.stop_gradient(logits)
    return jnp.where(off[:, None], flat, logits)

  labels = np.asarray(fn(jnp.asarray(levels)).argmax(-1))
  how = dict(attack=attack, eps=0.02, iterations=10)
  found = run(masked, levels, labels, **how)
  assert found.robust.any()
  if attack == 'fgsm':  # its one gradient is that of the clean image
    assert not found.warnings
  else:
    assert f'({attack} on ' in str(found.warnings)
  honest = run(fn, levels, labels, **how)
  assert honest.robust.any() and not honest.warnings


@pytest.mark.slow
def test_random_models_with_certain_predictions_are_finite():
  """The logarithm of a mean probability that rounds to 0 is not finite."""
  fn, images, labels = problem()

  def random(x, key):
    return 1e4 * fn(x) + jax.random.normal(key, (len(x), 5))

  found = run(random, images, labels, attack='fgsm')
  assert found.clean_accuracy == pytest.approx(40 / 44)
  assert 'not finite' not in str(found.warnings)


def test_neighbours_may_not_count_in_a_random_model_either():
  fn, images, labels = problem()
  mixed = lambda x: fn(x) + fn(x).mean(0)
  run = functools.partial(
    robust_accuracy, images=images, labels=labels, eps=0.05, attack='fgsm'
  )
  noise = lambda key, x: 0.1 * jax.random.normal(key, (len(x), 5))
  # An argument that is not used, and noise that is.
  for model in (
    lambda x, key=None: mixed(x),
    lambda x, key: mixed(x) + noise(key, x),
  ):
    with pytest.raises(UserError, match='change the predictions of others'):
      run(model)
  (warning,) = run(lambda x, key: fn(x) + noise(key, x)).warnings
  assert warning.startswith('outputs are random')
  unused = lambda x, key: without(fn(x) + noise(key, x), -1e9)
  assert 'outputs are random' in str(run(unused).warnings)
  assert run(lambda x, key=None: fn(x)).warnings == []


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_probabilities_are_known_in_any_precision(dtype):
  fn, images, labels = problem()
  model = lambda x: jax.nn.softmax(fn(x).astype(dtype))
  found = robust_accuracy(model, images, labels, eps=0.05, attack='fgsm')
  assert 'outputs look like probabilities' in ' '.join(found.warnings)


def test_a_gradient_that_overflows_is_none():
  fn, images, labels = problem()

  @jax.custom_jvp
  def steep(x):
    return x

  @steep.defjvp
  def _(primals, tangents):
    return primals[0], tangents[0] * jnp.float32(1e38)

  model = lambda x: steep(steep(fn(x)))
  found = robust_accuracy(model, images, labels, eps=0.05, attack='fgsm')
  assert 'attacks had no gradient' in ' '.join(found.warnings)


def test_images_that_are_right_only_under_the_attack_are_told():
  assert after({'pgd': 0.5}, 0, 0, {'pgd': 0}) == []
  (warning,) = after({'pgd': 0.5}, 0, 3, {})
  assert warning.startswith('3 images are right under the attack and wrong')


@pytest.mark.parametrize(
  ('left', 'name'),
  [
    ({'square': 0.9, 'apgd_ce': 0.8, 'square#2': 0.3}, 'square#2'),
    ({'apgd_ce': 0.9, 'square': 0.9, 'square#2': 0.3}, 'square#2'),
    ({'apgd_ce': 0.9, 'square': 0.5, 'square#2': 0.5}, 'square'),
  ],
)
def test_whichever_square_gains_is_told(left, name):
  (warning,) = after(left, 0, 0, {})
  assert warning.startswith(f'{name}, which needs no gradient, took ')


def test_a_square_that_is_the_first_attack_is_not_suspicious():
  assert not after({'square': 0.5, 'apgd_ce': 0.4}, 0, 0, {})


def test_radii_of_linf_in_another_norm_are_told():
  assert of_radii('l2', (0.01, 8 / 255))[0].startswith('radii up to 0.03')
  for norm, radii in (('linf', (0.03,)), ('l2', (0.03, 0.5)), ('l1', (0.0,))):
    assert not of_radii(norm, radii)
