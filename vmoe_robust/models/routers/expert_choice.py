"""Expert choice router (arXiv:2202.09368): experts pick tokens."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vmoe_robust.models import losses
from vmoe_robust.models.routers.routing import (
  Experts,
  Given,
  Placement,
  Routing,
  affinity,
  at_least_float32,
  decided,
)


class Router(nn.Module):
  """Each expert takes the tokens that prefer it most, up to its capacity."""

  num_experts: int
  config: ConfigDict  # config.model.router

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'groups tokens dim'],
    given: Given,
  ) -> Routing:
    """Scores; noise is not used, this router draws none."""
    mask = given.mask
    logits = affinity(self.num_experts)(at_least_float32(x))
    gates = jnp.where(mask[..., None], jax.nn.softmax(logits), 0)
    found = {'z': losses.router_z(logits, mask)}  # load is even by design
    everyone = jnp.arange(self.num_experts, dtype=jnp.int32)
    experts = jnp.where(mask[..., None], everyone, self.num_experts)
    total = self.config.z_weight * found['z']
    return Routing(logits, experts, gates, found, total, gates)


def capacity(tokens: int, config: ConfigDict, experts: int) -> int:
  """Tokens an expert takes: `selected` a token on average, times the factor."""
  wanted = tokens * config.selected * config.capacity_factor / experts
  return min(math.ceil(wanted), tokens)


def run(
  experts: Experts,
  weights: tuple,
  x: Float[Array, 'groups tokens dim'],
  routing: Routing,
  config: ConfigDict,
  dropless: bool,
) -> tuple[Float[Array, 'groups tokens dim'], Placement]:
  """Lets experts pick and runs them, on one device's groups.

  The number of tokens an expert takes is the method itself, so `dropless`
  changes nothing here; images are independent when a group is one image.
  """
  del dropless
  groups, tokens, dim = x.shape
  num_experts = routing.logits.shape[-1]
  size = capacity(tokens, config, num_experts)
  # Ties go to the earlier token, as in top_k.
  by_gate = decided(jnp.argsort(-routing.gates, axis=1, stable=True))
  slot = jnp.argsort(by_gate, axis=1).astype(jnp.int32)
  kept = (slot < size) & (routing.experts < num_experts)
  picked = by_gate[:, :size].transpose(2, 0, 1)  # experts, groups, slots
  gates = routing.gates.transpose(2, 0, 1)
  gates = jnp.take_along_axis(gates, picked, axis=2)
  offset = jnp.arange(groups)[:, None] * tokens
  source = (picked + offset).reshape(num_experts, -1)
  rows = experts(weights, x.reshape(-1, dim)[source])
  rows = at_least_float32(rows)
  weighed = rows * gates.reshape(num_experts, -1, 1)
  y = jnp.zeros((groups * tokens, dim), rows.dtype)
  y = y.at[source].add(weighed).astype(x.dtype)
  return y.reshape(x.shape), Placement(slot, kept)
