"""Every attack on linear models, whose exact answers are known."""

import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests.attacks.linear import Linear
from tests.slow import all_slow_but
from vmoe_robust.attacks import Budget, check, ensemble, square
from vmoe_robust.attacks.apgd import Apgd
from vmoe_robust.attacks.pgd import Pgd

EPS = {'linf': 0.2, 'l2': 0.6, 'l1': 1.2}
# The least share of the largest gain that an attack of so few steps reaches.
# FGSM in L1 moves one of 48 pixels.
REACHED = {
  'fgsm': dict(linf=0.9999, l2=0.9, l1=0.05),
  'mim': dict(linf=0.9999, l2=0.99, l1=0.999),
  'pgd': dict(linf=0.9999, l2=0.96, l1=0.88),
  'apgd_ce': dict(linf=0.9999, l2=0.99, l1=0.999),
  'apgd_dlr': dict(linf=0.9999, l2=0.99, l1=0.999),
  'apgd_t': dict(linf=0.9999, l2=0.99, l1=0.999),
  'square': dict(linf=0.5, l2=0.2, l1=0.4),
}
CASES = [(name, norm) for name in REACHED for norm in REACHED[name]]
SMALL = [(1, 1, 1), (1, 1, 3), (2, 3, 1), (3, 3, 3), (4, 4, 1), (9, 2, 1)]
# Of float32's smallest normal number 1e-38: logits whose gradients are 1e-25.
FAINT = 1e-25


def stage(name, norm, **budget):
  made = ensemble(name, norm, 2, Budget(restarts=1, **budget))
  return made.stages[0]


def in_bounds(model, x_adv):
  inside = check(
    *map(jnp.asarray, (x_adv, model.images)), jnp.float32(model.eps), model.norm
  )
  return all(one.all() for one in inside)


@pytest.mark.parametrize('name, norm', CASES)
def test_comes_near_the_exact_worst_case(name, norm):
  model = Linear((4, 4, 3), norm, EPS[norm], shares=(0.2, 1.2))
  one = stage(name, norm, iterations=50, queries=400)
  x_adv = model.attacked(one.attack, one.loss)
  assert in_bounds(model, x_adv)
  assert not model.fallen(x_adv)[~model.fall].any()
  gained = model.gained(x_adv)
  assert (gained <= 1 + 1e-5).all()
  # An image that fell is kept as it fell.
  assert (gained[~model.fall] >= REACHED[name][norm]).all()


@pytest.mark.parametrize('name', ['fab', 'fab_t'])
@pytest.mark.parametrize('norm', EPS)
@pytest.mark.parametrize('scale', [1.0, FAINT])
def test_fab_finds_the_nearest_point(name, norm, scale):
  model = Linear((4, 4, 3), norm, EPS[norm], shares=(0.7, 1.2), scale=scale)
  one = stage(name, norm, iterations=20)
  x_adv = model.attacked(one.attack, one.loss)
  np.testing.assert_array_equal(model.fallen(x_adv), model.fall)


@pytest.mark.parametrize('shape', all_slow_but(SMALL[::2], SMALL))
@pytest.mark.parametrize('norm', EPS)
def test_square_on_images_smaller_than_its_windows(shape, norm):
  eps = 0.1
  model = Linear(shape, norm, eps, shares=(0.05, 1.2))
  one = stage('square', norm, queries=300)
  x_adv = model.attacked(one.attack, one.loss)
  assert np.isfinite(x_adv).all() and in_bounds(model, x_adv)
  fallen = model.fallen(x_adv)
  assert not fallen[~model.fall].any()
  gained = model.gained(x_adv)
  least = 0.9 if norm == 'linf' and max(shape) < 5 else 0.3
  if norm == 'l1':  # all three channels move alike
    least = 0.15
  assert (gained[~model.fall] > least).all()


