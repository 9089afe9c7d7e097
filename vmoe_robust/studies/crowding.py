"""How full experts are, and an attack that fills them over their capacity."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vmoe_robust.evaluate import adversarial
from vmoe_robust.models import Model, Record

# What comes from NumPy stays there.
_Array = TypeVar('_Array', Array, np.ndarray)


def crowded(model: Model) -> adversarial.Forward:
  """The model with capacity, whose logits say nothing.

  A group has to keep the same point for all its images, so that none may be
  more broken than another.
  """

  def forward(params, images, mask, context):
    del context
    return model.apply(params, images, experts='capacity', mask=mask)

  return adversarial.without_classes(forward)


def overflow(logits, aux, goal) -> Float[Array, 'batch']:
  """The share of a group's choices without room, mean over sparse blocks.

  It is a number of whole choices, which has no gradient. The gradient is that
  of the router's probabilities of the experts that overflow, and of the fullest
  one: the more of them, the more tokens without room.
  """
  del goal
  total = jnp.zeros(len(logits))
  for record in aux.records.values():
    share, _, _ = load(record)
    routing = record.routing
    there = chosen(record)
    lost = count_of(record, there & ~record.placement.kept)
    count = count_of(record, there)
    crowd = (lost > 0) | (count == count.max(-1, keepdims=True))
    wish = jnp.where(there[..., :1], routing.probabilities, 0)
    wish = jnp.nan_to_num((wish * crowd[:, None]).sum(-1).mean(-1))
    # The value of the first, and the gradient of the second.
    each = share + (wish - jax.lax.stop_gradient(wish))
    total += jnp.repeat(each, record.images)[: len(logits)]
  return total / len(aux.records)


def load(
  record: Record,
) -> tuple[
  Float[Array, 'groups'], Float[Array, 'groups'], Float[Array, 'groups']
]:
  """Of each group the share of choices without room, max / mean, and CV.

  Load counts what tokens chose, whether or not there was room.
  """
  there = chosen(record)
  lost = (there & ~record.placement.kept).sum((1, 2))
  share = lost / jnp.maximum(there.sum((1, 2)), 1)
  return share, *balance(count_of(record, there).astype(jnp.float32))


def chosen(record: Record) -> Bool[Array, 'groups tokens choices']:
  """Which choices are of an expert, and not of padding."""
  return record.routing.experts < record.routing.logits.shape[-1]


def count_of(
  record: Record, some: Bool[Array, 'groups tokens choices']
) -> Int[Array, 'groups experts']:
  """How many of some choices each expert has."""
  experts = record.routing.logits.shape[-1]
  hot = jax.nn.one_hot(record.routing.experts, experts, dtype=jnp.int32)
  return (hot * some[..., None]).sum((1, 2))


def balance(count: _Array) -> tuple[_Array, _Array]:
  """Maximum over mean, and CV, of counts [..., experts]; 0 of no counts.

  CV is the standard deviation over the mean.
  """
  average = count.mean(-1)
  some = average + (average == 0)  # of padding alone
  return count.max(-1) / some, count.std(-1) / some
