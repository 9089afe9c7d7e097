"""The programs of a run, compiled from shapes alone: no weight is made."""

import dataclasses
import math

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.attacks import Stage
from vmoe_robust.config import batch_size
from vmoe_robust.cost import hardware
from vmoe_robust.cost.program import held
from vmoe_robust.data import known
from vmoe_robust.evaluate.attack import Attacker
from vmoe_robust.models import Model, build
from vmoe_robust.train import optimizer as optimizer_lib
from vmoe_robust.train import state as state_lib
from vmoe_robust.train import step as step_lib

TRAIN, JUDGE = 'train', 'judge'


class Programs:
  """What `train/loop.py` and the attack jit, for devices that may be absent."""

  def __init__(self, config: ConfigDict, mesh: Mesh):
    """Traces the model; `config` is valid and knows the data's classes.

    Raises:
      UserError: the attack does not fit the model.
    """
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
    attacker = Attacker(self.model, config)
    self._attack = attacker.programs(self.state.evaluated())
    self._attempts = {}

  def stages(self) -> dict[str, Stage]:
    """The stages of the attack, by names of their own."""
    out = {}
    for number in range(len(self._attack.ensemble.stages)):
      stage = self._attack.stage(number)
      again = sum(other.name == stage.name for other in out.values())
      out[f'{stage.name}#{again + 1}' if again else stage.name] = stage
    return out

  @property
  def judged(self) -> int:
    """Passes of the judge: of x_adv, and of what it is compared with."""
    return 1 if self._attack.target.compare is None else 2

  def compile(self, name: str) -> jax.stages.Compiled:
    """A program of the run.

    Args:
      name: 'train'; a stage of the attack, one run of which on a batch is one
        program; or 'judge', which follows each of these runs.
    """
    if name == TRAIN:
      return self._training_step()
    params, batch = self.state.evaluated(), self.batch('attack')
    if name == JUDGE:
      x_adv = self._floats()
      return self._attack.measure.lower(params, batch, x_adv).compile()
    # Programs of stages that are alike draw differently, and cost the same.
    alike = dataclasses.replace(self.stages()[name], name='', targets=0)
    if alike not in self._attempts:
      number = list(self.stages()).index(name)
      batch |= {'target': batch['index']}
      eps = jax.ShapeDtypeStruct((), 'float32')
      lowered = self._attack.attempt(number).lower(params, batch, eps)
      self._attempts[alike] = lowered.compile()
    return self._attempts[alike]

  def batch(self, use: str) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as `data/pipeline.py` makes it, for use 'train' or 'attack'."""
    fields = {
      'image': (self.model.image_shape, 'uint8'),
      'label': ((), 'int32'),
      'mask': ((), 'bool'),
      'index': ((), 'int32'),
    }
    return {
      name: self._of_batch(use, shape, dtype)
      for name, (shape, dtype) in fields.items()
    }

  def held(self, use: str) -> dict[str, int]:
    """Bytes on each device that are there before the program starts."""
    parts = {'weights': held(self.state.params)}
    # The attack at the end is without it.
    if use == 'train' or self.config.attack.every_steps:
      parts['optimizer'] = held(self.state.opt_state)
      parts['averages'] = held(self.state.ema)
      parts['images'] = self._resident()
    if use != 'train':  # in which images wait for the judge
      parts['outbox'] = 2 * held(self._floats())
    return parts | {'batch': held(self.batch(use))}

  def _resident(self) -> int:
    chip = hardware.chip(self.mesh.devices.flat[0].device_kind)
    memory = chip.hbm if chip and chip.hbm else math.inf
    return known.resident_bytes(
      self.config.data, self.config.model.channels, memory
    )

  def _of_batch(self, use, shape, dtype) -> jax.ShapeDtypeStruct:
    size = batch_size(self.config, use)
    place = mesh_lib.batch_sharding(self.mesh)
    return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=place)

  def _floats(self) -> jax.ShapeDtypeStruct:
    return self._of_batch('attack', self.model.image_shape, 'float32')

  def _training_step(self) -> jax.stages.Compiled:
    config, opt = self.config, self.config.train.optimizer
    rate = optimizer_lib.schedule(opt, config.train.steps)
    step = step_lib.make(
      self._trained, self._optimizer, rate, config, self.mesh
    )
    places = jax.tree.map(lambda x: x.sharding, self.state)
    step = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
    return step.lower(self.state, self.batch('train')).compile()


def _placed(tree: PyTree, places: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    tree,
    places,
  )
