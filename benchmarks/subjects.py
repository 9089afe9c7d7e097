"""What benchmarks time: the sparse layer, its dense twin, and whole models."""

from collections.abc import Callable
from concurrent import futures
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.attacks import Ensemble
from vmoe_robust.evaluate.attack import Attacker
from vmoe_robust.models import build
from vmoe_robust.models.moe import Grouping, Moe
from vmoe_robust.robustness import sweep
from vmoe_robust.robustness.images import InMemory
from vmoe_robust.robustness.measure import Arrays
from vmoe_robust.robustness.programs import Programs
from vmoe_robust.robustness.resume import Unfinished
from vmoe_robust.robustness.target import Target
from vmoe_robust.train import optimizer as optimizer_lib
from vmoe_robust.train import state as state_lib
from vmoe_robust.train import step as step_lib


def sparse(
  dim: int,
  mlp: int,
  experts: int,
  selected: int,
  dropless: bool,
  dtype: jnp.dtype = jnp.float32,
  tokens: int = 64,
):
  """The layer as a function of weights and tokens, and its fresh weights."""
  config = config_lib.default().model
  config.update(hidden=dim, mlp=mlp, experts=experts)
  config.router.selected = selected
  layer = Moe(config, dtype, mesh_lib.create((1, 1, 1)))

  def grouping(images):
    return Grouping(
      mask=jnp.ones(images, bool),
      index=jnp.arange(images),
      images=images,
      dropless=dropless,
      train=False,
    )

  def apply(params, x):
    return layer.apply({'params': params}, x, grouping(len(x)))[0]

  x = jnp.zeros((1, tokens, dim))
  fresh = layer.init(jax.random.key(0), x, grouping(1))['params']
  return apply, nn.unbox(fresh)


def dense(dim: int, mlp: int):
  """A plain MLP as a function of weights and tokens, and its weights."""
  keys = jax.random.split(jax.random.key(1))
  draw = nn.initializers.xavier_uniform()
  params = dict(
    w1=draw(keys[0], (dim, mlp)),
    b1=jnp.zeros(mlp),
    w2=draw(keys[1], (mlp, dim)),
    b2=jnp.zeros(dim),
  )

  def apply(params, x):
    hidden = nn.gelu(x @ params['w1'] + params['b1'])
    return hidden @ params['w2'] + params['b2']

  return apply, params


def layer_programs(apply, params, x, cotangent) -> dict:
  """What is timed, compiled: functions of no arguments, not waited for."""

  def loss(params, x):
    return (apply(params, x) * cotangent).sum()

  found = {
    'fwd': apply,
    'fwd+bwd': jax.value_and_grad(loss, (0, 1)),
    'grad-x': jax.value_and_grad(loss, 1),
  }
  lowered = [jax.jit(f).lower(params, x) for f in found.values()]
  with futures.ThreadPoolExecutor(len(found)) as threads:
    ready = list(threads.map(lambda f: f.compile(), lowered))
  return {
    name: partial(f, params, x) for name, f in zip(found, ready, strict=True)
  }


def model_programs(config: config_lib.ConfigDict) -> dict:
  """What is timed, as functions of no arguments."""
  size, number = config.data.image_size, config.train.batch_size
  mesh, settings = mesh_lib.create((1, 1, 1), jax.devices()[:1]), config.train
  model = build(config.model, (size, size, 3), mesh)
  optimizer = optimizer_lib.make(settings.optimizer, settings.steps)
  state, _ = state_lib.create(model, optimizer, 0, False, mesh, False, False)
  rate = optimizer_lib.schedule(settings.optimizer, settings.steps)
  step = step_lib.make(model, optimizer, rate, config, mesh)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (number, size, size, 3), np.uint8),
    'label': rng.integers(0, 1000, number).astype(np.int32),
    'mask': np.ones(number, bool),
    'index': np.arange(number, dtype=np.int32),
  }
  params = jax.tree.map(jnp.copy, state.params)
  batch = jax.device_put(batch)  # as prefetching has done for a run
  eps, attack = jnp.float32(8 / 255), Attacker(model, config).programs(params)
  batch_of_attack = batch | {'target': batch['label']}
  lowered = [
    jax.jit(step, donate_argnums=0).lower(state, batch),
    attack.attempt(0).lower(params, batch_of_attack, eps),
  ]
  with futures.ThreadPoolExecutor(2) as threads:
    step, attack = threads.map(lambda program: program.compile(), lowered)

  def train():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))

  def pgd():
    jax.block_until_ready(attack(params, batch_of_attack, eps))

  return {'train': train, 'PGD': pgd}


def attack(
  target: Target,
  chosen: Ensemble,
  images: np.ndarray,
  labels: np.ndarray,
  norm: str,
  eps: float,
  batch_size: int,
) -> Callable[[], float]:
  """What `robust_accuracy` does, with programs that are compiled once.

  A call attacks all images again and returns the share that stays right.
  """
  programs = Programs(target, chosen, norm=norm, seed=0, batch_size=batch_size)
  rows = Arrays(images, labels.astype(np.int32))

  def run():
    kept = InMemory(rows.floats())
    found = sweep.run(
      programs,
      rows,
      (eps,),
      unfinished=Unfinished(None, {}),
      keeper=lambda _: kept,
    )
    columns = found.columns
    return float((columns['prediction_after'] == columns['label']).mean())

  return run
