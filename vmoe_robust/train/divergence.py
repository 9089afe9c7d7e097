"""How far what a model answers to x_adv is from its answer to the image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vmoe_robust.models import Aux
from vmoe_robust.models.moe import Record

Logits = Float[Array, 'batch classes']
Values = Float[Array, 'batch']


def divergence(clean: Logits, adversarial: Logits) -> Values:
  """KL(clean || adversarial) of each image's classes, in nats."""
  before, after = jax.nn.log_softmax(clean), jax.nn.log_softmax(adversarial)
  return (jnp.exp(before) * (before - after)).sum(-1)


def route_divergence(clean: Aux, adversarial: Aux, batch: int) -> Values:
  """KL(clean || adversarial) of the routers' softmax, in nats.

  Mean over the tokens of an image, summed over sparse blocks.
  """
  total = jnp.zeros(batch)
  for block in clean.records:
    before, after = (
      jax.nn.log_softmax(scores(aux.records[block], batch))
      for aux in (clean, adversarial)
    )
    total += (jnp.exp(before) * (before - after)).sum(-1).mean(-1)
  return total


def scores(record: Record, batch: int) -> Float[Array, 'batch tokens experts']:
  """The routers' logits of each image; `batch` leaves padding out."""
  logits = record.routing.logits
  images = len(logits) * record.images  # groups may be padded
  return logits.reshape(images, -1, logits.shape[-1])[:batch]
