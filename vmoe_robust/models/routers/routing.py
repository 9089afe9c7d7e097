"""What a router decides, in the form every router shares."""

from typing import Protocol, runtime_checkable

import flax.linen as nn
import flax.struct
from jaxtyping import Array, Bool, Float, Int


@runtime_checkable
class Experts(Protocol):
  """All experts at once, wherever they are on the mesh."""

  def __call__(
    self, weights: tuple, rows: Float[Array, 'experts rows dim']
  ) -> Float[Array, 'experts rows dim']:
    """Runs each expert on its rows, bringing them to its device and back."""

  def longest(self, length: Int[Array, '']) -> Int[Array, '']:
    """The maximum over the devices that exchange rows."""


@flax.struct.dataclass
class Routing:
  """A router's decision about groups of tokens.

  `choices` is K for a router that picks for each token and E for one where
  experts pick; `gates` weigh the outputs of the chosen experts. Soft MoE
  scores and chooses slots, all of every expert.
  """

  logits: Float[Array, 'groups tokens experts']
  experts: Int[Array, 'groups tokens choices']  # E: none (padding)
  gates: Float[Array, 'groups tokens choices']
  losses: dict[str, Float[Array, 'groups']]  # not yet weighted
  auxiliary_loss: Float[Array, 'groups']  # their weighted sum


@flax.struct.dataclass
class Placement:
  """Where each choice ended: its slot, and whether the expert had room."""

  slot: Int[Array, 'groups tokens choices']
  kept: Bool[Array, 'groups tokens choices']


def affinity(num_experts: int) -> nn.Dense:
  """The layer that scores experts, in float32 whatever the compute type."""
  return nn.Dense(
    num_experts,
    use_bias=False,
    precision='highest',
    kernel_init=nn.with_logical_partitioning(
      nn.initializers.lecun_normal(), ('embed', None)
    ),
    name='dense',
  )
