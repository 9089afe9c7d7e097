"""The routers' weights among all, and whether they learn."""

import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Array, Float, PyTree

from vmoe_robust import files
from vmoe_robust.distributed import fetch
from vmoe_robust.models import balance

# Each router's weights, by its block.
Weights = Mapping[str, PyTree]

_ROUTER = 'Router'
_START = 'router_start.npz'  # in the work directory


def of(params: PyTree) -> dict[str, PyTree]:
  """The weights of each router that has some, by its block."""
  return {
    name: block['Moe'][_ROUTER]
    for name, block in params['Encoder'].items()
    if _ROUTER in block.get('Moe', {})
  }


def start(
  workdir: str | os.PathLike, params: PyTree, begins: bool
) -> dict[str, PyTree] | None:
  """Where the routers of a run that starts from other weights started.

  The work directory keeps them, since a run that resumes has those weights no
  more; None if it does not.

  Args:
    workdir: of the run.
    params: the weights.
    begins: whether they are those before the first step, which are kept.
  """
  path = files.path(workdir) / _START
  if begins:
    found = fetch(of(params))
    if jax.process_index() == 0 and found:
      with files.replacing(path) as draft, draft.open('wb') as file:
        np.savez(file, **traverse_util.flatten_dict(found, sep='/'))
    return found
  if not path.exists():
    return None
  with path.open('rb') as file, np.load(file) as arrays:
    return traverse_util.unflatten_dict(dict(arrays), sep='/')


def without(gradient: PyTree) -> PyTree:
  """The same with zeros for routers."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.zeros_like(x) if _is_router(path) else x, gradient
  )


def merged(rest: PyTree, routers: PyTree) -> PyTree:
  """The routers of one tree of weights, and all else of another."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x, router: router if _is_router(path) else x, rest, routers
  )


def alone(params: PyTree) -> PyTree:
  """The same weights, of which the routers alone have a gradient."""
  return merged(jax.lax.stop_gradient(params), params)


def metrics(
  params: PyTree, gradient: PyTree, start: Weights | None
) -> dict[str, Float[Array, '']]:
  """Of each router the norm of its gradient, and its distance from its start.

  A router without either chooses as it was drawn, however well the model does.

  Args:
    params: the weights after a step.
    gradient: of that step, before it was clipped.
    start: the routers before the first step; None: not known.
  """
  found = {}
  for block, router in of(gradient).items():
    found[f'router_gradient_norm/{block}'] = optax.tree.norm(router)
  for block, router in of(params).items():
    if start is not None:
      # Not the biases of models/balance.py, which move without a gradient.
      learnt = {n: w for n, w in router.items() if n != balance.BIAS}
      before = {n: start[block][n] for n in learnt}
      moved = jax.tree.map(jnp.subtract, learnt, before)
      found[f'router_distance/{block}'] = optax.tree.norm(moved)
  return found


def _is_router(path) -> bool:
  return any(getattr(key, 'key', None) == _ROUTER for key in path)
