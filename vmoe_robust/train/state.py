"""What a run carries from step to step, and how it lies on the mesh."""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.models import Model, unbox


class TrainState(flax.struct.PyTreeNode):
  """Everything a step changes; a checkpoint of it resumes exactly.

  Each part is also met as shapes or as shardings, in the same structure.
  """

  step: PyTree  # int32 scalar
  key: PyTree  # uint32 data of the key that every draw derives from
  params: PyTree
  opt_state: PyTree
  ema: PyTree  # averaged weights; () without averaging

  def evaluated(self) -> PyTree:
    """The weights to evaluate: the averaged ones, if there are any."""
    return self.ema if jax.tree.leaves(self.ema) else self.params

  def trees(self) -> dict[str, PyTree]:
    """The state as a checkpoint holds it: evaluation reads one tree alone."""
    rest = dict(step=self.step, key=self.key, opt_state=self.opt_state)
    trees = {'params': self.params, 'rest': rest}
    return trees | ({'ema': self.ema} if jax.tree.leaves(self.ema) else {})

  @classmethod
  def of(cls, trees: dict[str, PyTree]) -> 'TrainState':
    """The state whose `trees` these are."""
    return cls(
      params=trees['params'], ema=trees.get('ema', ()), **trees['rest']
    )


def create(
  model: Model,
  optimizer: optax.GradientTransformation,
  seed: int,
  ema: bool,
  mesh: Mesh,
  fsdp: bool,
  zero1: bool,
) -> tuple[TrainState, TrainState]:
  """A fresh state on the mesh, and the shardings of its parts.

  The weights are the same on every mesh: they are drawn by position. `fsdp`
  splits all of it over the data axis, `zero1` the optimizer's part alone
  (stages 3 and 1 of ZeRO, arXiv:1910.02054).
  """

  def init(key):
    for_weights, for_steps = jax.random.split(key)
    params = model.init(for_weights)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      key=jax.random.key_data(for_steps),
      params=params,
      opt_state=optimizer.init(params),
      # Copied: an array may not be donated twice.
      ema=jax.tree.map(jnp.copy, params) if ema else (),
    )

  key = jax.random.key(seed)
  shapes = jax.eval_shape(init, key)
  place = mesh_lib.tree_shardings
  shardings = place(shapes, mesh, mesh_lib.rules(fsdp))
  if zero1:
    moments = place(shapes.opt_state, mesh, mesh_lib.rules(fsdp=True))
    shardings = shardings.replace(opt_state=moments)
  fresh = jax.jit(lambda key: unbox(init(key)), out_shardings=shardings)
  return fresh(key), shardings
