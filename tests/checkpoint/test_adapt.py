import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust import checkpoint
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import adapt
from vmoe_robust.config import UserError

BLOCK = 'Encoder/encoderblock_1'
MLP = {f'{BLOCK}/Mlp/Dense_0/kernel': (4, 8), f'{BLOCK}/Mlp/Dense_0/bias': (8,)}
MOE = {
  f'{BLOCK}/Moe/Mlp/Dense_0/kernel': (8, 4, 8),
  f'{BLOCK}/Moe/Mlp/Dense_0/bias': (8, 8),
  f'{BLOCK}/Moe/Router/dense/kernel': (4, 8),
}
POSITIONS = 'Encoder/posembed_input/pos_embedding'
SHARED = {'embedding/bias': (4,), 'head/kernel': (4, 10)}


def test_what_fits_is_loaded():
  there = SHARED | MLP
  found = checkpoint.plan(there, there, renamed=['embedding/bias'])
  ways = dict.fromkeys(there, 'loaded') | {'embedding/bias': 'renamed'}
  assert found == checkpoint.Plan(ways, {n: n for n in there}, [], [])


def test_heads_may_differ_and_are_not_named():
  wanted = SHARED | {'head/kernel': (4, 3), 'cls': (1, 1, 4)}
  found = checkpoint.plan(SHARED | {'map_probe': (1, 1, 4)}, wanted)
  assert found.how['head/kernel'] == found.how['cls'] == 'fresh'
  assert found.left_over == ['head/kernel', 'map_probe']
  assert not found.unexpected


def test_an_mlp_starts_the_experts_of_its_block_alone():
  found = checkpoint.plan(SHARED | MLP, SHARED | MOE)
  kernel = f'{BLOCK}/Moe/Mlp/Dense_0/kernel'
  assert found.how[kernel] == 'upcycled'
  assert found.source[kernel] == f'{BLOCK}/Mlp/Dense_0/kernel'
  assert found.how[f'{BLOCK}/Moe/Router/dense/kernel'] == 'fresh'
  assert not found.unexpected and not found.left_over
  # An MLP of another width, and one of another block, start nothing.
  narrow = MLP | {f'{BLOCK}/Mlp/Dense_0/kernel': (4, 6)}
  assert checkpoint.plan(narrow, MOE).how[kernel] == 'fresh'
  other = {n.replace('block_1', 'block_11'): s for n, s in MLP.items()}
  assert set(checkpoint.plan(other, MOE).how.values()) == {'fresh'}


def test_experts_do_not_become_an_mlp():
  found = checkpoint.plan(SHARED | MOE, SHARED | MLP)
  assert len(found.unexpected) == len(MLP) + len(MOE)
  named = checkpoint.plan(SHARED | MOE, SHARED | MLP, excepted=[f'{BLOCK}/M*'])
  assert not named.unexpected and len(named.left_over) == len(MOE)


@pytest.mark.parametrize(
  ('there', 'wanted'),
  [
    ({}, {'a/b': (2,)}),
    ({'a/b': (2,)}, {}),
    ({'a/b': (2,)}, {'a/b': (3,)}),
  ],
)
def test_what_is_unexpected_is_said_once_unless_named(there, wanted):
  assert checkpoint.plan(there, wanted).unexpected == ['a/b']
  for pattern in ('a', 'a/b', '*/b', 'a/*'):
    assert not checkpoint.plan(there, wanted, excepted=[pattern]).unexpected
  for pattern in ('b', 'a/bb', 'A', 'a/'):
    assert checkpoint.plan(there, wanted, excepted=[pattern]).unexpected


def test_what_is_named_stays_fresh_even_if_it_fits():
  found = checkpoint.plan(SHARED, SHARED, excepted=['head'])
  assert found.how == {'embedding/bias': 'loaded', 'head/kernel': 'fresh'}
  assert found.left_over == ['head/kernel']


def test_only_positions_of_a_square_grid_are_resized():
  way = lambda old, new: checkpoint.plan(
    {POSITIONS: old}, {POSITIONS: new}
  ).how[POSITIONS]
  assert way((1, 17, 4), (1, 26, 4)) == 'resized'
  assert way((1, 16, 4), (1, 26, 4)) == 'resized'
  assert way((1, 17, 4), (1, 27, 4)) == 'fresh'
  assert way((1, 17, 4), (1, 26, 8)) == 'fresh'


def test_positions_are_resized_linearly_and_the_token_is_kept():
  y, x = np.mgrid[:3, :3].astype(np.float32)
  grid = np.stack([y, x], -1).reshape(1, 9, 2)
  token = np.full((1, 1, 2), 7.0, np.float32)
  old = np.concatenate([token, grid], 1)
  new = adapt.resize_positions(old, 26)
  np.testing.assert_array_equal(new[:, :1], token)
  y, x = np.mgrid[0:2:5j, 0:2:5j]
  np.testing.assert_allclose(
    new[0, 1:], np.stack([y, x], -1).reshape(25, 2), atol=1e-6
  )
  assert adapt.resize_positions(grid, 25).shape == (1, 25, 2)
  np.testing.assert_array_equal(adapt.resize_positions(old, 10), old)


