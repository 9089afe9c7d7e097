"""A control: experts by a hash of the token's position, whatever is in it.

After Hash Layers (arXiv:2106.04426), whose experts have no gates either. There
the hash is of the word; an image's tokens have no names but their positions.
"""

import zlib

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from vmoe_robust.models.routers import top_k
from vmoe_robust.models.routers.routing import (
  Given,
  Routing,
  at_least_float32,
  fixed,
)

run = top_k.run


class Router(nn.Module):
  """Has no weights; each block has a hash of its own."""

  num_experts: int
  config: ConfigDict  # config.model.router

  @nn.compact
  def __call__(
    self, x: Float[Array, 'groups tokens dim'], given: Given
  ) -> Routing:
    """The same experts for the same position of every image."""
    groups, tokens, _ = x.shape
    one = experts_of(
      tokens // given.images,
      self.config.selected,
      self.num_experts,
      '/'.join(self.path),
    )
    experts = jnp.tile(jnp.asarray(one), (given.images, 1))
    experts = jnp.broadcast_to(experts, (groups, *experts.shape))
    dtype = at_least_float32(x).dtype
    return fixed(experts, given.mask, self.num_experts, dtype)


def experts_of(
  tokens: int, selected: int, num_experts: int, block: str
) -> Int[np.ndarray, '{tokens} {selected}']:
  """Experts of each position: as even as the number of tokens permits.

  Positions are shuffled by a hash and dealt out to the experts in turn; a
  second choice is the next expert.
  """
  key = lambda position: zlib.crc32(f'{block}/{position}'.encode())
  turn = np.argsort(np.argsort([key(p) for p in range(tokens)]))
  experts = (turn[:, None] + np.arange(selected)) % num_experts
  return experts.astype(np.int32)
