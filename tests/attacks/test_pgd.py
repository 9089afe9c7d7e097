import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust import attacks, config


def run(loss, images, eps, seed=0, **values):
  made = config.default().attack
  made.update(random_start=False)
  made.update(values)
  images = jnp.asarray(images, jnp.float32)
  keys = jax.random.split(jax.random.key(seed), len(images))
  attack = jax.jit(attacks.build(made), static_argnums=0)
  return np.asarray(attack(loss, images, keys, jnp.float32(eps)))


def linear(weights):
  def loss(x):
    return (x * weights).sum((1, 2, 3)), jnp.zeros(len(x), bool)

  return loss


@pytest.mark.parametrize('random_start', [False, True])
def test_linf_reaches_the_optimum_of_a_linear_loss(random_start):
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(4, 4, 3)).astype(np.float32)
  images = rng.uniform(size=(3, 4, 4, 3)).astype(np.float32)
  eps = 0.2  # many pixels meet the box
  best = np.clip(images + eps * np.sign(weights), 0, 1)
  found = run(linear(weights), images, eps, random_start=random_start)
  np.testing.assert_allclose(found, best, atol=1e-6)


def test_l2_reaches_the_optimum_of_a_linear_loss():
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(4, 4, 3)).astype(np.float32)
  images = rng.uniform(0.4, 0.6, size=(3, 4, 4, 3)).astype(np.float32)
  best = images + 0.5 * weights / np.linalg.norm(weights)
  found = run(linear(weights), images, 0.5, norm='l2')
  np.testing.assert_allclose(found, best, atol=1e-6)


def test_l2_in_the_box_comes_close_to_the_optimum():
  # The optimum is clip(x + t w) with the t at which its length is eps.
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(4, 4, 3))
  images = rng.uniform(size=(1, 4, 4, 3))
  eps, low, high = 2.0, 0.0, 100.0
  for _ in range(60):
    t = (low + high) / 2
    best = np.clip(images + t * weights, 0, 1)
    low, high = (t, high) if np.linalg.norm(best - images) < eps else (low, t)
  loss = linear(weights.astype(np.float32))
  found = run(loss, images, eps, norm='l2', steps=200, step_size=0.05)
  gain = (weights * (found - images)).sum()
  assert np.linalg.norm(found - images) <= eps + 1e-6
  np.testing.assert_allclose(gain, (weights * (best - images)).sum(), rtol=0.02)


def _mlp(seed=0):
  rng = np.random.default_rng(seed)
  hidden, head = rng.normal(size=(48, 24)) / 3, rng.normal(size=(24, 4))
  images = rng.uniform(size=(6, 4, 4, 3)).astype(np.float32)
  labels = np.argmax(np.tanh(images.reshape(6, -1) @ hidden) @ head, -1)
  return hidden, head, images, labels


def _mlp_loss(hidden, head, labels):
  def loss(x):
    logits = jnp.tanh(x.reshape(len(x), -1) @ hidden) @ head
    values = -jax.nn.log_softmax(logits)[jnp.arange(len(x)), labels]
    return values, logits.argmax(-1) != labels

  hidden, head = jnp.float32(hidden), jnp.float32(head)
  return loss


def _numpy_pgd(hidden, head, image, label, eps, norm, steps, momentum):
  """PGD on one image in float64, by hand, independent of the package."""

  def evaluate(x):
    middle = np.tanh(x @ hidden)
    logits = middle @ head
    shifted = np.exp(logits - logits.max())
    prob = shifted / shifted.sum()
    gradient = ((prob - np.eye(4)[label]) @ head.T * (1 - middle**2)) @ hidden.T
    return (logits.argmax() != label, -np.log(prob[label])), gradient

  clean = image.reshape(-1).astype(np.float64)
  x, velocity = clean, 0.0
  best_score, best = (False, -np.inf), clean
  for step in range(steps + 1):
    score, gradient = evaluate(x)
    if score > best_score:
      best_score, best = score, x
    if step == steps:
      break
    velocity = momentum * velocity + gradient / np.abs(gradient).sum()
    size = 2.5 * eps / steps
    if norm == 'linf':
      delta = np.clip(x + size * np.sign(velocity) - clean, -eps, eps)
    else:
      delta = x + size * velocity / np.linalg.norm(velocity) - clean
      delta *= min(1, eps / np.linalg.norm(delta))
    x = np.clip(clean + delta, 0, 1)
  return best.reshape(image.shape)


