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

from vmoe_robust.attacks.interface import where
from vmoe_robust.data import mixup
from vmoe_robust.mesh import BATCH_AXES, batch_shards
from vmoe_robust.models import Model, balance, losses
from vmoe_robust.train import objective as objective_lib
from vmoe_robust.train import routers
from vmoe_robust.train.objective import OBJECTIVES, Found, Given
from vmoe_robust.train.state import TrainState

# Folded into a step's key, so that attacks draw unlike the model.
_FOR_ATTACK = 2**20

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
  start: routers.Weights | None = None,
) -> Step:
  """The step as a pure function, to be jitted with the state donated.

  Args:
    model: as it is trained, which may compute things again to save memory.
    optimizer: what turns gradients into updates.
    rate: of the optimizer, for the metrics.
    config: of the run.
    mesh: the device mesh.
    start: the routers' weights before the first step, by `routers.of`; their
      distance from it is a metric. None: it is not known.
  """
  settings, accumulate = config.train.objective, config.train.accumulate
  objective = OBJECTIVES[settings.name]

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    key = jax.random.wrap_key_data(state.key)
    key = jax.random.fold_in(key, state.step)
    batch = dict(batch, index=jnp.arange(batch['mask'].shape[0]))
    eps = objective_lib.eps_at(settings, state.step, config.train.steps)
    weight = 1 / jnp.maximum(batch['mask'].sum(dtype=jnp.float32), 1)

    def gradient_of(loss, params):
      part = partial(
        _part,
        loss=loss,
        key=key,
        eps=eps,
        weight=weight,
        model=model,
        config=config,
      )
      if accumulate == 1:
        return part(params, batch)
      parts = jax.tree.map(partial(_split, n=accumulate, mesh=mesh), batch)
      return _accumulate(part, params, parts)

    gradient, metrics = gradient_of(objective.loss, state.params)
    if objective.router_loss is not None:
      # The routers' step is of the weights that the model's step leads to.
      rest = routers.without(gradient)
      updates, _ = optimizer.update(rest, state.opt_state, state.params)
      ahead = routers.merged(
        optax.apply_updates(state.params, updates), state.params
      )
      of_routers, found = gradient_of(objective.router_loss, ahead)
      gradient = routers.merged(gradient, of_routers)
      metrics['router_loss'] = found['loss']
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
    if objective.attack is not None:
      metrics['eps'] = eps
    metrics |= routers.metrics(params, gradient, start)
    state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state, ema=ema
    )
    return state, metrics

  return step


def _part(params, batch: Batch, *, loss, key, eps, weight, model, config):
  """A microbatch's share of the gradient of the whole batch, and its metrics.

  x_adv are found first, with weights that nothing differentiates.
  """
  settings = config.train.objective
  objective = OBJECTIVES[settings.name]
  for_mixup, for_model = jax.random.split(key)
  given = _given(batch, for_mixup, key, eps, config)

  def answers(params, experts, key, x):
    return model.apply(
      params,
      x,
      experts=experts,
      mask=given.mask,
      index=given.index,
      key=key,
      labels=given.wanted.argmax(-1),
    )

  as_trained = config.train.experts, for_model
  x_adv = given.images
  if objective.attack is not None:
    inner = as_trained if settings.inner == 'training' else ('dropless', None)
    x_adv = objective.attack(partial(answers, params, *inner), given, settings)
    stays = _stays(given.index, settings.clean_share)
    x_adv = where(stays, given.images, x_adv)

  def total(params):
    found = loss(partial(answers, params, *as_trained), given, x_adv, settings)
    metrics = _metrics(found, given, weight, model, config)
    return metrics['loss'], metrics

  (_, metrics), gradient = jax.value_and_grad(total, has_aux=True)(params)
  return gradient, metrics


def _given(batch: Batch, for_mixup, key, eps, config: ConfigDict) -> Given:
  images = batch['image'].astype(jnp.float32) / 255
  wanted = losses.targets(
    batch['label'], config.model.num_classes, config.train.label_smoothing
  )
  if config.data.mixup:
    images, wanted = mixup(
      for_mixup, images, wanted, batch['index'], config.data.mixup
    )
  for_attack = jax.random.fold_in(key, _FOR_ATTACK)
  return Given(
    images=images,
    wanted=wanted,
    mask=batch['mask'],
    index=batch['index'],
    keys=jax.vmap(jax.random.fold_in, (None, 0))(for_attack, batch['index']),
    eps=eps,
    kind=config.train.loss,
    one_class=batch['label'].ndim == 1 and not config.data.mixup,
  )


def _stays(index: Array, share: float) -> Array:
  """Which images stay clean: a share of any consecutive ones, evenly spread."""
  before, after = jnp.floor(index * share), jnp.floor((index + 1) * share)
  return after > before


def _metrics(found: Found, given: Given, weight, model, config) -> Metrics:
  """A microbatch's share of the metrics of the whole batch.

  'accuracy' and 'cross_entropy' are of the clean images where the objective
  asks for these, and otherwise of what it asks for, x_adv.
  """
  mean = lambda x: jnp.where(given.mask, x, 0).sum() * weight
  auxiliary = found.router_loss / config.train.accumulate
  metrics = {'loss': mean(found.loss) + auxiliary, 'auxiliary_loss': auxiliary}
  shown = {'': found.adversarial if found.clean is None else found.clean}
  if found.adversarial is not None:
    shown['adversarial_'] = found.adversarial
  for name, logits in shown.items():
    loss = losses.classification(logits, given.wanted, given.kind)
    right = losses.top_is_right(logits, given.wanted)
    metrics[f'{name}cross_entropy'] = mean(loss)
    metrics[f'{name}accuracy'] = mean(right)
  records = found.aux.records
  if balance.chooses(config.model):
    for name, record in records.items():
      wished = record.routing.experts < config.model.experts
      tokens = wished[0].size / record.images  # choices of an image
      lost = (wished & ~record.placement.kept).sum()
      metrics[f'dropped/{name}'] = lost * weight / tokens
  loads = balance.loads(records, config.model, weight, model.module.mesh)
  return metrics | loads


def _accumulate(part, params, parts):
  """Sums gradients and metrics over microbatches, one after another."""

  def body(carry, batch):
    return jax.tree.map(jnp.add, carry, part(params, batch)), None

  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(part, params, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(body, zeros, parts)[0]


def _split(x: Array, *, n: int, mesh: Mesh) -> Array:
  """Microbatches on the leading axis, each device keeping its own rows."""
  shards = batch_shards(mesh)
  x = x.reshape(shards, n, -1, *x.shape[1:]).swapaxes(0, 1)
  x = x.reshape(n, -1, *x.shape[3:])
  spec = NamedSharding(mesh, P(None, BATCH_AXES))
  return jax.lax.with_sharding_constraint(x, spec)
