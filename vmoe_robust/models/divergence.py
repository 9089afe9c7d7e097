"""How far what a model answers to x_adv is from its answer to the image."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vmoe_robust.models.moe import Record

# By the name of the sparse block.
Scores = Mapping[str, Float[Array, 'batch tokens experts']]


def divergence(
  clean: Float[Array, '*batch classes'],
  adversarial: Float[Array, '*batch classes'],
) -> Float[Array, '*batch']:
  """KL(clean || adversarial) of the softmax of each row of logits, in nats."""
  before, after = jax.nn.log_softmax(clean), jax.nn.log_softmax(adversarial)
  return (jnp.exp(before) * (before - after)).sum(-1)


def route_divergence(
  clean: Scores, adversarial: Scores
) -> Float[Array, '*batch']:
  """KL(clean || adversarial) of the routers' softmax, in nats.

  Mean over the tokens of an image, summed over sparse blocks.

  Args:
    clean: the routers' logits of the images, by `route_scores`.
    adversarial: the same of x_adv.

  Returns:
    A number an image; 0.0 of a model without sparse blocks.
  """
  found = jnp.float32(0)
  for block, scores in clean.items():
    found += divergence(scores, adversarial[block]).mean(-1)
  return found


def route_scores(records: Mapping[str, Record], batch: int) -> Scores:
  """The routers' logits of each image, by block.

  Args:
    records: `Aux.records`.
    batch: number of images; padding behind them is left out.
  """
  found = {}
  for block, record in records.items():
    logits = record.routing.logits
    images = len(logits) * record.images  # groups may be padded
    found[block] = logits.reshape(images, -1, logits.shape[-1])[:batch]
  return found
