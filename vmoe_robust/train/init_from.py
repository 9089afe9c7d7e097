"""Starting weights from another run or from a released file."""

import jax
from jaxtyping import PyTree

from vmoe_robust.checkpoint import (
  Checkpoints,
  locate,
  read_npz,
  resize_positions,
)
from vmoe_robust.config import UserError

# Weights that belong to the task or the way of pooling, not to the encoder.
_MAY_DIFFER = ('head/', 'pre_logits/', 'cls', 'map_')


def start_from(path: str, params: PyTree) -> tuple[PyTree, list[str]]:
  """Replaces fresh weights by those of `config.init_from`.

  Position embeddings of another resolution are resized. A head of another
  number of classes or another kind stays fresh.

  Args:
    path: a work directory, one of its checkpoints, or a released .npz file.
    params: fresh weights on their mesh.

  Returns:
    The weights, placed as `params` are, and the names that stayed fresh.

  Raises:
    UserError: the weights are missing or are those of another model.
  """
  there, fresh = _flat(_read(path)), []
  surplus = there.keys() - _flat(params).keys()
  surplus = sorted(n for n in surplus if not n.startswith(_MAY_DIFFER))
  if surplus:
    raise UserError(
      f'config.init_from={path!r} is of another model: it has {surplus[0]}'
      f'{" and more" * (len(surplus) > 1)}, which this one lacks; use the '
      'sizes of config.model it was trained with'
    )

  def choose(keys, leaf):
    name = _name(keys)
    value = there.get(name)
    if name.endswith('pos_embedding') and value is not None:
      same_width = value.shape[2:] == leaf.shape[2:]
      if same_width and value.shape != leaf.shape:
        value = resize_positions(value, leaf.shape[1])
    if value is None or value.shape != leaf.shape:
      if not name.startswith(_MAY_DIFFER):
        shape = 'absent' if value is None else value.shape
        raise UserError(
          f'config.init_from={path!r} is of another model: {name} is {shape} '
          f'in it and {leaf.shape} in this one; use the sizes of config.model '
          'it was trained with'
        )
      fresh.append(name)
      return leaf
    return jax.device_put(value.astype(leaf.dtype), leaf.sharding)

  return jax.tree_util.tree_map_with_path(choose, params), fresh


def _read(path: str) -> PyTree:
  if path.endswith('.npz'):
    return read_npz(path)
  workdir, step = locate(path, 'config.init_from')
  checkpoints = Checkpoints(workdir)
  tree = checkpoints.read(step, checkpoints.weights(step))
  checkpoints.close()
  return tree


def _flat(tree) -> dict:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {_name(keys): leaf for keys, leaf in leaves}


def _name(keys) -> str:
  return '/'.join(key.key for key in keys)
