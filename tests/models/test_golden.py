"""The model against numbers of the official V-MoE and ViT code."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.slow import all_slow_but
from vmoe_robust import attacks, checkpoint
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.models import build, losses

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
VARIANTS = [
  (f'K{k}_bpr{p}_cf{c}', k, bool(p), float(c))
  for k in (1, 2)
  for p in (0, 1)
  for c in ('1.05', '8.0')
]
MESHES = [(1, 1, 1), (2, 2, 2), (1, 4, 1)]
# Two experts a token, of which some are full, and every mesh axis.
QUICK = ('K2_bpr1_cf1.05', 2, True, 1.05), (2, 2, 2)
BLOCKS = ('encoderblock_1', 'encoderblock_3')
HEAD_AND_ALL = jax.tree_util.tree_flatten_with_path


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN / 'vmoe_small.npz') as file:
    return dict(file)


def tree_of(flat, prefix):
  tree = {}
  for name, value in flat.items():
    if name.startswith(prefix):
      *parents, leaf = name.removeprefix(prefix).split('/')
      functools.reduce(lambda d, p: d.setdefault(p, {}), parents, tree)[
        leaf
      ] = jnp.asarray(value)
  return tree


def mesh_of(shape):
  count = int(np.prod(shape))
  return mesh_lib.create(shape, jax.devices()[:count])


def vmoe(selected, priority, factor, mesh):
  config = config_lib.default().model
  config.update(
    dict(patch=4, hidden=32, layers=4, heads=4, mlp=64, num_classes=10)
  )
  config.update(dict(experts=4, moe_every=2))
  config.router.update(
    dict(
      selected=selected,
      batch_priority=priority,
      capacity_factor=factor,
      group_images=4,
      importance_weight=0.005,
    )
  )
  return build(config, (16, 16, 3), mesh)


def in_unit_range(images):
  return (jnp.asarray(images) + 1) / 2


def slopes(model, wanted):
  """Logits and both gradients, in one program: compiling takes the time."""

  def run(params, images):
    def values(params, images):
      logits, aux = model.apply(params, images, experts='capacity')
      mean = losses.classification(logits, wanted, 'softmax').mean()
      records = {
        name: (record.routing, record.placement)
        for name, record in aux.records.items()
      }
      return (mean, aux.loss), (logits, records)

    found, pull, (logits, records) = jax.vjp(
      values, params, images, has_aux=True
    )
    _, by_image = pull((1.0, 0.0))
    by_params, _ = pull((1.0, 1.0))
    return logits, found[1], records, by_image, by_params

  return jax.jit(run)


@pytest.mark.parametrize('shape', all_slow_but(QUICK, MESHES), ids=str)
@pytest.mark.parametrize(
  'variant', all_slow_but(QUICK, VARIANTS), ids=lambda v: v[0]
)
def test_forward_and_gradients(golden, variant, shape):
  name, selected, priority, factor = variant
  model = vmoe(selected, priority, factor, mesh_of(shape))
  wanted = jnp.asarray(golden['labels_onehot'])
  logits, loss, records, by_image, by_params = slopes(model, wanted)(
    tree_of(golden, 'params/'), in_unit_range(golden['images'])
  )
  np.testing.assert_allclose(logits, golden[f'{name}/logits'], atol=2e-6)
  per_image = losses.classification(logits, wanted, 'softmax')
  np.testing.assert_allclose(
    per_image, golden[f'{name}/ce_per_example'], atol=2e-6
  )
  total = sum(routing.auxiliary_loss for routing, _ in records.values())
  np.testing.assert_allclose(total, golden[f'{name}/auxiliary_loss'], rtol=1e-5)
  np.testing.assert_allclose(loss, np.mean(total), rtol=1e-6)
  for block in BLOCKS:
    check_routing(golden, name, block, *records[block])
  check_gradients(golden, name, by_image, by_params)


def check_routing(golden, name, block, routing, placed):
  router = f'Encoder/{block}/Moe/Router'
  indices = golden[f'{name}/indices/{router}']
  np.testing.assert_allclose(
    routing.logits, golden[f'{name}/router_logits/{router}'], atol=4e-6
  )
  np.testing.assert_array_equal(routing.experts, indices[..., 0])
  kept = indices[..., 1] < golden[f'{name}/capacity']
  np.testing.assert_array_equal(placed.kept, kept)
  np.testing.assert_array_equal(
    np.asarray(placed.slot)[kept], indices[..., 1][kept]
  )
  gates = np.asarray(routing.gates * placed.kept)
  combine = np.einsum('gsk,gske->gse', gates, np.eye(4)[routing.experts])
  np.testing.assert_allclose(
    combine.reshape(8, 17, 4),
    golden[f'{name}/combine_weights/{router}'],
    atol=8e-7,
  )
  for loss in ('importance', 'gshard'):
    np.testing.assert_allclose(
      routing.losses[loss], golden[f'{name}/metrics/{block}/{loss}_loss'],
      rtol=1e-5,
    )  # fmt: skip


def check_gradients(golden, name, by_image, by_params):
  expected = golden[f'{name}/grad_images']
  np.testing.assert_allclose(
    by_image / 2, expected, atol=2.2e-6 * np.abs(expected).max()
  )
  flat = {
    '/'.join(part.key for part in path): leaf
    for path, leaf in HEAD_AND_ALL(by_params)[0]
  }
  lengths = [
    np.linalg.norm(np.asarray(flat[leaf], np.float64))
    for leaf in golden['param_names_sorted']
  ]
  np.testing.assert_allclose(
    lengths, golden[f'{name}/param_grad_l2'], rtol=2e-5, atol=1e-7
  )
  prefix = f'{name}/param_grad/'
  some = [leaf for leaf in golden if leaf.startswith(prefix)]
  assert len(some) == 5
  for leaf in some:
    expected = golden[leaf]
    np.testing.assert_allclose(
      flat[leaf.removeprefix(prefix)],
      expected,
      atol=4e-6 * np.abs(expected).max(),
    )


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS, ids=lambda v: v[0])
def test_paper_attack(golden, variant):
  name, selected, priority, factor = variant
  model = vmoe(selected, priority, factor, mesh_of((1, 1, 1)))
  params = tree_of(golden, 'params/')
  wanted = jnp.asarray(golden['labels_onehot'])
  config = config_lib.default().attack
  config.update(dict(name='paper', steps=int(golden['pgd_num_updates'])))

  @jax.jit
  def logits_of(images):
    return model.apply(params, images, experts='capacity')[0]

  def loss(images):
    logits = logits_of(images)
    per_image = losses.classification(logits, wanted, 'softmax')
    return per_image, ~losses.top_is_right(logits, wanted)

  x = in_unit_range(golden['images'])
  keys = jax.random.split(jax.random.key(0), len(x))
  eps = jnp.float32(golden['pgd_max_epsilon'] / 2)
  attack = functools.partial(attacks.build(config), loss)
  x_adv = jax.jit(attack)(x, keys, eps)
  expected = golden[f'{name}/pgd_images']
  differ = np.abs(2 * x_adv - 1 - expected) > 1e-5
  assert differ.mean() <= 0.005
  logits = logits_of(in_unit_range(expected))
  np.testing.assert_allclose(logits, golden[f'{name}/pgd_logits'], atol=4e-6)


def test_dense(tmp_path):
  config = config_lib.default().model
  config.update(
    dict(patch=4, hidden=32, layers=3, heads=4, mlp=64, num_classes=10)
  )
  model = build(config, (16, 16, 3), mesh_of((1, 1, 1)))
  weights = checkpoint.open_weights(GOLDEN / 'vit_small_released_names.npz')
  flat = {name: weights.read(name) for name in weights.shapes}
  weights.close()
  params = tree_of(flat, '')
  with np.load(GOLDEN / 'vit_small_expected.npz') as expected:
    images = in_unit_range(expected['images'])
    logits, aux = jax.jit(model.apply)(params, images)
    np.testing.assert_allclose(logits, expected['logits'], atol=2e-6)
  assert not aux.records
