"""What holds for every attack, and what `build` refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.slow import all_slow_but
from vmoe_robust import attacks, config

EPS = 8 / 255
BATCH, SHAPE, CLASSES = 8, (4, 4, 3), 5

SETTINGS = {
  'linf': dict(restarts=2),
  'l2': dict(norm='l2', momentum=0.9),
  'l1': dict(norm='l1'),
  'plain': dict(random_start=False),
  'paper': dict(name='paper'),
}


def build(**values):
  made = config.default().attack
  made.update(steps=4)
  made.update(values)
  return attacks.build(made)


def _problem(seed=0):
  """Images, keys and the loss of a small network, smooth in the image."""
  rng = np.random.default_rng(seed)
  images = jnp.array(rng.uniform(size=(BATCH, *SHAPE)), jnp.float32)
  hidden = jnp.array(rng.normal(size=(48, 16)) / 3, jnp.float32)
  head = jnp.array(rng.normal(size=(16, CLASSES)), jnp.float32)
  labels = jnp.array(rng.integers(CLASSES, size=BATCH))

  def loss_of(labels):
    def loss(x):
      logits = jnp.tanh(x.reshape(len(x), -1) @ hidden) @ head
      own = jax.nn.one_hot(labels, CLASSES)  # indexing would communicate
      values = -(jax.nn.log_softmax(logits) * own).sum(-1)
      return values, logits.argmax(-1) != labels

    return loss

  return images, jax.random.split(jax.random.key(1), BATCH), labels, loss_of


@pytest.mark.parametrize('setting', SETTINGS)
def test_no_radius_no_change(setting):
  images, keys, labels, loss_of = _problem()
  attack = jax.jit(build(**SETTINGS[setting]), static_argnums=0)
  x_adv = attack(loss_of(labels), images, keys, jnp.float32(0))
  np.testing.assert_array_equal(x_adv, images)


@pytest.mark.parametrize('setting', SETTINGS)
def test_other_images_change_nothing(setting):
  images, keys, labels, loss_of = _problem()
  others, other_keys, other_labels, _ = _problem(seed=1)
  attack, eps = build(**SETTINGS[setting]), jnp.float32(EPS)

  @jax.jit
  def run(images, keys, labels):
    return attack(loss_of(labels), images, keys, eps)

  alone = run(images, keys, labels)
  swap = jnp.arange(BATCH) > 0
  x_adv = run(
    jnp.where(swap[:, None, None, None], others, images),
    jnp.where(swap, other_keys, keys),
    jnp.where(swap, other_labels, labels),
  )
  np.testing.assert_array_equal(x_adv[0], alone[0])
  assert (np.asarray(x_adv[1:]) != np.asarray(alone[1:])).any()


@pytest.mark.parametrize('setting', SETTINGS)
def test_a_sweep_compiles_once(setting):
  images, keys, labels, loss_of = _problem()
  attack, traces = build(**SETTINGS[setting]), []

  @jax.jit
  def run(images, keys, eps):
    traces.append(1)
    return attack(loss_of(labels), images, keys, eps)

  for eps in (0.01, 0.02, 0.03):
    x_adv = run(images, keys, jnp.float32(eps))
    assert (np.asarray(x_adv) != np.asarray(images)).any((1, 2, 3)).all()
  assert len(traces) == 1


@pytest.mark.parametrize(
  'setting', all_slow_but(set(SETTINGS) - {'l1', 'l2'}, SETTINGS)
)
def test_sharded_equals_unsharded_without_a_word(setting):
  images, keys, labels, loss_of = _problem()
  attack, eps = build(**SETTINGS[setting]), jnp.float32(EPS)

  def run(images, keys, labels, eps):
    return attack(loss_of(labels), images, keys, eps)

  expected = jax.jit(run)(images, keys, labels, eps)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec('data'))
  whole = NamedSharding(mesh, PartitionSpec())
  sharded = jax.jit(run, in_shardings=(split, split, split, whole))
  compiled = sharded.lower(images, keys, labels, eps).compile()
  for collective in ('all-gather', 'all-reduce', 'all-to-all', 'permute'):
    assert collective not in compiled.as_text()
  found = sharded(*jax.device_put((images, keys, labels), split), eps)
  assert found.sharding.is_equivalent_to(split, found.ndim)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_paper_takes_signed_steps_and_does_not_clip():
  weights = jnp.array([1.0, -2.0, 0.0])
  images = jnp.array([0.0, 0.01, 0.5]).reshape(1, 1, 1, 3)

  def loss(x):
    return (x * weights).sum((1, 2, 3)), jnp.zeros(len(x), bool)

  attack = build(name='paper', steps=7)
  keys = jax.random.split(jax.random.key(0), 1)
  x_adv = attack(loss, images, keys, jnp.float32(0.1))
  np.testing.assert_allclose(x_adv[0, 0, 0], [0.1, -0.09, 0.5], atol=1e-6)