def test_square_in_l1_has_the_authors_pattern():
  """By hand: hills of 1 and 1 / 16, each of length 1, then both together."""
  hill = np.array([[1, 17, 1]]) / 19
  valley = np.array([[1, 1, 1], [1, 17, 1]]) / 22
  expected = np.concatenate([hill, -valley]) / 2
  np.testing.assert_allclose(square.pattern(3, 'l1'), expected, rtol=1e-12)
  assert square.pattern(1, 'l1') == -1


@pytest.mark.parametrize('name', ['pgd', 'mim'])
def test_l1_steps_move_pixels_that_are_free(name):
  # Half of the pixels are where the gradient would push them.
  model = Linear((8, 8, 3), 'l1', 6.0, binary=True, shares=(0.8, 1.15))
  one = stage(name, 'l1', iterations=200)
  x_adv = model.attacked(one.attack, one.loss)
  gained = model.gained(x_adv)
  assert in_bounds(model, x_adv)
  assert (gained[~model.fall] > {'pgd': 0.92, 'mim': 0.999}[name]).all()
  assert model.fallen(x_adv)[model.leads < 0.9 * model.gains].all()


def test_fgsm_in_l1_steps_along_a_pixel_that_is_free():
  model = Linear((4, 4, 3), 'l1', 0.5, binary=True, shares=(1.1, 1.5))
  x_adv = model.attacked(Pgd('l1', 1, 0.5, False), 'margin')
  np.testing.assert_allclose(model.gained(x_adv), 1, rtol=1e-4)


@pytest.mark.parametrize('norm', EPS)
@pytest.mark.parametrize(
  'name',
  all_slow_but(['pgd', 'apgd_ce'], ['pgd', 'mim', 'apgd_ce', 'apgd_dlr']),
)
@pytest.mark.parametrize('scale', [1e4, FAINT, 1e22])
def test_the_scale_of_logits_hides_nothing(norm, name, scale):
  model = Linear((4, 4, 3), norm, EPS[norm], scale=scale, shares=(0.3, 0.85))
  one = stage(name, norm, iterations=50)
  assert model.fallen(model.attacked(one.attack, one.loss)).all()


def test_apgd_in_l2_follows_gradients_whose_squares_underflow():
  # Leads of some 50, so that gradients of cross-entropy are 1e-22.
  model = Linear((4, 4, 3), 'l2', EPS['l2'], shares=(0.7, 0.9))
  model.scale = 50 / model.leads.max()
  x_adv = model.attacked(Apgd('l2', 30), 'cross_entropy')
  assert model.fallen(x_adv).all()


# Tracing is enough to see a type that changes in a loop.
PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from tests.attacks.linear import Linear
from tests.attacks.test_linear import EPS, stage
names = ('fgsm', 'mim', 'pgd', 'apgd_ce', 'apgd_dlr', 'apgd_t')
names += ('fab', 'fab_t', 'square')
for dtype in (jnp.float64, jnp.bfloat16):
  for norm in EPS:
    model = Linear((3, 3, 1), norm, EPS[norm], batch=4)
    exact = model.logits
    model.logits = lambda x: exact(x).astype(dtype)
    for name in names:
      one = stage(name, norm, iterations=3, queries=3)
      for eps in (jnp.float32(0.1), jnp.float64(0.1)):
        run = model.run(one.attack, one.loss)
        out = jax.eval_shape(run, jnp.asarray(model.images), eps)
        assert out.dtype == np.float32, (name, norm, dtype, out.dtype)
print('all traced')
"""


@pytest.mark.slow
def test_float64_and_bfloat16_logits_of_float32_images():
  root = pathlib.Path(__file__).parents[2]
  environment = dict(
    os.environ, JAX_ENABLE_X64='1', PYTHONPATH=str(root), JAX_PLATFORMS='cpu'
  )
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env=environment,
    capture_output=True,
    text=True,
    cwd=root,
  )
  assert done.stdout == 'all traced\n', done.stderr[-3000:]
