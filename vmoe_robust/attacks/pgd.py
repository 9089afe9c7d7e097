"""Projected gradient ascent and its relatives.

PGD (Madry et al. 2018, arXiv:1706.06083); with one step from the image FGSM
(arXiv:1412.6572); with momentum MI-FGSM (arXiv:1710.06081).
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vmoe_robust.attacks import norms
from vmoe_robust.attacks.interface import (
  Images,
  Keys,
  Loss,
  State,
  fresh,
  gradient,
  record,
)


@dataclasses.dataclass(frozen=True)
class Pgd:
  """The worst of all iterates.

  Args:
    norm: 'linf', 'l2' or 'l1'.
    iterations: updates; a step more looks at the last of them.
    step_size: in the units of eps; 0 means 2.5 * eps / iterations.
    random_start: start uniformly inside the ball, not at the image.
    momentum: decay of the gradients' running sum (MI-FGSM, equation 6); 0
      steps along the gradient itself.
  """

  norm: str
  iterations: int
  step_size: float = 0.0
  random_start: bool = True
  momentum: float = 0.0

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
    """See `interface.Attack`."""
    del restart
    x = images
    if self.random_start:
      x = norms.random_point(images, keys, eps, self.norm)
      x = norms.project(x, images, eps, self.norm)
    return fresh(images, x, jnp.zeros_like(images))

  def step(self, loss: Loss, state: State, eps: Float[Array, '']) -> State:
    """See `interface.Attack`."""
    values, broken, slope = gradient(loss, state.x)
    state = record(state, values, broken, slope)
    eps = eps.astype(state.x.dtype)
    velocity = self.momentum * state.own + norms.unit(slope, 'l1')
    ascent = velocity
    if self.norm == 'l1':  # the few pixels of a step must be free to move
      ascent = norms.inward(velocity, state.x)
    size = self.step_size or 2.5 * eps / self.iterations
    x = state.x + size * norms.direction(ascent, self.norm)
    return state.replace(
      x=norms.project(x, state.clean, eps, self.norm), own=velocity
    )
