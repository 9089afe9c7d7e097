"""The device mesh, the logical-axis rules, and placing arrays by them."""

import math
from collections.abc import Iterable

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from vmoe_robust.config import UserError

DATA, EXPERT, MODEL = AXES = ('data', 'expert', 'model')
# The batch is split over both of these; experts over the second.
BATCH_AXES = (DATA, EXPERT)


def rules(fsdp: bool = False) -> dict[str, tuple[str, ...]]:
  """Where each logical axis of a weight or an activation lies on the mesh."""
  return {
    'batch': BATCH_AXES,
    'experts': (EXPERT,),
    'heads': (MODEL,),
    'mlp': (MODEL,),
    # Fully sharded weights and optimizer state are this line.
    'embed': (DATA,) if fsdp else (),
  }


def require_devices() -> None:
  """Lets JAX find its devices, so that what is wrong is said at once.

  Raises:
    UserError: those that were asked for are not there.
  """
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:  # of an unknown, and a known
    asked = jax.config.jax_platforms or ''  # type: ignore[attr-defined]
    said = str(error).strip().split('\n')[0] or 'there is none'
    raise UserError(
      f'JAX cannot use its devices (JAX_PLATFORMS={asked!r}): {said}. On a '
      'machine that has them install vmoe_robust[cuda] or [tpu] and see that '
      'no other program holds them; JAX_PLATFORMS=cpu works everywhere'
    ) from error


def create(shape: tuple[int, int, int], devices: list | None = None) -> Mesh:
  """A mesh of (data, expert, model) over all devices, or over `devices`.

  Several TPU slices are joined along `data`, the axis that communicates
  least, so that experts exchange tokens inside a slice.

  Raises:
    UserError: TPU slices do not divide that axis.
  """
  devices = jax.devices() if devices is None else devices
  types = (AxisType.Auto,) * len(AXES)
  slices = _slices(devices)
  if slices > 1 and shape[0] % slices and devices[0].platform == 'tpu':
    raise UserError(
      f'{slices} TPU slices do not divide the data axis of {shape[0]}, along '
      'which they are joined; set --config.mesh.expert to '
      f'{max(len(devices) // slices // shape[2], 1)} or a part of it'
    )
  if slices > 1 and shape[0] % slices == 0:
    inside = (shape[0] // slices, *shape[1:])
    array = mesh_utils.create_hybrid_device_mesh(
      inside, (slices, 1, 1), devices=devices, allow_split_physical_axes=True
    )
  elif devices[0].platform == 'tpu':
    # 32 experts on a pod of 16 x 16 chips lie along parts of its axes.
    array = mesh_utils.create_device_mesh(
      shape, devices=devices, allow_split_physical_axes=True
    )
  else:
    # In the order of the processes, so that each reads one run of rows.
    array = np.asarray(devices).reshape(shape)
  return Mesh(array, AXES, axis_types=types)


def slices(mesh: Mesh) -> int:
  """How many TPU slices it joins; 1 of anything else."""
  return _slices(mesh.devices.flat)


def _slices(devices: Iterable) -> int:
  return len({getattr(device, 'slice_index', 0) for device in devices})


def platform(mesh: Mesh) -> str:
  """What the devices are: 'cpu', 'gpu' or 'tpu'."""
  return mesh.devices.flat[0].platform


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Arrays whose leading axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
  """How many pieces the batch is split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def spec(
  shape: tuple[int, ...],
  names: tuple[str | None, ...],
  mesh: Mesh,
  table: dict[str, tuple[str, ...]],
) -> PartitionSpec:
  """The partition of an array whose axes have these logical names.

  An axis that the mesh does not divide, or that another axis of the array
  already lies on, stays whole. An array of another rank than its names (the
  factored moments of Adafactor) stays whole too.
  """
  if len(shape) != len(names):
    return PartitionSpec()
  taken, parts = set(), []
  for size, name in zip(shape, names, strict=True):
    axes = [a for a in table.get(name, ()) if a not in taken]
    if size % math.prod(mesh.shape[a] for a in axes):
      axes = []
    taken.update(axes)
    parts.append(tuple(axes) if len(axes) > 1 else (axes or [None])[0])
  return PartitionSpec(*parts)


def tree_shardings(
  tree: PyTree, mesh: Mesh, table: dict[str, tuple[str, ...]]
) -> PyTree:
  """Shardings of a tree whose weights carry logical names.

  Args:
    tree: abstract values (`jax.eval_shape`), some of them
      `flax.linen.LogicallyPartitioned`.
    mesh: the device mesh.
    table: what `rules` returns.

  Returns:
    The same tree without the boxes, of `NamedSharding`.
  """

  def place(leaf):
    if isinstance(leaf, nn.LogicallyPartitioned):
      found = spec(leaf.value.shape, leaf.names, mesh, table)
      return NamedSharding(mesh, found)
    return replicated(mesh)

  is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
  return jax.tree.map(place, tree, is_leaf=is_box)


def constrain_batch(
  x: Float[Array, 'batch ...'], mesh: Mesh
) -> Float[Array, 'batch ...']:
  """Keeps an activation's leading axis split as the batch is."""
  return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))
