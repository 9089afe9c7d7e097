"""What an attack claims to have broken, and the judge does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust import robust_accuracy


def threshold(at):
  """Wrong where the first pixel is beyond `at`."""
  return lambda x: 10 * jnp.stack([at - x[:, 0, 0, 0], x[:, 0, 0, 0] - at], 1)


@pytest.mark.parametrize(('norm', 'eps'), [('Linf', 0.06), ('L2', 0.1)])
@pytest.mark.parametrize('attack', ['fab', 'fab_t'])
def test_fab_through_a_twin_goes_on_to_the_judge_s_boundary(attack, norm, eps):
  """The nearest point beyond the twin's boundary is right for the judge."""
  images, labels = np.full((8, 2, 2, 1), 0.5, np.float32), np.zeros(8, int)
  ask = functools.partial(
    robust_accuracy, threshold(0.54), images, labels,
    attack_through=threshold(0.52), norm=norm, attack=attack, iterations=9,
    progress=False,
  )  # fmt: skip
  assert ask(eps=eps).accuracy == 0
  # No point of the ball is beyond the judge's boundary.
  near = ask(eps=0.03)
  assert near.accuracy == 1
  assert norms_within(near.x_adv - images, norm, 0.03)


def norms_within(delta, norm, eps):
  flat = delta.reshape(len(delta), -1)
  order = {'Linf': np.inf, 'L2': 2}[norm]
  return (np.linalg.norm(flat, order, axis=1) <= eps + 1e-6).all()


@pytest.mark.parametrize('noise', [0.0, 0.1])
def test_square_goes_beyond_the_boundary_of_a_twin(noise):
  """To 0.6 of what the ball allows; the twin's boundary is at 0.1.

  With noise there is no twin: single draws of a random model are as far off.
  """
  images, labels = np.full((8, 8, 8, 1), 0.5, np.float32), np.zeros(8, int)
  weights = np.random.default_rng(0).normal(size=(8, 8, 1)).astype(np.float32)
  most = 0.05 * np.abs(weights).sum()

  def beyond(share, x, key=None):
    margin = ((x - 0.5) * weights).sum((1, 2, 3)) - share * most
    if key is not None:
      margin += noise * jax.random.normal(key, margin.shape)
    return jnp.stack([-margin, margin], 1)

  judge, twin = (functools.partial(beyond, share) for share in (0.6, 0.1))
  if noise:
    judge, twin = lambda x, key: beyond(0.6, x, key), None
  found = robust_accuracy(
    judge, images, labels, attack='square', eps=0.05, queries=1000,
    attack_through=twin, progress=False,
  )  # fmt: skip
  assert found.accuracy == 0


def test_of_a_random_model_the_judge_s_denial_ends_no_attack():
  """The mean margin is 0 at each image, and far below it after one step.

  Half of all draws take an image for wrong before it is moved: neither such a
  claim, nor other draws on an image that was wrong, make one robust.
  """
  images, labels = np.full((120, 2, 2, 1), 0.5, np.float32), np.zeros(120, int)

  def coin(x, key):
    logits = 10 * jnp.stack([x[:, 0, 0, 0] - 0.5, 0 * x[:, 0, 0, 0]], 1)
    return logits + 0.3 * jax.random.normal(key, logits.shape)

  found = robust_accuracy(
    coin, images, labels, attack='fgsm', eps=0.1, batch_size=64, progress=False
  )
  assert 0.3 < found.clean_accuracy < 0.7
  assert found.accuracy == 0
  assert not any('wrong without' in text for text in found.warnings)


def test_the_image_itself_keeps_its_verdict():
  """Of eps 0 nothing is attacked better than by nothing."""
  images, labels = np.full((40, 2, 2, 1), 0.5, np.float32), np.zeros(40, int)

  def coin(x, key):
    logits = jnp.stack([0.1 + 0 * x[:, 0, 0, 0], 0 * x[:, 0, 0, 0]], 1)
    return logits + 1e-3 * jax.random.normal(key, logits.shape)

  wrong = labels + (np.arange(40) % 4 == 0)
  found = robust_accuracy(
    coin, images, wrong, attack='fgsm', eps=0.1, batch_size=16, progress=False
  )
  assert found.accuracy == found.clean_accuracy == 0.75
