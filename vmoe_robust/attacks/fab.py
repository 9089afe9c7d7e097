"""Fast adaptive boundary attack (Croce & Hein 2020, arXiv:1907.02044).

Looks for the nearest point beyond the decision boundary: linearises the logits'
differences, moves onto the hyperplane where one of them is zero, and steps back
towards the image whenever it is beyond.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vmoe_robust.attacks import hyperplane, norms
from vmoe_robust.attacks.interface import (
  Images,
  Keys,
  State,
  fresh,
  leads,
  where,
)

# The authors' settings: the most that a step is biased towards the image, how
# far beyond the hyperplane it goes, what is left of the way after going back.
_MOST_BIAS, _BEYOND, _BACK = 0.1, 1.05, 0.9
# Moves that are shorter count as so long; pixels are not resolved finer.
_LEAST = 1e-8

# Images to [batch, rivals] and whether each image is broken.
RivalLoss = Callable[
  [Images], tuple[Float[Array, 'batch rivals'], Bool[Array, 'batch']]
]


@flax.struct.dataclass
class Memory:
  """What an image remembers between steps."""

  distance: Float[Array, 'batch']  # of the nearest broken point
  nearest: Images


@dataclasses.dataclass(frozen=True)
class Fab:
  """The nearest of all broken iterates, if it is in the ball.

  The loss has a value for each rival class, its logit minus the true class's;
  with a target there is one.

  Args:
    norm: 'linf', 'l2' or 'l1'.
    steps: linearisations.
  """

  norm: str
  steps: int = 100

  def start(
    self,
    images: Images,
    keys: Keys,
    eps: Float[Array, ''],
    restart: Int[Array, 'batch'],
  ) -> State:
    """See `interface.Attack`. The first run on an image starts there."""
    noise = norms.random_direction(images, keys, self.norm)
    eps = eps.astype(images.dtype)
    moved = jnp.clip(images + eps / 2 * noise, 0, 1)
    x = where(restart > 0, moved, images)
    far = jnp.full(len(images), jnp.inf, images.dtype)
    return fresh(images, x, Memory(far, images))

  def step(self, loss: RivalLoss, state: State, eps: Float[Array, '']) -> State:
    """See `interface.Attack`; the loss has a value for each rival."""
    x, clean = state.x, state.clean
    value, weights = nearest_rival(loss, x, self.norm)
    gap = -value
    gap_clean = gap - (weights * (clean - x)).sum((1, 2, 3))
    onto = hyperplane.project(x, weights, gap, self.norm)
    onto_clean = hyperplane.project(clean, weights, gap_clean, self.norm)
    far, far_clean = (
      jnp.maximum(norms.length(delta, self.norm), _LEAST)
      for delta in (onto, onto_clean)
    )
    bias = norms.per_image(jnp.minimum(far / (far + far_clean), _MOST_BIAS))
    x = (1 - bias) * (x + _BEYOND * onto)
    x = jnp.clip(x + bias * (clean + _BEYOND * onto_clean), 0, 1)
    _, broken = loss(x)
    led = state.led + leads(weights)
    return self._keep(state.replace(x=x, led=led), broken, eps)

  def edge(self, state: State, eps: Float[Array, '']) -> Images:
    """`state.x_adv` moved away from the image, as far as the ball goes.

    Of two functions that nearly agree, the nearest point beyond the boundary of
    one need not be beyond that of the other; one farther on may be.
    """
    delta = state.x_adv - state.clean
    reach = eps / jnp.maximum(norms.length(delta, self.norm), _LEAST)
    moved = state.clean + norms.per_image(jnp.maximum(reach, 1)) * delta
    return jnp.clip(norms.project(moved, state.clean, eps, self.norm), 0, 1)

  def forget(self, state: State, denied: Bool[Array, 'batch']) -> State:
    """Where the nearest point does not count, the next one is the nearest."""
    own = state.own
    return state.replace(
      value=jnp.where(denied, -jnp.inf, state.value),
      own=own.replace(distance=jnp.where(denied, jnp.inf, own.distance)),
    )

  def _keep(self, state: State, broken: Bool[Array, 'batch'], eps) -> State:
    x, clean, own = state.x, state.clean, state.own
    distance = norms.distance(x, clean, self.norm)
    nearer = broken & (distance < own.distance)
    own = Memory(
      jnp.where(nearer, distance, own.distance),
      where(nearer, x, own.nearest),
    )
    inside = own.distance <= eps
    return state.replace(
      x=where(broken, clean + _BACK * (x - clean), x),
      x_adv=where(inside, own.nearest, state.x_adv),
      value=jnp.where(inside, -own.distance, state.value),
      broken=inside,
      turn=state.turn + 1,
      own=own,
    )


def nearest_rival(
  loss: RivalLoss, x: Images, norm: str
) -> tuple[Float[Array, 'batch'], Images]:
  """The rival whose linearised boundary is the nearest.

  Rivals are looked at one after another, so that one gradient is held at a
  time. A rival that has no gradient is out of reach.

  Returns:
    Of each image the rival's value and its gradient, both divided by one power
    of two, so that the gradient's largest entry is near 1. Where no rival has
    a gradient both are 0.
  """
  values, pull, _ = jax.vjp(loss, x, has_aux=True)
  dual = {'linf': 'l1', 'l2': 'l2', 'l1': 'linf'}[norm]
  numbers = jnp.zeros(len(x), x.dtype)

  def look(best, rival):
    far, value, slope = best
    one_hot, own = rival
    new = pull(jnp.broadcast_to(one_hot, values.shape))[0]
    new, power = norms.rescale(jnp.where(jnp.isfinite(new), new, 0))
    steep = norms.length(new, dual)
    own = own.astype(x.dtype) / power
    reach = jnp.abs(own) / jnp.where(steep > 0, steep, 1)
    nearer = (steep > 0) & (reach < far)
    best = (
      jnp.where(nearer, reach, far),
      jnp.where(nearer, own, value),
      where(nearer, new, slope),
    )
    return best, None

  first = (numbers + jnp.inf, numbers, jnp.zeros_like(x))
  rivals = (jnp.eye(values.shape[1], dtype=values.dtype), values.T)
  if values.shape[1] == 1:  # with a target; no loop, see robustness/apart.py
    best, _ = look(first, jax.tree.map(lambda x: x[0], rivals))
  else:
    best, _ = jax.lax.scan(look, first, rivals)
  return best[1:]
