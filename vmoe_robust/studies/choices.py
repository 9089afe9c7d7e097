"""Experts chosen once more from the router's logits, and how often each is.

Studies of fewer experts, of another K and of noise share what is here. All that
they vary may be data of a compiled program.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict

from vmoe_robust.config import UserError, batch_size
from vmoe_robust.data import eval_batches
from vmoe_robust.evaluate import adversarial
from vmoe_robust.evaluate.job import Job
from vmoe_robust.mesh import batch_sharding, replicated
from vmoe_robust.models.routers.routing import Routing
from vmoe_robust.models.routers.top_k import gates_of, highest, pick
from vmoe_robust.robustness.target import as_floats


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
  top = [pick(gates, expert) for expert in jnp.moveaxis(experts, -1, 0)]
  top = jnp.where(there, jnp.stack(top, -1), 0)
  if router.gate == 'uniform':
    top = jnp.broadcast_to(there / there.sum(), top.shape)
  elif router.renormalize:
    whole = top.sum(-1, keepdims=True)
    top = top / jnp.maximum(whole, jnp.finfo(top.dtype).tiny)
  return routing._replace(
    experts=jnp.where(there, experts, count).astype(routing.experts.dtype),
    gates=top.astype(routing.gates.dtype),
    probabilities=gates.astype(routing.probabilities.dtype),
  )


def bias_of(
  params: PyTree, block: str, router: ConfigDict
) -> Float[Array, 'experts'] | None:
  """What is added to the gates where experts are chosen; None: nothing."""
  if not router.balance_rate:
    return None
  return params['Encoder'][block]['Moe']['Router']['bias']


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
