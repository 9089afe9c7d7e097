"""Soft MoE (arXiv:2308.00951): slots are mixtures of an image's tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vmoe_robust.models.routers.routing import (
  Experts,
  Given,
  Placement,
  Routing,
  at_least_float32,
)


class Router(nn.Module):
  """Similarities of tokens and slots; a group is always one image."""

  num_experts: int
  config: ConfigDict  # config.model.router

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'groups tokens dim'],
    given: Given,
  ) -> Routing:
    """Scores tokens against slots (algorithm 2: both are normalised)."""
    slots = self.num_experts * self.config.slots
    phi = self.param(
      'phi',
      nn.with_logical_partitioning(
        nn.initializers.lecun_normal(), ('embed', None)
      ),
      (x.shape[-1], slots),
      jnp.float32,
    )
    scale = self.param('scale', nn.initializers.ones_init(), (), jnp.float32)
    # Not the norm's reciprocal: its gradient at a token of zeros is NaN.
    unit = lambda a, axis: (
      a * jax.lax.rsqrt(jnp.square(a).sum(axis, keepdims=True) + 1e-12)
    )
    logits = jnp.einsum(
      'gtd,ds->gts',
      unit(at_least_float32(x), -1),
      scale * unit(phi, 0),
      precision='highest',
    )
    none = jnp.zeros(x.shape[:1], jnp.float32)
    gates = jax.nn.softmax(logits)
    owner = jnp.arange(slots, dtype=jnp.int32) // self.config.slots
    experts = jnp.where(given.mask[..., None], owner, self.num_experts)
    return Routing(logits, experts, gates, {}, none, gates)


def run(
  experts: Experts,
  weights: tuple,
  x: Float[Array, 'groups tokens dim'],
  routing: Routing,
  config: ConfigDict,
  dropless: bool,
) -> tuple[Float[Array, 'groups tokens dim'], Placement]:
  """Mixes tokens into slots, runs the experts, mixes slots into tokens.

  Nothing is ever dropped, so `dropless` changes nothing here.
  """
  del dropless
  groups, tokens, dim = x.shape
  slots = routing.logits.shape[-1]
  mix = jax.nn.softmax(routing.logits, axis=1).astype(x.dtype)
  rows = jnp.einsum('gtd,gts->sgd', x, mix)
  rows = rows.reshape(slots // config.slots, -1, dim)
  y = experts(weights, rows).reshape(slots, groups, dim)
  y = jnp.einsum('sgd,gts->gtd', y, routing.gates.astype(x.dtype))
  slot = jnp.arange(slots, dtype=jnp.int32) % config.slots
  slot = jnp.broadcast_to(slot, routing.experts.shape)
  kept = routing.experts < slots // config.slots
  return y, Placement(slot, kept)
