"""The attack of the paper, kept so that numbers can be compared with its own.

"On the Adversarial Robustness of Mixture of Experts" (arXiv:2210.10253), as
its published code runs it. Weaker than `pgd`, and not sound: x_adv may leave
[0, 1].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vmoe_robust.attacks.interface import Images, Keys, Loss


def paper(
  loss: Loss,
  images: Images,
  keys: Keys,
  eps: Float[Array, ''],
  *,
  steps: int,
) -> Images:
  """The last of `steps` signed steps of eps / steps, unclipped."""
  del keys  # starts at the image

  def update(_, x):
    gradient = jax.grad(lambda x: jnp.mean(loss(x)[0]))(x)
    return x + eps / steps * jnp.sign(gradient)

  return jax.lax.fori_loop(0, steps, update, images)
