"""Every attack on linear models, whose exact answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attacks.linear import Linear
from vmoe_robust.attacks import Budget, check, ensemble

EPS = {'linf': 0.2, 'l2': 0.6, 'l1': 1.2}
# The share of the largest gain that an attack of so few steps is to reach.
REACHED = {
  'fgsm': dict(linf=0.9999, l2=0.75, l1=0.3),
  'mim': dict(linf=0.9999, l2=0.9, l1=0.75),
  'pgd': dict(linf=0.9999, l2=0.95, l1=0.9),
  'apgd_ce': dict(linf=0.9999, l2=0.98, l1=0.95),
  'apgd_dlr': dict(linf=0.9999, l2=0.98, l1=0.95),
  'apgd_t': dict(linf=0.9999, l2=0.98, l1=0.95),
  'square': dict(linf=0.9, l2=0.5),
}
CASES = [(name, norm) for name in REACHED for norm in REACHED[name]]


def stage(name, norm, **budget):
  made = ensemble(name, norm, 2, Budget(restarts=1, **budget))
  return made.stages[0]


@pytest.mark.parametrize('name, norm', CASES)
def test_reaches_the_exact_worst_case(name, norm):
  model = Linear((4, 4, 3), norm, EPS[norm], shares=(0.2, 1.2))
  one = stage(name, norm, iterations=50, queries=400)
  x_adv = model.attacked(one.attack, one.loss)
  in_ball, in_range = check(
    jnp.asarray(x_adv), model.images, jnp.float32(EPS[norm]), norm
  )
  assert in_ball.all() and in_range.all()
  assert not model.fallen(x_adv)[~model.fall].any()
  gained = model.gained(x_adv)
  assert (gained <= 1 + 1e-5).all()
  print(name, norm, gained.round(3))
  # A broken image is kept as it fell.
  assert (gained[~model.fall] >= REACHED[name][norm]).all()


@pytest.mark.parametrize('name', ['fab', 'fab_t'])
@pytest.mark.parametrize('norm', EPS)
def test_fab_finds_the_nearest_point(name, norm):
  model = Linear((4, 4, 3), norm, EPS[norm], shares=(0.8, 1.2))
  one = stage(name, norm, iterations=20)
  fallen = model.fallen(model.attacked(one.attack, one.loss))
  np.testing.assert_array_equal(fallen, model.fall)
