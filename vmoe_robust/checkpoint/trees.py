"""Trees of arrays: names of their leaves, and whether two are of one model."""

import os
from collections.abc import Mapping

import jax
from jaxtyping import PyTree

from vmoe_robust.config import UserError

Shapes = Mapping[str, tuple[int, ...]]


def name_of(keys: tuple) -> str:
  """The name of a leaf, such as 'head/kernel'."""
  return jax.tree_util.keystr(keys, simple=True, separator='/')


def flat(tree: PyTree) -> dict[str, PyTree]:
  """The leaves of a tree by their names."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {name_of(keys): leaf for keys, leaf in leaves}


def shapes_of(tree: PyTree) -> dict[str, tuple[int, ...]]:
  """Shapes alone, of arrays or of what stands for them, by their names."""
  return {name: tuple(leaf.shape) for name, leaf in flat(tree).items()}


def require_same(
  where: str | os.PathLike, there: Shapes, wanted: Shapes, way: str
) -> None:
  """Refuses weights of another model.

  Args:
    where: they are, for the error.
    there: their shapes.
    wanted: those of the model.
    way: out of it.

  Raises:
    UserError: a name or a shape differs.
  """
  for name in sorted(there.keys() | wanted.keys()):
    if there.get(name) != wanted.get(name):
      raise UserError(
        f'{where} is a checkpoint of another model: {name} is '
        f'{there.get(name, "absent")} in it and {wanted.get(name, "absent")} '
        f'in this one; {way}'
      )
