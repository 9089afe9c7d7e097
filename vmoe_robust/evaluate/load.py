"""A saved model, ready to run: all that evaluation needs is the workdir."""

import dataclasses
import os

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import Checkpoints, abstract, locate, read_config
from vmoe_robust.config import ConfigDict, mesh_shape
from vmoe_robust.models import Model, build, unbox


@dataclasses.dataclass(frozen=True)
class Restored:
  """A model with its weights on a mesh, and where they come from."""

  model: Model
  params: PyTree
  config: ConfigDict  # of the run that saved it
  mesh: Mesh
  workdir: str | os.PathLike
  step: int


def load(
  checkpoint: str | os.PathLike,
  mesh: ConfigDict | None = None,
  devices: list | None = None,
) -> Restored:
  """Reads the weights of a run (the averaged ones, if it kept them).

  Args:
    checkpoint: a work directory, or `WORKDIR/checkpoints/STEP`.
    mesh: another `config.mesh` than the run's.
    devices: other devices than all.

  Raises:
    UserError: there is no such checkpoint, or it is damaged.
  """
  workdir, step = locate(checkpoint)
  config = read_config(workdir)
  config.mesh.update(
    dict(data=-1, expert=-1, model=1) if mesh is None else mesh
  )
  devices = jax.devices() if devices is None else devices
  grid = mesh_lib.create(mesh_shape(config, len(devices)), devices)
  size = config.data.image_size
  shape = (size, size, config.model.channels)
  model = build(config.model, shape, grid)
  boxed = jax.eval_shape(model.init, jax.random.key(0))
  places = mesh_lib.tree_shardings(
    boxed, grid, mesh_lib.rules(config.mesh.fsdp)
  )
  checkpoints = Checkpoints(workdir)
  name = 'ema' if checkpoints.holds(step, 'ema') else 'params'
  wanted = {name: abstract(unbox(boxed), places)}
  trees, _ = checkpoints.restore(step, wanted)
  checkpoints.close()
  return Restored(model, trees[name], config, grid, workdir, step)