class InMemory:
  """Weights that remember what was read of them."""

  where, config, class_names, step = 'memory', None, (), None

  def __init__(self, arrays):
    self.arrays, self.renamed, self.indices = arrays, {}, []
    self.shapes = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()
    }

  def read(self, name, index=None):
    self.indices.append(index)
    return self.arrays[name] if index is None else self.arrays[name][index]

  def stamp(self):
    return None

  def close(self):
    pass


def tree_of(flat):
  tree = {}
  for name, leaf in flat.items():
    *parents, last = name.split('/')
    node = tree
    for part in parents:
      node = node.setdefault(part, {})
    node[last] = leaf
  return tree


def taken(arrays, wanted, shape, **options):
  """Weights taken over a mesh, the first axis split over its experts."""
  mesh = mesh_lib.create(shape, jax.devices()[: int(np.prod(shape))])
  split = jax.sharding.NamedSharding(mesh, jax.P('expert'))
  leaf = lambda s: jax.ShapeDtypeStruct(s, np.float32, sharding=split)
  weights = InMemory(arrays)
  found = checkpoint.plan(checkpoint.shapes_of(arrays), wanted)
  params = tree_of({name: leaf(shape) for name, shape in wanted.items()})
  params = checkpoint.take(weights, found, params, **options)
  return checkpoint.flat(params), weights


def test_each_device_reads_its_part_and_the_type_is_the_models():
  rng = np.random.default_rng(0)
  arrays = {'a/w': rng.standard_normal((8, 3)).astype(np.float16)}
  found, weights = taken(arrays, {'a/w': (8, 3)}, (2, 4, 1))
  assert found['a/w'].dtype == np.float32
  np.testing.assert_array_equal(found['a/w'], arrays['a/w'])
  # Two devices hold each part; it is read once.
  starts = sorted(index[0].start or 0 for index in weights.indices)
  assert starts == [0, 2, 4, 6]


@pytest.mark.parametrize(
  ('array', 'what'),
  [
    (np.ones((8, 3), np.int8), 'memory has a/w as int8'),
    (np.ones((8, 3), bool), 'memory has a/w as bool'),
    (np.full((8, 3), 1e60), r'a/w has 1e\+60, which is beyond float32'),
  ],
)
def test_what_is_no_weight_is_refused(array, what):
  with pytest.raises(UserError, match=what):
    taken({'a/w': array}, {'a/w': (8, 3)}, (2, 4, 1))


def test_what_is_not_finite_stays_so():
  array = np.array([[1.0, np.nan, -np.inf]] * 8)
  found, _ = taken({'a/w': array}, {'a/w': (8, 3)}, (2, 4, 1))
  np.testing.assert_array_equal(found['a/w'], array.astype(np.float32))


def test_positions_of_half_precision_are_resized():
  old = jnp.arange(17, dtype=jnp.bfloat16).reshape(1, 17, 1)
  wanted = {POSITIONS: (1, 50, 1)}
  found, _ = taken({POSITIONS: np.asarray(old)}, wanted, (1, 1, 1))
  assert found[POSITIONS].dtype == np.float32
  np.testing.assert_allclose(found[POSITIONS][0, [0, 1, -1], 0], [0, 1, 16])


EXPERTS = {n: s for n, s in MOE.items() if 'Router' not in n}


@pytest.fixture(scope='module')
def dense():
  rng = np.random.default_rng(0)
  return {n: rng.standard_normal(s).astype('f') for n, s in MLP.items()}


def test_every_expert_starts_alike(dense):
  found, _ = taken(dense, EXPERTS, (1, 4, 1))
  for name, experts in found.items():
    for expert in np.asarray(experts):
      np.testing.assert_array_equal(expert, dense[name.replace('/Moe/', '/')])


def test_noise_is_relative_and_the_same_on_every_mesh(dense):
  dense = {name: 100 * x for name, x in dense.items()}
  one, _ = taken(dense, EXPERTS, (1, 1, 1), noise=0.1)
  four, _ = taken(dense, EXPERTS, (2, 4, 1), noise=0.1)
  other, _ = taken(dense, EXPERTS, (1, 1, 1), noise=0.1, seed=1)
  name = f'{BLOCK}/Moe/Mlp/Dense_0/kernel'
  np.testing.assert_array_equal(one[name], four[name])
  assert (np.asarray(one[name]) != np.asarray(other[name])).all()
  start = dense[f'{BLOCK}/Mlp/Dense_0/kernel']
  noise = np.asarray(one[name]) - start
  assert noise.std() == pytest.approx(0.1 * start.std(), rel=0.15)
  assert np.abs(noise.mean(0)).max() < noise.std() * 1.5  # experts differ


def test_fresh_weights_are_kept():
  leaf = object()
  found = checkpoint.plan({}, {'a': ()})
  assert adapt.take(InMemory({}), found, {'a': leaf})['a'] is leaf
