"""Random points in place of gradients: what luck alone would find."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vmoe_robust.attacks import norms
from vmoe_robust.attacks.interface import (
  Images,
  Keys,
  Loss,
  State,
  fresh,
  record,
)


@dataclasses.dataclass(frozen=True)
class Luck:
  """The worst of random points, each as far as the ball lets it.

  A control of PGD: it looks at as many points, in steps of the same form and of
  the radius in length, whose direction is drawn (the sign of each pixel in
  linf).

  Args:
    norm: 'linf', 'l2' or 'l1'.
    iterations: of the PGD that it is compared with.
  """

  norm: str
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
    """See `interface.Attack`."""
    turn = jnp.zeros_like(restart)
    return fresh(images, self._point(images, keys, eps, turn), keys)

  def step(self, loss: Loss, state: State, eps: Float[Array, '']) -> State:
    """See `interface.Attack`."""
    state = record(state, *loss(state.x))
    x = self._point(state.clean, state.own, eps, state.turn)
    return state.replace(x=x)

  def _point(self, images, keys, eps, turn) -> Images:
    fold = jax.vmap(jax.random.fold_in)
    # Normal in every norm: its signs are fair coins.
    noise = norms.noise(images, fold(keys, turn), 'l2')
    if self.norm == 'l1':  # the few pixels of a step must be free to move
      noise = norms.inward(noise, images)
    way = eps.astype(images.dtype) * norms.direction(noise, self.norm)
    return norms.project(images + way, images, eps, self.norm)
