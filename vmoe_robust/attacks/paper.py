"""The attack of the paper, kept so that numbers can be compared with its own.

"On the Adversarial Robustness of Mixture of Experts" (arXiv:2210.10253), as
its published code runs it. Weaker than `pgd`, and not sound: x_adv may leave
[0, 1].
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vmoe_robust.attacks.interface import (
  Images,
  Keys,
  Loss,
  State,
  fresh,
  gradient,
  leads,
)


@dataclasses.dataclass(frozen=True)
class Paper:
  """The last of some signed steps of eps / iterations, unclipped.

  Args:
    iterations: updates; a step more looks at the last of them.
  """

  iterations: int

  @property
  def steps(self) -> int:
    """See `interface.Attack`."""
    return self.iterations + 1

  def start(
    self,
    images: Images,
    keys: Keys,
    eps: Float[Array, ''],
    restart: Int[Array, 'batch'],
  ) -> State:
    """See `interface.Attack`. It starts at the image."""
    del keys, eps, restart
    return fresh(images, images, ())

  def step(self, loss: Loss, state: State, eps: Float[Array, '']) -> State:
    """See `interface.Attack`."""
    _, _, slope = gradient(loss, state.x)
    x = state.x + eps / self.iterations * jnp.sign(slope)
    # Not the worst iterate counts, but the last one.
    return state.replace(
      x=x,
      x_adv=x,
      value=jnp.full_like(state.value, -jnp.inf),
      broken=jnp.zeros_like(state.broken),
      turn=state.turn + 1,
      led=state.led + leads(slope),
    )
