import jax
import numpy as np
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.models import build
from vmoe_robust.train import optimizer as optimizer_lib
from vmoe_robust.train import state as state_lib
from vmoe_robust.train import step as step_lib


def small():
  """A small V-MoE on 8x8 images in which every kind of draw is made."""
  config = config_lib.default()
  config.model.update(
    dict(
      patch=4, hidden=16, layers=2, heads=2, mlp=16, num_classes=3, channels=1
    )
  )
  config.model.update(dict(experts=4, moe_every=2, dropout=0.1))
  config.model.router.update(dict(selected=2, group_images=2))
  config.train.update(dict(batch_size=16, steps=5))
  # Adam would turn rounding of a gradient near zero into whole steps.
  config.train.optimizer.update(dict(name='sgd', learning_rate=0.1))
  return config


@pytest.fixture
def config():
  return small()


_steps = {}  # the compiled step of each configuration and mesh
_fresh = {}  # states on the host and their places, of each kind of run


@pytest.fixture(scope='module', autouse=True)
def forgotten():
  """Compiled steps are those of one file: a process can keep only so many."""
  yield
  _steps.clear()


def fresh_state(model, optimizer, config, mesh):
  """What a run starts from; the program that draws it is traced once."""
  of = {name: config[name] for name in ('model', 'seed', 'mesh')}
  of |= {name: config.train[name] for name in ('optimizer', 'steps', 'ema')}
  kind = (str(of), mesh.devices.shape)
  if kind not in _fresh:
    state, places = state_lib.create(
      model,
      optimizer,
      config.seed,
      config.train.ema > 0,
      mesh,
      config.mesh.fsdp,
      config.mesh.zero1,
    )
    _fresh[kind] = jax.device_get(state), places
  host, places = _fresh[kind]
  # A step donates its state, which must not be the memory that is kept here.
  return jax.device_put(host, places, may_alias=False), places


class Run:
  """A model's steps on a mesh, without files."""

  def __init__(self, config, shape):
    count = int(np.prod(shape))
    self.config = config = config.copy_and_resolve_references()
    self.mesh = mesh_lib.create(shape, jax.devices()[:count])
    self.model = build(config.model, (8, 8, 1), self.mesh, config.train.remat)
    opt = config.train.optimizer
    optimizer = optimizer_lib.make(opt, config.train.steps)
    self.state, self.places = fresh_state(
      self.model, optimizer, config, self.mesh
    )
    if (kind := (str(config), shape)) not in _steps:
      rate = optimizer_lib.schedule(opt, config.train.steps)
      step = step_lib.make(self.model, optimizer, rate, config, self.mesh)
      _steps[kind] = jax.jit(
        step, donate_argnums=0, out_shardings=(self.places, None)
      )
    self.step = _steps[kind]

  def batch(self, seed):
    rng = np.random.default_rng(seed)
    size = self.config.train.batch_size
    batch = {
      'image': rng.integers(0, 256, (size, 8, 8, 1), np.uint8),
      'label': rng.integers(0, 3, size).astype(np.int32),
      'mask': np.arange(size) != 3,
    }
    return jax.device_put(batch, mesh_lib.batch_sharding(self.mesh))

  def losses(self, steps):
    found = []
    for i in range(steps):
      self.state, metrics = self.step(self.state, self.batch(i))
      found.append(float(metrics['loss']))
    return found


@pytest.fixture
def run_of():
  return Run
