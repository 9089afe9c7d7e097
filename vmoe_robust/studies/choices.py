"""Experts chosen once more from the router's logits, and how often each is.

Studies of fewer experts, of another K and of noise share what is here. All that
they vary may be data of a compiled program.
"""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from vmoe_robust.config import UserError, batch_size
from vmoe_robust.data import eval_batches
from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.job import Job
from vmoe_robust.mesh import batch_sharding, replicated
from vmoe_robust.models import Model
from vmoe_robust.models.routers.routing import Routing
from vmoe_robust.models.routers.top_k import (
  gates_of,
  highest,
  pick,
  summing_to_one,
)
from vmoe_robust.robustness.target import as_floats, log_probabilities

_NO_GATE = -1e30  # a logit whose gate is exactly 0


def chosen_again(
  routing: Routing,
  router: ConfigDict,
  kept: Bool[Array, 'experts'],
  selected: Int[Array, ''] | int,
  bias: Float[Array, 'experts'] | None = None,
  noise: Float[Array, 'groups tokens experts'] | None = None,
) -> Routing:
  """The routing of a top_k router that has only the kept experts.

  Logits of the others are minus infinity before gates and choices are made of
  them, which is the model without these experts and their columns of the
  router: a softmax shares out their mass among the kept ones.

  Args:
    routing: of the router, whose logits are read.
    router: `config.model.router`.
    kept: which experts there are.
    selected: K, at most the choices that `routing` has. Where fewer experts are
      kept a token has all of these, and no more.
    bias: of each expert, where `router.balance_rate` has made one.
    noise: added to the logits, for the choice and for the gates.
  """
  logits, count = routing.logits, len(kept)
  if noise is not None:
    logits = logits + noise
  logits = jnp.where(kept, logits, -jnp.inf)
  gates = gates_of(logits, router.gate)
  order = logits
  if bias is not None:
    order = jnp.where(kept, gates + bias, -jnp.inf)
  choices = routing.experts.shape[-1]
  experts = highest(order, choices)
  there = jnp.arange(choices) < jnp.minimum(selected, kept.sum())
  at = lambda x: jnp.stack(
    [pick(x, expert) for expert in jnp.moveaxis(experts, -1, 0)], -1
  )
  top = jnp.where(there, at(gates), 0)
  if router.gate == 'uniform':
    top = jnp.broadcast_to(there / there.sum(), top.shape)
  elif router.renormalize:
    chosen = jnp.where(there, at(logits), _NO_GATE)
    top = summing_to_one(chosen, router.gate == 'sigmoid')
  return routing._replace(
    experts=jnp.where(there, experts, count).astype(routing.experts.dtype),
    gates=top.astype(routing.gates.dtype),
    probabilities=gates.astype(routing.probabilities.dtype),
  )


class Noise(NamedTuple):
  """One draw of noise, which follows the image."""

  scale: Float[Array, '']  # times the standard deviation of training
  keys: Key[Array, 'batch']


class Setting(NamedTuple):
  """What a model is asked to do with its weights; all of it may be traced."""

  kept: Bool[Array, 'blocks experts']
  selected: Int[Array, ''] | int  # K
  noise: Noise | None = None


def turned(model: Model, blocks: tuple[str, ...]) -> adversarial.Forward:
  """The dropless model whose context is a `Setting`.

  Its K is at most the model's own.
  """
  router = model.module.config.router

  def forward(params, images, mask, context: Setting):
    def intervene(block, tokens, routing):
      place = blocks.index(block)
      noise = None
      if context.noise is not None:
        noise = noise_of(context.noise, place, routing, router)
      return tokens, chosen_again(
        routing,
        router,
        context.kept[place],
        context.selected,
        bias_of(params, block, router),
        noise,
      )

    return model.apply(
      params, images, experts='dropless', mask=mask, intervene=intervene
    )

  return forward


