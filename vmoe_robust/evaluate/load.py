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
  checkpoint: str | os.PathLike, devices: list | None = None
) -> Restored:
  """Reads a saved model, spread over the devices there are.

  Args:
    checkpoint: a work directory, or `WORKDIR/checkpoints/STEP`.
    devices: other devices than all.

  Raises:
    UserError: there is no such checkpoint, or it is damaged.
  """
  workdir, step = locate(checkpoint)
  config = read_config(workdir)
  config.mesh.update(dict(data=-1, expert=-1, model=1))
  return restore(workdir, step, config, devices)


def restore(
  workdir: str, step: int, config: ConfigDict, devices: list | None = None
) -> Restored:
  """Reads the weights of a run (the averaged ones, if it kept them).

  Args:
    workdir: of the run.
    step: one of its checkpoints.
    config: of the run, with the mesh to spread it over.
    devices: other devices than all.

  Raises:
    UserError: the checkpoint is of another model.
  """
  devices = jax.devices() if devices is None else devices
  mesh = mesh_lib.create(mesh_shape(config, len(devices)), devices)
  size = config.data.image_size
  model = build(config.model, (size, size, config.model.channels), mesh)
  boxed = jax.eval_shape(model.init, jax.random.key(0))
  places = mesh_lib.tree_shardings(
    boxed, mesh, mesh_lib.rules(config.mesh.fsdp)
  )
  checkpoints = Checkpoints(workdir)
  name = checkpoints.weights(step)
  wanted = {name: abstract(unbox(boxed), places)}
  trees, _ = checkpoints.restore(step, wanted)
  checkpoints.close()
  return Restored(model, trees[name], config, mesh, workdir, step)
