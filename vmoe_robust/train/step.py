"""One training step: `(state, batch) -> (state, metrics)`."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vmoe_robust.data import mixup
from vmoe_robust.mesh import BATCH_AXES, batch_shards
from vmoe_robust.models import Model, balance, losses
from vmoe_robust.train.state import TrainState

Batch = dict[str, Array]
# Scalars, but for the load of each expert.
Metrics = dict[str, Float[Array, '...']]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make(
  model: Model,
  optimizer: optax.GradientTransformation,
  rate: optax.Schedule,
  config: ConfigDict,
  mesh: Mesh,
) -> Step:
  """The step as a pure function, to be jitted with the state donated."""
  objective = partial(_objective, model=model, config=config)
  accumulate = config.train.accumulate

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    key = jax.random.wrap_key_data(state.key)
    key = jax.random.fold_in(key, state.step)
    batch = dict(batch, index=jnp.arange(batch['mask'].shape[0]))
    weight = 1 / jnp.maximum(batch['mask'].sum(dtype=jnp.float32), 1)
    part = jax.value_and_grad(objective, has_aux=True)
    part = partial(part, key=key, weight=weight)
    if accumulate == 1:
      (_, metrics), gradient = part(state.params, batch)
    else:
      parts = jax.tree.map(partial(_split, n=accumulate, mesh=mesh), batch)
      gradient, metrics = _accumulate(part, state.params, parts)
    updates, opt_state = optimizer.update(
      gradient, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    params = balance.moved(params, metrics, config.model)
    ema = state.ema
    if config.train.ema:
      ema = optax.incremental_update(params, ema, 1 - config.train.ema)
    metrics['gradient_norm'] = optax.tree.norm(gradient)
    metrics['update_norm'] = optax.tree.norm(updates)
    metrics['learning_rate'] = jnp.asarray(rate(state.step), jnp.float32)
    state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state, ema=ema
    )
    return state, metrics

  return step


def _objective(
  params, batch: Batch, *, key, weight, model: Model, config: ConfigDict
):
  """A microbatch's share of the loss of the whole batch, and its metrics."""
  for_mixup, for_model = jax.random.split(key)
  images = batch['image'].astype(jnp.float32) / 255
  wanted = losses.targets(
    batch['label'], config.model.num_classes, config.train.label_smoothing
  )
  if config.data.mixup:
    images, wanted = mixup(
      for_mixup, images, wanted, batch['index'], config.data.mixup
    )
  logits, aux = model.apply(
    params,
    images,
    experts=config.train.experts,
    mask=batch['mask'],
    index=batch['index'],
    key=for_model,
    labels=wanted.argmax(-1),
  )
  loss = losses.classification(logits, wanted, config.train.loss)
  right = losses.top_is_right(logits, wanted)
  mean = lambda x: jnp.where(batch['mask'], x, 0).sum() * weight
  auxiliary = aux.loss / config.train.accumulate
  metrics = {
    'loss': mean(loss) + auxiliary,
    'cross_entropy': mean(loss),
    'auxiliary_loss': auxiliary,
    'accuracy': mean(right),
  }
  if balance.chooses(config.model):
    for name, record in aux.records.items():
      wished = record.routing.experts < config.model.experts
      tokens = wished[0].size / record.images  # choices of an image
      lost = (wished & ~record.placement.kept).sum()
      metrics[f'dropped/{name}'] = lost * weight / tokens
  loads = balance.loads(aux.records, config.model, weight, model.module.mesh)
  return metrics['loss'], metrics | loads


def _accumulate(part, params, parts):
  """Sums gradients and metrics over microbatches, one after another."""

  def body(carry, batch):
    (_, metrics), gradient = part(params, batch)
    return jax.tree.map(jnp.add, carry, (gradient, metrics)), None

  first = jax.tree.map(lambda x: x[0], parts)
  (_, metrics), gradient = jax.eval_shape(part, params, first)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), (gradient, metrics)
  )
  return jax.lax.scan(body, zeros, parts)[0]


def _split(x: Array, *, n: int, mesh: Mesh) -> Array:
  """Microbatches on the leading axis, each device keeping its own rows."""
  shards = batch_shards(mesh)
  x = x.reshape(shards, n, -1, *x.shape[1:]).swapaxes(0, 1)
  x = x.reshape(n, -1, *x.shape[3:])
  spec = NamedSharding(mesh, P(None, BATCH_AXES))
  return jax.lax.with_sharding_constraint(x, spec)
