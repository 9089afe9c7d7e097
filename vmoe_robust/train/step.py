"""One training step: `(state, batch) -> (state, metrics)`."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from vmoe_robust.attacks.interface import where
from vmoe_robust.config import clean_images
from vmoe_robust.data import mixup
from vmoe_robust.mesh import BATCH_AXES, batch_shards
from vmoe_robust.models import Model, balance, losses
from vmoe_robust.train import objective as objective_lib
from vmoe_robust.train import routers
from vmoe_robust.train.objective import OBJECTIVES, Found, Given
from vmoe_robust.train.state import TrainState

# Folded into a step's key, so that attacks draw unlike the model.
_FOR_ATTACK = 2**20
_FOR_ROUTERS = 2**20 + 1

Batch = dict[str, Array]
# Scalars, but for the load of each expert.
Metrics = dict[str, Float[Array, '...']]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Weights(NamedTuple):
  """1 / the number of images of the whole batch, without padding.

  `groups` is the number of groups of images that share capacity, of those with
  an image.
  """

  images: Float[Array, '']
  clean: Float[Array, '']  # that stay clean
  attacked: Float[Array, '']  # that do not
  groups: Float[Array, '']


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
    batch |= {'stays': _stays(batch['index'], settings.clean_share)}
    weights = _weights(batch['mask'], batch['stays'], config)

    def gradient_of(loss, params, key, learns=lambda params: params):
      part = partial(
        _part,
        loss=loss,
        learns=learns,
        key=key,
        eps=eps,
        weights=weights,
        model=model,
        config=config,
      )
      if accumulate == 1:
        return part(params, batch)
      parts = jax.tree.map(partial(_split, n=accumulate, mesh=mesh), batch)
      return _accumulate(part, params, parts)

    def updated(gradient):
      return optimizer.update(gradient, state.opt_state, state.params)

    gradient, metrics = gradient_of(objective.loss, state.params, key)
    if objective.router_loss is None:
      updates, opt_state = updated(gradient)
    else:
      # Two steps, each of which is clipped alone. The routers' is of the
      # weights that the model's step leads to.
      gradient = routers.without(gradient)
      updates, opt_state = updated(gradient)
      ahead = routers.merged(
        optax.apply_updates(state.params, updates), state.params
      )
      again = jax.random.fold_in(key, _FOR_ROUTERS)  # noise of its own
      of_routers, found = gradient_of(
        objective.router_loss, ahead, again, routers.alone
      )
      metrics['router_loss'] = found['loss']
      gradient = routers.merged(gradient, of_routers)
      updates, opt_state = routers.merged(
        (updates, opt_state), updated(of_routers)
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


def _part(
  params, batch: Batch, *, loss, learns, key, eps, weights, model, config
):
  """A microbatch's share of the gradient of the whole batch, and its metrics.

  x_adv are found first, with weights that nothing differentiates. `learns` cuts
  the gradient off from the weights that this loss does not teach.
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
    x_adv = where(batch['stays'], given.images, x_adv)

  def total(params):
    answer = partial(answers, learns(params), *as_trained)
    found = loss(answer, given, x_adv, settings)
    metrics = _metrics(found, given, batch['stays'], weights, model, config)
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
      for_mixup,
      images,
      wanted,
      batch['index'],
      config.data.mixup,
      batch['mask'],
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
    one_class=_is_one_class(batch['label'], config),
  )


def _stays(index: Int[Array, 'batch'], share: float) -> Bool[Array, 'batch']:
  """Which images stay clean: a share of any consecutive ones, evenly spread."""
  count = [clean_images(number, share) for number in range(len(index) + 1)]
  # Looked up by the images' places. As a constant it leaves XLA free to order
  # collectives otherwise on each device, and on a CPU they wait for ever.
  count = jnp.asarray(np.array(count, np.int32))
  return count[index + 1] > count[index]


def _weights(mask: Array, stays: Array, config: ConfigDict) -> Weights:
  each = lambda chosen: 1 / jnp.maximum(chosen.sum(dtype=jnp.float32), 1)
  return Weights(
    each(mask), each(mask & stays), each(mask & ~stays), _groups(mask, config)
  )


def _groups(mask: Array, config: ConfigDict) -> Float[Array, '']:
  """How many groups have an image; see `models.Model.apply`."""
  model = config.model
  alone = model.router.name == 'soft' or not model.experts
  together = 1 if alone else model.router.group_images
  whole = jnp.pad(mask, (0, -len(mask) % together))
  return whole.reshape(-1, together).any(1).sum(dtype=jnp.float32)


def _is_one_class(label: Array, config: ConfigDict) -> bool:
  softmax = config.train.loss == 'softmax'
  return softmax and label.ndim == 1 and not config.data.mixup


def _metrics(
  found: Found, given: Given, stays, weights: Weights, model, config
) -> Metrics:
  """A microbatch's share of the metrics of the whole batch.

  'accuracy' and 'cross_entropy' are of images as they are, 'adversarial_' of
  x_adv, and each is there only where the objective asks the model about such.
  """
  mean = lambda x: jnp.where(given.mask, x, 0).sum() * weights.images
  auxiliary = found.router_loss
  if config.train.accumulate > 1:
    # The mean over the groups of a microbatch, which may have fewer.
    part = _groups(given.mask, config) / jnp.maximum(weights.groups, 1)
    auxiliary *= part
  metrics = {'loss': mean(found.loss) + auxiliary, 'auxiliary_loss': auxiliary}
  shown = []
  if found.clean is not None:
    shown.append(('', found.clean, given.mask, weights.images))
  if found.adversarial is not None:
    here, there = given.mask & stays, given.mask & ~stays
    both = found.adversarial
    if config.train.objective.clean_share:
      shown.append(('', both, here, weights.clean))
    shown.append(('adversarial_', both, there, weights.attacked))
  for name, logits, which, weight in shown:
    loss = losses.classification(logits, given.wanted, given.kind)
    right = losses.top_is_right(logits, given.wanted)
    metrics[f'{name}cross_entropy'] = jnp.where(which, loss, 0).sum() * weight
    metrics[f'{name}accuracy'] = jnp.where(which, right, 0).sum() * weight
  records = found.aux.records
  if balance.chooses(config.model):
    for name, record in records.items():
      wished = record.routing.experts < config.model.experts
      tokens = wished[0].size / record.images  # choices of an image
      lost = (wished & ~record.placement.kept).sum()
      metrics[f'dropped/{name}'] = lost * weights.images / tokens
  mesh = model.module.mesh
  loads = balance.loads(records, config.model, weights.images, mesh)
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
