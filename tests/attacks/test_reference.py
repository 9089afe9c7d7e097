"""Step by step against AutoAttack's own code, in float64 from the same start.

The numbers, and how they were made: tests/golden/README.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.slow import all_slow_but
from vmoe_robust.attacks import LOSSES, hyperplane, norms
from vmoe_robust.attacks.apgd import Apgd
from vmoe_robust.attacks.fab import Fab
from vmoe_robust.attacks.square import _HALVED, _SHARE

NORMS = ('Linf', 'L2', 'L1')


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def image(flat):
  return jnp.asarray(np.asarray(flat, np.float64).reshape(-1, 8, 8, 1))


def loss_of(reference, name, labels, targets):
  labels, targets = jnp.asarray(labels), jnp.asarray(targets)

  def loss(x):
    logits = reference.logits(x)
    values = LOSSES[name](logits, labels, targets)
    return values, logits.argmax(-1) != labels

  return loss


@pytest.mark.parametrize(
  'ours, theirs',
  [('cross_entropy', 'ce'), ('dlr', 'dlr'), ('targeted_dlr', 'dlr_targeted')],
)
def test_losses(reference, ours, theirs):
  logits = jnp.asarray(reference['loss/logits'])
  label, target = (
    jnp.asarray(reference[f'loss/{n}'].astype(np.int32))
    for n in ('labels', 'targets')
  )
  loss = lambda logits: LOSSES[ours](logits, label, target)
  np.testing.assert_allclose(
    loss(logits), reference[f'loss/{theirs}/value'], atol=1e-10
  )
  slope = jax.grad(lambda logits: loss(logits).sum())(logits)
  np.testing.assert_allclose(
    slope, reference[f'loss/{theirs}/grad'], atol=1e-10
  )


@pytest.mark.parametrize('eps', ['0.5', '2', '8'])
def test_projection_onto_the_l1_ball(reference, eps):
  x = image(reference['projection/l1_ball/x'])
  y = image(reference['projection/l1_ball/y'])
  # They project the move y, and give what is to be added to it.
  expected = x + y + image(reference[f'projection/l1_ball/delta/eps{eps}'])
  found = norms.project(x + y, x, jnp.float64(float(eps)), 'l1')
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('norm', NORMS)
def test_projection_onto_a_hyperplane(reference, norm):
  x = image(reference['projection/hyperplane/t'])
  weights = image(reference['projection/hyperplane/w'])
  b = jnp.asarray(reference['projection/hyperplane/b'])
  gap = b - (weights * x).sum((1, 2, 3))
  found = hyperplane.project(x, weights, gap, norm.lower())
  expected = image(reference[f'projection/hyperplane/delta/{norm}'])
  np.testing.assert_allclose(found, expected, atol=1e-6)


def follow(attack, asked, state, eps):
  """Iterates, their losses and the step sizes of a whole run."""
  step = jax.jit(
    lambda state: (asked(state.x)[0], attack.step(asked, state, eps))
  )
  iterates, losses, sizes = [], [], []
  for _ in range(attack.steps):
    iterates.append(np.asarray(state.x))
    loss, state = step(state)
    losses.append(np.asarray(loss))
    sizes.append(np.asarray(state.own.eta))
  return iterates, np.array(losses), np.array(sizes), state


def compare(get, iterates, losses, sizes):
  """Everything of one phase, whose last look has no step."""
  np.testing.assert_allclose(sizes[:-1], get('step_size'), rtol=1e-6)
  np.testing.assert_allclose(losses, get('loss'), atol=1e-5)
  for number, expected in zip(
    get('iterate_numbers'), get('iterates'), strict=True
  ):
    np.testing.assert_allclose(iterates[number], expected, atol=1e-5)


def problem(reference, loss, targets=None):
  index = reference['traj/index']
  targets = np.zeros(8) if targets is None else targets
  images = image(reference.images[index])
  labels = reference.labels[index]
  return images, loss_of(reference, loss, labels, targets.astype(np.int32))


@pytest.mark.parametrize(
  'name, norm, loss',
  [
    ('apgd_ce', 'Linf', 'cross_entropy'),
    pytest.param('apgd_ce', 'L2', 'cross_entropy', marks=pytest.mark.slow),
    pytest.param('apgd_dlr', 'Linf', 'dlr', marks=pytest.mark.slow),
    ('apgd_t', 'Linf', 'targeted_dlr'),
  ],
)
def test_apgd(reference, name, norm, loss):
  get = lambda field: reference[f'traj/{name}/{norm}/{field}']
  targets = get('targets') if name == 'apgd_t' else None
  images, asked = problem(reference, loss, targets)
  attack, eps = Apgd(norm.lower()), jnp.float64(reference[f'eps/{norm}'])
  start = attack.start_at(images, image(get('start')), eps)
  iterates, losses, sizes, state = follow(attack, asked, start, eps)
  compare(get, iterates, losses, sizes)
  np.testing.assert_allclose(state.own.best, get('x_best'), atol=1e-5)
  np.testing.assert_array_equal(state.broken, ~get('still_robust'))


@pytest.mark.slow
def test_apgd_in_l1_narrows_the_ball(reference):
  images, asked = problem(reference, 'cross_entropy')
  attack, eps = Apgd('l1'), jnp.float64(reference['eps/L1'])
  of = lambda phase: (
    lambda field: reference[f'traj/apgd_ce_largereps/L1/phase{phase}/{field}']
  )
  start = attack.start_at(images, image(of(0)('start')), eps)
  iterates, losses, sizes, state = follow(attack, asked, start, eps)
  begin = 0
  for phase in range(3):
    get = of(phase)
    end = begin + len(get('loss'))
    part = slice(begin, end)
    compare(get, iterates[part], losses[part], sizes[part])
    begin = end
  assert begin == attack.steps
  np.testing.assert_allclose(state.own.best, get('x_best'), atol=1e-5)
  np.testing.assert_array_equal(state.broken, ~get('still_robust'))


@pytest.mark.parametrize(
  'iterations', all_slow_but([5, 100], [5, 10, 20, 40, 50, 100, 200, 1000])
)
def test_checkpoints(reference, iterations):
  """Of a loss that always rises, whose windows no halving hides."""
  attack, eps = Apgd('linf', iterations), jnp.float64(0.5)
  x = jnp.full((1, 1, 1, 1), 0.5)
  rising = lambda x: (x.sum((1, 2, 3)), jnp.zeros(1, bool))
  state = attack.start_at(x, x, eps)
  step = jax.jit(lambda state: attack.step(rising, state, eps))
  found = []
  for turn in range(iterations + 1):
    state = step(state)
    if turn and state.own.since[0] == 0:
      found.append(turn)
  np.testing.assert_array_equal(found, reference[f'checkpoints/{iterations}'])


@pytest.mark.parametrize('norm', all_slow_but(['Linf'], NORMS))
def test_fab(reference, norm):
  get = lambda field: reference[f'fab/{norm}/{field}']
  index = reference['fab/index']
  images = image(reference.images[index])
  asked = loss_of(
    reference,
    'target_rival',
    reference.labels[index],
    get('targets').astype(np.int32),
  )
  attack, eps = Fab(norm.lower(), 20), jnp.float64(1e9)
  keys = jax.random.split(jax.random.key(0), len(images))
  state = attack.start(images, keys, eps, jnp.zeros(len(images), jnp.int32))
  step = jax.jit(lambda state: attack.step(asked, state, eps))
  for turn in range(20):
    state = step(state)
    np.testing.assert_allclose(state.x, get('iterates')[turn], atol=1e-5)
    best = get('best_norm')[turn]
    best = np.where(best < 1e9, best, np.inf)
    np.testing.assert_allclose(state.own.distance, best, atol=1e-6)
  np.testing.assert_allclose(state.x_adv, get('x_adv'), atol=1e-6)


def test_square_schedule(reference):
  expected = reference['square/p/rescale_False']
  stage = np.searchsorted(_HALVED, np.arange(5000))
  np.testing.assert_allclose(_SHARE / 2.0**stage, expected)


@pytest.mark.parametrize('attack', ['apgd-t', 'fab-t'])
def test_what_fooled_theirs_fools_ours(reference, attack):
  get = lambda field: reference[f'x_adv/Linf/{attack}/seed0/{field}']
  labels = reference.labels[get('index')]
  logits = reference.logits(jnp.asarray(get('images'), jnp.float32))
  assert (np.asarray(logits).argmax(-1) != labels).all()
