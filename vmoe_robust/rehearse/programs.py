"""The programs of a run, compiled from shapes alone: no weight is made."""

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.config import batch_size
from vmoe_robust.cost.program import held
from vmoe_robust.evaluate import robustness
from vmoe_robust.models import Model, build
from vmoe_robust.train import optimizer as optimizer_lib
from vmoe_robust.train import state as state_lib
from vmoe_robust.train import step as step_lib


class Programs:
  """What `train/loop.py` jits, for devices that need not be there."""

  def __init__(self, config: ConfigDict, mesh: Mesh):
    """Traces the model; `config` is valid and knows the data's classes."""
    self.config, self.mesh, train = config, mesh, config.train
    size = config.data.image_size
    shape = (size, size, config.model.channels)
    self.model: Model = build(config.model, shape, mesh)
    self._trained = build(config.model, shape, mesh, train.remat)
    self._optimizer = optimizer_lib.make(train.optimizer, train.steps)
    places = []

    def create():
      state, found = state_lib.create(
        self.model,
        self._optimizer,
        config.seed,
        train.ema > 0,
        mesh,
        config.mesh.fsdp,
        config.mesh.zero1,
      )
      places.append(found)
      return state

    self.state: state_lib.TrainState = _placed(
      jax.eval_shape(create), places[0]
    )

  def compile(self, use: str) -> jax.stages.Compiled:
    """The program of use 'train' or 'attack'."""
    batch = self.batch(use)
    if use == 'attack':
      program = robustness.Program(self.model, self.config)._program
      eps = jax.ShapeDtypeStruct((), 'float32')
      return program.lower(self.state.evaluated(), batch, eps).compile()
    config, opt = self.config, self.config.train.optimizer
    rate = optimizer_lib.schedule(opt, config.train.steps)
    step = step_lib.make(
      self._trained, self._optimizer, rate, config, self.mesh
    )
    places = jax.tree.map(lambda x: x.sharding, self.state)
    step = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
    return step.lower(self.state, batch).compile()

  def batch(self, use: str) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as `data/pipeline.py` makes it, for use 'train' or 'attack'."""
    size, place = (
      batch_size(self.config, use),
      mesh_lib.batch_sharding(self.mesh),
    )
    fields = {
      'image': (self.model.image_shape, 'uint8'),
      'label': ((), 'int32'),
      'mask': ((), 'bool'),
      'index': ((), 'int32'),
    }
    return {
      name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=place)
      for name, (shape, dtype) in fields.items()
    }

  def held(self, use: str) -> dict[str, int]:
    """Bytes on each device that are there before the program starts."""
    parts = {'weights': held(self.state.params)}
    if use == 'train':
      parts['optimizer'] = held(self.state.opt_state)
      parts['averages'] = held(self.state.ema)
    return parts | {'batch': held(self.batch(use))}


def _placed(tree: PyTree, places: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    tree,
    places,
  )
