import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.attacks import Luck, complete, distance
from vmoe_robust.attacks.pgd import Pgd

KEYS = jax.random.split(jax.random.key(0), 3)
IMAGES = jnp.full((3, 4, 4, 1), 0.5)


def seen(attack, eps):
  """The points that an attack looks at, and what it returns."""
  points = []
  weights = jax.random.normal(jax.random.key(1), IMAGES.shape)

  def loss(x):
    if not isinstance(x, jax.core.Tracer):  # of no gradient
      points.append(np.asarray(x))
    return (weights * x).sum((1, 2, 3)), jnp.zeros(len(x), bool)

  with jax.disable_jit():
    found = complete(attack, loss, IMAGES, KEYS, jnp.float32(eps))
  values = [(np.asarray(weights) * x).sum((1, 2, 3)) for x in points]
  return np.array(points), np.array(values), np.asarray(found)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('norm', 'eps'), [('linf', 0.1), ('l2', 0.3), ('l1', 0.4)]
)
def test_the_worst_of_points_at_the_whole_radius(norm, eps):
  points, values, found = seen(Luck(norm, 4), eps)
  assert len(points) == 6  # the image, and a point more than there are steps
  np.testing.assert_array_equal(points[0], IMAGES)
  for x in points[1:]:
    far = distance(jnp.asarray(x), IMAGES, norm)
    np.testing.assert_allclose(far, eps, rtol=1e-5)
  assert len({x.tobytes() for x in points}) == 6
  np.testing.assert_array_equal(found, points[values.argmax(0), range(3)])


def test_it_looks_as_often_as_pgd():
  calls = []

  def loss(x):
    jax.debug.callback(lambda: calls.append(1))
    return x.sum((1, 2, 3)), jnp.zeros(len(x), bool)

  for attack in (Pgd('linf', 4), Luck('linf', 4)):
    jax.jit(
      lambda x, attack=attack: complete(attack, loss, x, KEYS, jnp.float32(0.1))
    )(IMAGES)
    jax.effects_barrier()
  assert len(calls) == 2 * 6