@pytest.mark.parametrize('norm, eps', [('linf', 0.06), ('l2', 0.2)])
@pytest.mark.parametrize('momentum', [0.0, 0.75])
def test_agrees_with_pgd_written_in_numpy(norm, eps, momentum):
  hidden, head, images, labels = _mlp()
  loss = _mlp_loss(hidden, head, labels)
  values = dict(norm=norm, steps=10, momentum=momentum)
  found = run(loss, images, eps, **values)
  for x_adv, image, label in zip(found, images, labels, strict=True):
    expected = _numpy_pgd(hidden, head, image, label, eps, **values)
    np.testing.assert_allclose(x_adv, expected, atol=2e-5)
  broken = np.asarray(loss(jnp.asarray(found))[1])
  assert broken.any() and not broken.all()  # the case tells them apart


@pytest.mark.parametrize('norm, eps', [('linf', 0.05), ('l2', 0.3)])
@pytest.mark.parametrize('restarts', [1, 3])
def test_stays_in_ball_and_box_and_never_helps(norm, eps, restarts):
  hidden, head, images, labels = _mlp()
  loss = _mlp_loss(hidden, head, (labels + np.arange(6) % 2) % 4)
  values = dict(norm=norm, steps=3, restarts=restarts, random_start=True)
  found = jnp.asarray(run(loss, images, eps, **values))
  in_ball, in_range = attacks.check(
    found, jnp.asarray(images), jnp.float32(eps), norm
  )
  assert in_ball.all() and in_range.all()
  before, broken_before = loss(jnp.asarray(images))
  after, broken_after = loss(found)
  assert not (broken_before & ~broken_after).any()
  same = broken_before == broken_after
  assert (np.where(same, after - before, 0) >= -1e-6).all()


def test_a_broken_image_beats_a_higher_loss():
  # The loss rises with the pixel; only the middle of the way breaks.
  def loss(x):
    value = x[:, 0, 0, 0]
    return value, (value > 0.55) & (value < 0.65)

  images = np.full((1, 1, 1, 1), 0.5)
  found = run(loss, images, 0.3, steps=6, step_size=0.05)
  np.testing.assert_allclose(found.item(), 0.6, atol=0.051)
  assert loss(found)[1].all()
  free = run(lambda x: (loss(x)[0], x[:, 0, 0, 0] < 0), images, 0.3)
  np.testing.assert_allclose(free.item(), 0.8, atol=1e-6)


def test_the_last_iterate_counts():
  found = run(linear(1.0), np.zeros((1, 2, 2, 1)), 0.1, steps=1)
  np.testing.assert_allclose(found, 0.1, atol=1e-7)


def test_keeps_the_best_iterate_not_the_last():
  # One long step jumps over the top at .5 and falls below the start.
  def loss(x):
    value = x[:, 0, 0, 0]
    return -jnp.abs(value - 0.5), value > 2

  found = run(loss, np.full((1, 1, 1, 1), 0.4), 0.5, steps=1, step_size=0.5)
  np.testing.assert_allclose(found.item(), 0.4)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('random_start', [False, True])
def test_a_flat_or_infinite_loss_yields_no_nan(norm, random_start):
  def loss(x):
    total = x.sum((1, 2, 3))
    cases = jnp.stack([0 * total, jnp.log(0 * total), 1 / (0 * total)])
    return cases[:, 0], jnp.zeros(len(x), bool)

  images = np.full((3, 2, 2, 1), 0.5)
  found = run(loss, images, 0.1, norm=norm, random_start=random_start)
  assert np.isfinite(found).all()


def test_targets_come_through_the_loss():
  hidden, head, images, labels = _mlp()
  target = (labels + 1) % 4
  towards = _mlp_loss(hidden, head, target)

  def loss(x):
    values, missed = towards(x)
    return -values, ~missed

  found = run(loss, images, 0.3, random_start=True)
  before, after = towards(jnp.asarray(images)), towards(jnp.asarray(found))
  assert before[1].all()
  assert not after[1].any()
  assert (after[0] < before[0]).all()


def test_restarts_differ_and_the_worst_is_kept():
  # Waves: where an ascent ends depends on where it starts.
  def loss(x):
    return jnp.sin(60 * x).sum((1, 2, 3)) + x.sum((1, 2, 3)), x[:, 0, 0, 0] > 2

  images = np.full((8, 2, 2, 1), 0.5)
  values = dict(random_start=True, steps=10, step_size=0.005)
  one, five = (run(loss, images, 0.4, restarts=n, **values) for n in (1, 5))
  gain = loss(jnp.asarray(five))[0] - loss(jnp.asarray(one))[0]
  assert (gain >= 0).all() and (gain > 0.01).any()
  again = run(loss, images, 0.4, restarts=5, **values)
  np.testing.assert_array_equal(five, again)
  other = run(loss, images, 0.4, restarts=5, seed=1, **values)
  assert (five != other).any()