def noise_of(
  noise: Noise, place: int, routing: Routing, router: ConfigDict
) -> Float[Array, 'groups tokens experts']:
  """What is added to the logits of the sparse block at `place`.

  As in training, normal with `router.noise_std` over the number of experts for
  a deviation, times the scale; all tokens of an image have one draw if they
  have one route.
  """
  logits = routing.logits
  shape = logits.shape[1:]
  if router.unit == 'image':
    shape = (1, shape[1])
  keys = jax.vmap(jax.random.fold_in, (0, None))(noise.keys, place)
  drawn = jax.vmap(lambda key: jax.random.normal(key, shape, logits.dtype))(
    keys
  )
  deviation = noise.scale * router.noise_std / logits.shape[-1]
  return jnp.broadcast_to(deviation * drawn, logits.shape).astype(logits.dtype)


def keys_of(
  key: Key[Array, ''], draws: int, index: Int[Array, 'batch']
) -> Key[Array, '{draws} batch']:
  """A key for each draw and image."""
  fold = jax.random.fold_in
  of_draw = lambda draw: jax.vmap(fold, (None, 0))(fold(key, draw), index)
  return jax.vmap(of_draw)(jnp.arange(draws))


def each_draw(
  forward: adversarial.Forward,
  params: PyTree,
  images: Array,
  mask: Array,
  setting: Setting,
  scale: Float[Array, ''],
  keys: Key[Array, 'draws batch'],
) -> Float[Array, 'draws batch classes']:
  """Logarithms of the probabilities that each draw of noise gives."""

  def one(keys):
    noisy = setting._replace(noise=Noise(scale, keys))
    return log_probabilities(forward(params, images, mask, noisy)[0])

  return jax.lax.map(one, keys)


def mean_of(
  draws: Float[Array, 'draws batch classes'],
) -> Float[Array, 'batch classes']:
  """The logarithm of the mean probabilities, by which noise is judged."""
  return jax.nn.logsumexp(draws, axis=0) - np.log(len(draws)).astype(np.float32)


def averaged(forward: adversarial.Forward) -> adversarial.Forward:
  """The mean over draws of noise; its context is (setting, scale, keys)."""

  def of_draws(params, images, mask, context):
    each = each_draw(forward, params, images, mask, *context)
    return mean_of(each), None

  return of_draws


def bias_of(
  params: PyTree, block: str, router: ConfigDict
) -> Float[Array, 'experts'] | None:
  """What is added to the gates where experts are chosen; None: nothing."""
  if not router.balance_rate:
    return None
  return params['Encoder'][block]['Moe']['Router']['bias']


def scores_of(
  config: ConfigDict, params: PyTree, block: str, routing: Routing
) -> Float[Array, 'groups tokens experts']:
  """What a top_k router orders experts by: logits, or gates and their bias."""
  bias = bias_of(params, block, config.model.router)
  return routing.logits if bias is None else routing.probabilities + bias


def uses(
  job: Job, blocks: tuple[str, ...]
) -> Int[np.ndarray, 'blocks experts']:
  """How often each expert is chosen on the clean images of the split.

  One pass of the dropless model over all examples; padding and examples that
  cannot be read do not count. It begins again in a run that goes on.
  """
  config, subject = job.config, job.classifier
  forward = adversarial.plain(subject.model)

  def count(params, batch):
    images, mask = as_floats(batch['image']), batch['mask']
    records = forward(params, images, mask, ())[1].records
    hot = [
      jax.nn.one_hot(
        records[block].routing.experts, config.model.experts, dtype=jnp.int32
      )
      for block in blocks
    ]
    return jnp.stack([one.sum((0, 1, 2)) for one in hot])

  count = jax.jit(count, out_shardings=replicated(subject.mesh))
  batches = eval_batches(
    config.data,
    job.source,
    batch_size=batch_size(config, 'study'),
    sharding=batch_sharding(subject.mesh),
  )
  total = np.zeros((len(blocks), config.model.experts), np.int64)
  with contextlib.closing(batches) as batches:
    for batch in batches:
      total += np.asarray(jax.device_get(count(subject.params, batch)))
  return total


def check_numbers(field: str, values, least: int, most: int, what: str) -> None:
  """Refuses numbers that are not of a model.

  Raises:
    UserError: one is no whole number from `least` to `most`.
  """
  for value in values:
    if not isinstance(value, int) or not least <= value <= most:
      raise UserError(
        f'{field}={tuple(values)} has {value!r}, and {what} are {least} to '
        f'{most} in this model; use those'
      )
