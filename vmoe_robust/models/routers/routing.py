"""What a router decides, in the form every router shares."""

from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

# Names decisions, which a backward pass then keeps.
DECIDED = 'decided'
decided = partial(checkpoint_name, name=DECIDED)


@runtime_checkable
class Experts(Protocol):
  """All experts' MLPs, wherever they are on the mesh."""

  plain: bool  # differentiation is left to JAX, which may go forward

  @property
  def grouped(self) -> bool:
    """Whether all experts are here and `run` is the way to run them."""

  def __call__(
    self, weights: tuple, rows: Float[Array, 'experts rows dim']
  ) -> Float[Array, 'experts rows dim']:
    """`bring(mlp(send(rows)))`."""

  def run(
    self,
    weights: tuple,
    rows: Float[Array, 'rows dim'],
    count: Int[Array, 'experts'],
  ) -> Float[Array, 'rows dim']:
    """Runs each expert on its run of `count` rows, see `grouped.blocks`."""

  def send(
    self, rows: Float[Array, 'experts rows dim']
  ) -> Float[Array, 'local_experts all_rows dim']:
    """Sends rows to their expert's device."""

  def mlp(
    self, weights: tuple, rows: Float[Array, 'local_experts all_rows dim']
  ) -> Float[Array, 'local_experts all_rows dim']:
    """Runs this device's experts, each on its rows."""

  def bring(
    self, rows: Float[Array, 'local_experts all_rows dim']
  ) -> Float[Array, 'experts rows dim']:
    """Brings back what was sent."""

  def longest(self, length: Int[Array, '']) -> Int[Array, '']:
    """The maximum over the devices that exchange rows."""


class Noise(NamedTuple):
  """What noise a router that draws any adds to its logits."""

  keys: Key[Array, 'groups']
  # Times the noise of training; None: that of training itself.
  scale: Float[Array, ''] | None


class Given(NamedTuple):
  """What a router is told of its groups besides their tokens."""

  mask: Bool[Array, 'groups tokens']  # False: padding
  noise: Noise | None
  images: int  # consecutive ones, of a group
  labels: Int[Array, 'groups images'] | None  # each image's class


class Routing(NamedTuple):
  """A router's decision about groups of tokens.

  A tuple, since JAX rebuilds it of what is no array, which a dataclass refuses.

  `choices` is K for a router that picks for each token and E for one where
  experts pick; `gates` weigh the outputs of the chosen experts. Soft MoE
  scores and chooses slots, all of every expert. What a changed field does to
  the experts' outputs differs by router: see `models/intervene.py`.
  """

  logits: Float[Array, 'groups tokens experts']
  experts: Int[Array, 'groups tokens choices']  # E: none (padding)
  gates: Float[Array, 'groups tokens choices']
  losses: dict[str, Float[Array, 'groups']]  # not yet weighted
  auxiliary_loss: Float[Array, 'groups']  # their weighted sum
  # The gate that each expert has, or would have if it were chosen; those of
  # top_k are before `router.renormalize` and `router.gate='uniform'`.
  probabilities: Float[Array, 'groups tokens experts'] | None = None


class Placement(NamedTuple):
  """Where each choice ended: its slot, and whether the expert had room."""

  slot: Int[Array, 'groups tokens choices']
  kept: Bool[Array, 'groups tokens choices']


def at_least_float32(x: Float[Array, '...']) -> Float[Array, '...']:
  """The same values in float32, or in float64 if they are so already."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


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


def repeated(
  x: Float[Array, 'groups images *more'] | Int[Array, 'groups images *more'],
  tokens: int,
) -> Float[Array, 'groups tokens *more'] | Int[Array, 'groups tokens *more']:
  """What is of an image, for each token of it; `tokens` are a group's."""
  return jnp.repeat(x, tokens // x.shape[1], axis=1)


def fixed(
  experts: Int[Array, 'groups tokens selected'],
  mask: Bool[Array, 'groups tokens'],
  num_experts: int,
  dtype: jnp.dtype,
) -> Routing:
  """A routing to given experts, of equal gates, that nothing is learnt of.

  Nothing was scored either: its logits are its probabilities.
  """
  share, real = 1 / experts.shape[-1], mask[..., None]
  gates = jnp.where(real, jnp.full(experts.shape, share, dtype), 0)
  chosen = share * jax.nn.one_hot(experts, num_experts, dtype=dtype).sum(-2)
  experts = jnp.where(real, experts, num_experts)
  none = jnp.zeros(mask.shape[:1], jnp.float32)
  return Routing(chosen, experts, gates, {}, none, chosen)
