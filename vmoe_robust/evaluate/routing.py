"""Which experts tokens use, and how that differs between two images."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from vmoe_robust.models import Record

Selected = Bool[Array, 'batch tokens experts']


def selected(
  record: Record, model: ConfigDict, batch: int
) -> tuple[Selected, Selected]:
  """The experts each token selected, before and after capacity.

  Of Soft MoE, where every expert sees every token, it is the expert whose
  slot weighs most in a token's output.
  """
  routing, placement = record.routing, record.placement
  experts, kept = routing.experts, placement.kept
  if model.router.name == 'soft':
    heaviest = routing.gates.argmax(-1)[..., None] // model.router.slots
    experts, kept = heaviest, jnp.ones_like(heaviest, bool)
  # Index E, of padding, is no expert's.
  chosen = jax.nn.one_hot(experts, model.experts, dtype=bool)
  before, after = chosen.any(-2), (chosen & kept[..., None]).any(-2)
  if model.router.name == 'expert_choice':
    before = after  # an expert never drops what it picked
  # Groups are consecutive images; the last may be padded.
  images = len(before) * record.images
  by_image = lambda x: x.reshape(images, -1, model.experts)[:batch]
  return by_image(before), by_image(after)


def by_weight(
  record: Record, model: ConfigDict
) -> Int[Array, 'groups tokens selected']:
  """The experts each token selected and had, heaviest first; -1 is none.

  Of Soft MoE, the expert whose slot weighs most in a token's output.
  """
  routing, kept = record.routing, record.placement.kept
  if model.router.name == 'soft':
    return routing.gates.argmax(-1)[..., None] // model.router.slots
  order = jnp.argsort(-jnp.where(kept, routing.gates, -1), axis=-1, stable=True)
  experts = jnp.where(kept, routing.experts, -1)
  return jnp.take_along_axis(experts, order, axis=-1)


def change(
  before: Selected, after: Selected, nothing: float = 1.0
) -> Float[Array, 'batch']:
  """1 - mean over tokens of the intersection over union of the experts.

  Args:
    before: the experts of each token.
    after: the same of another image.
    nothing: the IoU of a token without experts in both; 1: it is unchanged. In
      the official code of arXiv:2210.10253 it is 0.
  """
  union = (before | after).sum(-1)
  common = (before & after).sum(-1)
  iou = jnp.where(union > 0, common / jnp.maximum(union, 1), nothing)
  return 1 - iou.mean(-1)


def dropped(wished: Selected, kept: Selected) -> Float[Array, 'batch']:
  """The share of an image's choices that found no room; 0 of no choices."""
  wishes = wished.sum((1, 2))
  return (wishes - kept.sum((1, 2))) / jnp.maximum(wishes, 1)
