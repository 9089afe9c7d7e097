"""Objectives and their attacks on linear models, whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.slow import all_slow_but
from vmoe_robust import config as config_lib
from vmoe_robust.models import Aux
from vmoe_robust.models.divergence import divergence
from vmoe_robust.train import objective
from vmoe_robust.train.objective import OBJECTIVES, Given

EPS = 0.05
IMAGES = 6


def settings(name, **fields):
  found = config_lib.default().train.objective
  found.update(dict(name=name, eps=EPS) | fields)
  return found


def given(classes=3, low=0.3, high=0.7, label=None, eps=EPS, **fields):
  """Images which a ball of EPS keeps inside the box, unless said otherwise."""
  rng = np.random.default_rng(0)
  images = rng.uniform(low, high, (IMAGES, 4, 4, 1))
  drawn = rng.integers(0, classes, IMAGES)
  wanted = jax.nn.one_hot(drawn if label is None else label, classes)
  found = Given(
    images=jnp.asarray(images, jnp.float32),
    wanted=wanted,
    mask=jnp.ones(IMAGES, bool),
    index=jnp.arange(IMAGES),
    keys=jax.random.split(jax.random.key(0), IMAGES),
    eps=jnp.float32(eps),
    kind='softmax',
    one_class=True,
  )
  return found.replace(**fields)


def linear(w, bias=0.0):
  """The classifier whose logits are `pixels @ w + bias`."""
  w, bias = jnp.asarray(w, jnp.float32), jnp.asarray(bias, jnp.float32)
  aux = Aux(jnp.zeros(()), {})
  return lambda x: (x.reshape(len(x), -1) @ w + bias, aux)


def weights(classes, scale=1.0):
  return scale * np.random.default_rng(7).normal(size=(16, classes))


def pixels(images):
  return np.asarray(images, np.float64).reshape(IMAGES, -1)


def labels(batch):
  return np.asarray(batch.wanted.argmax(-1))


def distance(x_adv, batch):
  return np.abs(np.asarray(x_adv - batch.images)).max((1, 2, 3))


# By how much a ball of radius 1 moves the margin at most.
DUAL = {
  'linf': lambda w: np.abs(w).sum(),
  'l2': np.linalg.norm,
  'l1': lambda w: np.abs(w).max(),
}


@pytest.mark.parametrize('scale', [1.0, 100.0])  # where cross-entropy rounds
@pytest.mark.parametrize('norm', DUAL)
def test_pgd_finds_the_worst_loss_of_a_linear_model(norm, scale):
  w = weights(2, scale)
  batch = given(classes=2)
  # Steps of half a radius turn to the worst point soon.
  how = settings('pgd', norm=norm, steps=50, step_size=EPS / 2)
  x_adv = OBJECTIVES['pgd'].attack(linear(w), batch, how)
  found = OBJECTIVES['pgd'].loss(linear(w), batch, x_adv, how)
  ahead = (w[:, labels(batch)] - w[:, 1 - labels(batch)]).T
  worst = (pixels(batch.images) * ahead).sum(1)
  worst -= EPS * np.array([DUAL[norm](one) for one in ahead])
  margin = (pixels(x_adv) * ahead).sum(1)
  np.testing.assert_allclose(margin, worst, rtol=0, atol=1e-4 * scale)
  loss = np.logaddexp(0, -worst)
  np.testing.assert_allclose(found.loss, loss, rtol=1e-4, atol=1e-4)
  assert found.clean is None and found.adversarial.shape == (IMAGES, 2)


def test_pgd_raises_the_loss_that_is_trained():
  """The sigmoid's loss falls where both logits rise and both are very low."""
  w = np.stack([np.ones(16), 2 * np.ones(16)], 1)
  answers = linear(w, bias=-100.0)
  batch = given(classes=2, label=np.zeros(IMAGES, int), kind='sigmoid')
  batch = batch.replace(one_class=False)
  how = settings('pgd', steps=20)
  x_adv = OBJECTIVES['pgd'].attack(answers, batch, how)
  np.testing.assert_allclose(x_adv, batch.images - EPS, atol=1e-6)
  # The softmax's rises there.
  batch = batch.replace(kind='softmax', one_class=True)
  x_adv = OBJECTIVES['pgd'].attack(answers, batch, how)
  np.testing.assert_allclose(x_adv, batch.images + EPS, atol=1e-6)


def uniform(batch, radius):
  draw = lambda key: jax.random.uniform(key, (4, 4, 1), minval=-1)
  return radius * np.asarray(jax.vmap(draw)(batch.keys))


def ascent(w, batch):
  """The sign of the gradient, the same everywhere for two classes."""
  ahead = w[:, labels(batch)] - w[:, 1 - labels(batch)]
  return -np.sign(ahead).T.reshape(IMAGES, 4, 4, 1)


@pytest.mark.slow
def test_fast_is_one_projected_step():
  """x + U(-eps, eps) + 1.25 eps sign, back into the ball (2001.03994)."""
  w, batch = weights(2), given(classes=2)
  found = OBJECTIVES['fast'].attack(linear(w), batch, settings('fast'))
  moved = uniform(batch, EPS) + 1.25 * EPS * ascent(w, batch)
  moved = np.clip(moved, -EPS, EPS)
  np.testing.assert_allclose(found, batch.images + moved, atol=1e-6)


