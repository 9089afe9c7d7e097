"""Meshes, the partition of arrays by their axes' names, and chips."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.config import UserError
from vmoe_robust.cost import hardware

PLAIN, FSDP = mesh_lib.rules(), mesh_lib.rules(fsdp=True)


@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1), (2, 2, 2), (2, 4, 1)])
def test_create_uses_all_devices_in_order(shape):
  mesh = mesh_lib.create(shape)
  assert mesh.axis_names == mesh_lib.AXES and mesh.devices.shape == shape
  assert mesh.devices.ravel().tolist() == jax.devices()
  assert mesh_lib.batch_shards(mesh) == shape[0] * shape[1]


def test_create_on_some_devices():
  some = jax.devices()[2:6]
  mesh = mesh_lib.create((1, 2, 2), some)
  assert mesh.devices.ravel().tolist() == some
  with pytest.raises(ValueError):
    mesh_lib.create((2, 2, 2), some)


@pytest.mark.parametrize(
  'shape, names, table, expected',
  [
    ((4, 8, 6), ('experts', 'embed', 'mlp'), PLAIN, P('expert', None, 'model')),
    (
      (4, 8, 6),
      ('experts', 'embed', 'mlp'),
      FSDP,
      P('expert', 'data', 'model'),
    ),
    ((16, 3), ('batch', None), PLAIN, P(('data', 'expert'), None)),
    # Sizes that the mesh does not divide stay whole.
    ((3, 8, 6), ('experts', 'embed', 'mlp'), FSDP, P(None, 'data', 'model')),
    ((4, 7, 5), ('experts', 'embed', 'mlp'), FSDP, P('expert', None, None)),
    ((6, 8), ('batch', None), PLAIN, P(None, None)),
    # A mesh axis is used once.
    ((8, 8), ('embed', 'embed'), FSDP, P('data', None)),
    ((8, 4), ('batch', 'experts'), PLAIN, P(('data', 'expert'), None)),
    ((4, 8), ('experts', 'batch'), PLAIN, P('expert', 'data')),
    ((3, 4), ('experts', 'batch'), PLAIN, P(None, ('data', 'expert'))),
    # Another rank: the moments of Adafactor.
    ((8,), ('embed', 'mlp'), FSDP, P()),
    ((), (), FSDP, P()),
  ],
)
def test_spec(shape, names, table, expected):
  mesh = mesh_lib.create((2, 2, 2))
  found = mesh_lib.spec(shape, names, mesh, table)
  assert found == expected
  jax.eval_shape(
    lambda x: jax.lax.with_sharding_constraint(
      x, jax.sharding.NamedSharding(mesh, found)
    ),
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a TPU tells of its place."""

  id: int
  slice_index: int
  platform: str = 'tpu'


def test_slices_that_do_not_divide_the_data_axis_are_refused():
  """They cannot be joined along another one."""
  chips = [Chip(i, i // 16) for i in range(32)]
  with pytest.raises(UserError, match='2 TPU slices .*mesh.expert to 16 or'):
    mesh_lib.create((1, 32, 1), chips)


def test_tree_shardings_follow_the_names():
  mesh = mesh_lib.create((2, 2, 2))
  box = lambda names, *shape: nn.LogicallyPartitioned(jnp.zeros(shape), names)
  tree = {
    'kernel': box(('embed', 'mlp'), 8, 6),
    'factored': box(('embed', 'mlp'), 8),
    'scale': jnp.zeros(8),
    'step': jnp.zeros(()),
  }
  found = mesh_lib.tree_shardings(jax.eval_shape(lambda: tree), mesh, FSDP)
  assert jax.tree.map(lambda s: s.spec, found) == {
    'kernel': P('data', 'model'),
    'factored': P(),
    'scale': P(),
    'step': P(),
  }
  placed = jax.device_put(nn.unbox(tree), found)
  assert placed['kernel'].sharding.shard_shape((8, 6)) == (4, 3)


def test_batches_lie_over_data_and_expert():
  mesh = mesh_lib.create((2, 2, 2))
  x = jnp.arange(16.0).reshape(8, 2)
  lay = jax.jit(lambda x: mesh_lib.constrain_batch(2 * x, mesh))(x)
  assert lay.sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh), 2)
  assert lay.sharding.shard_shape(x.shape) == (2, 2)
  np.testing.assert_array_equal(lay, 2 * x)
  everywhere = jax.device_put(x, mesh_lib.replicated(mesh))
  assert everywhere.sharding.is_fully_replicated


@pytest.mark.parametrize(
  'kind, peak',
  [
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5p', 459e12),
    ('TPU v5', 459e12),
    ('TPU v6 lite', 918e12),
    ('NVIDIA A100-SXM4-40GB', 312e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA H200', 989e12),
    ('cpu', None),
    ('Tesla V100-SXM2-16GB', None),
  ],
)
def test_peak_flops(kind, peak):
  assert hardware.peak_flops(kind) == peak
