"""A control: the class of an image, which is given, chooses the experts.

It bounds what a route by class could be worth. What such a model predicts is no
classification, since it is told the class.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vmoe_robust.models.routers import top_k
from vmoe_robust.models.routers.routing import (
  Given,
  Routing,
  at_least_float32,
  fixed,
  repeated,
)

run = top_k.run


class Router(nn.Module):
  """Has no weights: class c has the experts c, c + 1, ... modulo E."""

  num_experts: int
  config: ConfigDict  # config.model.router

  @nn.compact
  def __call__(
    self, x: Float[Array, 'groups tokens dim'], given: Given
  ) -> Routing:
    """The same experts for all tokens of an image."""
    choices = jnp.arange(self.config.selected, dtype=jnp.int32)
    labels = given.labels.astype(jnp.int32)
    experts = (labels[..., None] + choices) % self.num_experts
    experts = repeated(experts, x.shape[1])
    dtype = at_least_float32(x).dtype
    return fixed(experts, given.mask, self.num_experts, dtype)