def test_nfgsm_is_not_projected():
  """x + U(-2 eps, 2 eps) + eps sign, in the box alone (2202.01181)."""
  w, batch = weights(2), given(classes=2)
  found = OBJECTIVES['nfgsm'].attack(linear(w), batch, settings('nfgsm'))
  moved = uniform(batch, 2 * EPS) + EPS * ascent(w, batch)
  np.testing.assert_allclose(found, batch.images + moved, atol=1e-6)
  assert (distance(found, batch) > 2 * EPS).all()
  edge = given(classes=2, low=0.0, high=1.0)
  found = OBJECTIVES['nfgsm'].attack(linear(w), edge, settings('nfgsm'))
  assert found.min() == 0 and found.max() == 1


@pytest.mark.parametrize('name', ['fast', 'nfgsm'])
def test_a_step_that_is_given_rises_with_the_radius(name):
  """At a tenth of the radius, a tenth of the noise and of the step."""
  w, how = weights(2), settings(name, step_size=0.03)
  batch = given(classes=2, eps=EPS / 10)
  found = OBJECTIVES[name].attack(linear(w), batch, how)
  noise = uniform(batch, (1 if name == 'fast' else 2) * EPS / 10)
  moved = noise + 0.003 * ascent(w, batch)
  if name == 'fast':
    moved = np.clip(moved, -EPS / 10, EPS / 10)
  np.testing.assert_allclose(found, batch.images + moved, atol=1e-6)


def probabilities(w, images):
  return special.softmax(pixels(images) @ w, axis=1)


@pytest.mark.parametrize('norm', DUAL)
def test_trades_loss_is_that_of_its_paper(norm):
  w, batch = weights(3), given()
  how = settings('trades', norm=norm, beta=3.0, steps=5)
  x_adv = OBJECTIVES['trades'].attack(linear(w), batch, how)
  found = OBJECTIVES['trades'].loss(linear(w), batch, x_adv, how)
  clean, after = probabilities(w, batch.images), probabilities(w, x_adv)
  kl = special.rel_entr(clean, after).sum(1)
  expected = -np.log(clean[np.arange(IMAGES), labels(batch)]) + 3 * kl
  np.testing.assert_allclose(found.loss, expected, rtol=1e-4)
  assert (kl > 0).all()


def test_trades_raises_the_divergence_and_not_the_loss():
  """Of two classes it is largest at a corner, whatever the label says."""
  w = weights(2)
  batch, how = given(classes=2), settings('trades', steps=20)
  x_adv = OBJECTIVES['trades'].attack(linear(w), batch, how)
  other = batch.replace(wanted=1 - batch.wanted)
  again = OBJECTIVES['trades'].attack(linear(w), other, how)
  np.testing.assert_array_equal(x_adv, again)
  slope = EPS * np.sign(w[:, 0] - w[:, 1]).reshape(1, 4, 4, 1)
  offset = np.asarray(x_adv - batch.images)
  for one in offset:
    side = np.sign((one * slope).sum())
    np.testing.assert_allclose(one, side * slope[0], atol=1e-6)


def test_mart_loss_is_that_of_its_authors_code():
  w, batch = weights(3), given()
  how = settings('mart', beta=5.0, steps=5)
  x_adv = OBJECTIVES['mart'].attack(linear(w), batch, how)
  found = OBJECTIVES['mart'].loss(linear(w), batch, x_adv, how)
  expected = []
  clean, after = probabilities(w, batch.images), probabilities(w, x_adv)
  for p, q, y in zip(clean, after, labels(batch), strict=True):
    best = np.argsort(q)
    rival = best[-2] if best[-1] == y else best[-1]
    boosted = -np.log(q[y]) - np.log(1.0001 - q[rival] + 1e-12)
    kl = (p * (np.log(p) - np.log(q + 1e-12))).sum()
    expected.append(boosted + 5 * kl * (1.0000001 - p[y]))
  np.testing.assert_allclose(found.loss, expected, rtol=1e-4)


def test_divergence_is_that_of_scipy():
  a, b = np.random.default_rng(0).normal(size=(2, 5, 4))
  p, q = special.softmax(a, axis=1), special.softmax(b, axis=1)
  found = divergence(jnp.float32(a), jnp.float32(b))
  np.testing.assert_allclose(found, special.rel_entr(p, q).sum(1), rtol=1e-5)
  assert not divergence(jnp.float32(a), jnp.float32(a)).any()


@pytest.mark.parametrize('name', [n for n in OBJECTIVES if n != 'natural'])
@pytest.mark.parametrize('norm', all_slow_but(['linf'], DUAL))
def test_every_attack_stays_in_the_box_and_the_ball(name, norm):
  batch, how = given(low=0.0, high=1.0), settings(name, norm=norm)
  x_adv = OBJECTIVES[name].attack(linear(weights(3)), batch, how)
  assert x_adv.min() >= 0 and x_adv.max() <= 1
  offset = pixels(x_adv) - pixels(batch.images)
  order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
  size = np.linalg.norm(offset, order, axis=1)
  assert (size > 0.1 * EPS).all()
  assert (size <= (3 if name == 'nfgsm' else 1) * EPS + 1e-6).all()


def test_the_radius_rises_over_a_share_of_the_steps():
  how = settings('pgd', ramp=0.25)
  found = [float(objective.eps_at(how, jnp.int32(i), 40)) for i in range(12)]
  expected = [np.float32(EPS) * min((i + 1) / 10, 1) for i in range(12)]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  at_once = objective.eps_at(settings('pgd'), jnp.int32(0), 40)
  assert at_once == np.float32(EPS)
