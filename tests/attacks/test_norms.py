import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.attacks import norms

NORMS = ['linf', 'l2', 'l1']


def _length(delta, norm):
  flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
  return np.linalg.norm(flat, {'linf': np.inf, 'l2': 2, 'l1': 1}[norm], axis=1)


def _keys(n):
  return jax.random.split(jax.random.key(3), n)


@pytest.mark.parametrize('norm', NORMS)
def test_distance_is_the_norm(norm):
  rng = np.random.default_rng(0)
  x, y = rng.uniform(size=(2, 5, 6, 7, 3)).astype(np.float32)
  found = norms.distance(jnp.array(y), jnp.array(x), norm)
  np.testing.assert_allclose(found, _length(y - x, norm), rtol=1e-6)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('kind', ['noise', 'faint', 'grey'])
@pytest.mark.parametrize('side', [32, 224])
@pytest.mark.parametrize('eps', [0.0, 0.01, 1.0, 12.0])
def test_projection_stays_inside(norm, kind, side, eps):
  rng = np.random.default_rng(0)
  shape = (4, side, side, 3)
  # Equal pixels round the same way, the worst case for l2; of faint noise all
  # pixels stay moved in l1.
  x = np.full(shape, 0.45) if kind == 'grey' else rng.uniform(size=shape)
  faint = 3 * eps / x[0].size
  delta = rng.normal(size=shape) * (faint if kind == 'faint' else 1)
  delta = np.full(shape, 0.1) if kind == 'grey' else delta
  x, delta = jnp.array(x, jnp.float32), jnp.array(delta, jnp.float32)
  x_adv = norms.project(x + delta, x, jnp.float32(eps), norm)
  moved = np.asarray(x_adv, np.float64) - np.asarray(x, np.float64)
  assert (_length(moved, norm) <= eps + 1e-6).all()
  if norm == 'l1' and eps >= 1:  # nothing but rounding is given away
    assert (_length(moved, norm) >= eps * 0.995).all()
  in_ball, in_range = norms.check(x_adv, x, jnp.float32(eps), norm)
  assert in_ball.all() and in_range.all()


def _exact_l1(delta, x, eps):
  """The nearest point of ball and box by 200 halvings in float64."""
  size, room = np.abs(delta), np.where(delta > 0, 1 - x, x)
  low, high = 0.0, size.max()
  for _ in range(200):
    middle = (low + high) / 2
    above = np.clip(size - middle, 0, room).sum() > eps
    low, high = (middle, high) if above else (low, middle)
  high = 0 if np.clip(size, 0, room).sum() <= eps else high
  return np.sign(delta) * np.clip(size - high, 0, room)


@pytest.mark.slow
def test_l1_projection_is_the_nearest_whatever_its_neighbours_are():
  rng = np.random.default_rng(0)
  # The last image has tails so heavy that it takes many turns.
  scales = np.array([1e-3, 0.1, 1, 30])[:, None, None, None]
  delta = scales * rng.standard_normal((4, 8, 8, 3)) ** 5
  x = np.round(rng.uniform(size=delta.shape) * 255) / 255
  x, x_adv = jnp.float32(x), jnp.float32(x + delta)
  found = np.asarray(norms.project(x_adv, x, jnp.float32(1.5), 'l1'))
  for i in range(len(x)):
    one = slice(i, i + 1)
    alone = norms.project(x_adv[one], x[one], jnp.float32(1.5), 'l1')
    np.testing.assert_allclose(found[one], alone, atol=1e-7)
    clean = np.float64(x[i])
    wanted = clean + _exact_l1(np.float64(x_adv[i]) - clean, clean, 1.5)
    rounding = 2e-7 * np.abs(delta[i]).max()
    np.testing.assert_allclose(found[i], wanted, atol=2e-6 + rounding)


@pytest.mark.parametrize('norm', NORMS)
def test_projection_leaves_points_inside_alone(norm):
  rng = np.random.default_rng(0)
  x = jnp.array(rng.uniform(0.2, 0.8, (3, 4, 4, 3)), jnp.float32)
  near = x + 0.01
  found = norms.project(near, x, jnp.float32(0.5), norm)
  np.testing.assert_allclose(found, near, atol=1e-7)


@pytest.mark.parametrize('norm', NORMS)
def test_check_says_which_image_left(norm):
  x = jnp.full((3, 2, 2, 1), 0.5)
  delta = jnp.zeros_like(x).at[1, 0, 0].set(0.2).at[2, 0, 0].set(0.6)
  in_ball, in_range = norms.check(x + delta, x, jnp.float32(0.1), norm)
  assert in_ball.tolist() == [True, False, False]
  assert in_range.tolist() == [True, True, False]
  in_ball, in_range = norms.check(x * jnp.nan, x, jnp.float32(0.1), norm)
  assert not in_ball.any() and not in_range.any()


@pytest.mark.parametrize('norm', NORMS)
def test_directions_have_length_one_or_zero(norm):
  rng = np.random.default_rng(0)
  gradient = jnp.array(rng.normal(size=(3, 4, 4, 3)), jnp.float32)
  gradient = gradient.at[1].set(0)
  found = norms.direction(norms.unit(gradient, 'l1'), norm)
  np.testing.assert_allclose(_length(found, norm), [1, 0, 1], rtol=1e-6)


@pytest.mark.parametrize('norm', NORMS)
def test_random_points_fill_the_ball_uniformly(norm):
  n, eps, dims = 4000, 0.3, 3
  x = jnp.full((n, 1, 1, dims), 0.5)
  points = norms.random_point(x, _keys(n), jnp.float32(eps), norm)
  delta = np.asarray(points - x)
  assert (_length(delta, norm) <= eps + 1e-6).all()
  # A uniform point lies inside half the radius with probability 2^-dims.
  inside = (_length(delta, norm) < eps / 2).mean()
  np.testing.assert_allclose(inside, 2**-dims, atol=0.02)
  np.testing.assert_allclose(delta.mean((0, 1, 2)), 0, atol=0.01)


@pytest.mark.parametrize('norm', NORMS)
def test_random_points_follow_the_image(norm):
  x = jnp.full((4, 3, 3, 1), 0.5)
  keys, eps = _keys(4), jnp.float32(0.1)
  points = norms.random_point(x, keys, eps, norm)
  assert len(np.unique(np.asarray(points)[:, 0, 0, 0])) == 4
  order = jnp.array([2, 0])
  moved = norms.random_point(x[order], keys[order], eps, norm)
  np.testing.assert_array_equal(moved, points[order])
