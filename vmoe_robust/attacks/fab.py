"""Fast adaptive boundary attack (Croce & Hein 2020, arXiv:1907.02044).

Looks for the nearest point beyond the decision boundary: linearises the logits'
differences, moves onto the hyperplane where one of them is zero, and steps back
towards the image whenever it is beyond.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vmoe_robust.attacks import hyperplane, norms
from vmoe_robust.attacks.interface import Images, Keys, State, fresh, where

# The authors' settings: the most that a step is biased towards the image, how
# far beyond the hyperplane it goes, what is left of the way after going back.
_MOST_BIAS, _BEYOND, _BACK = 0.1, 1.05, 0.9
_LEAST = 1e-8


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
    moved = jnp.clip(images + eps / 2 * noise, 0, 1)
    x = where(restart > 0, moved, images)
    far = jnp.full(len(images), jnp.inf, images.dtype)
    return fresh(images, x, Memory(far, images))

  def step(self, loss, state: State, eps: Float[Array, '']) -> State:
    """See `interface.Attack`; the loss has values [batch, rivals]."""
    x, clean = state.x, state.clean
    (value, weights) = self._nearest_rival(loss, x)
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
    return self._keep(state.replace(x=x), broken, eps)

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

  def _nearest_rival(self, loss, x):
    """The difference whose hyperplane is the nearest, and its gradient."""
    values, pull, _ = jax.vjp(loss, x, has_aux=True)
    rivals = values.shape[1]
    one_hot = jnp.eye(rivals, dtype=values.dtype)[:, None]
    rows = jnp.broadcast_to(one_hot, (rivals, *values.shape))
    slopes = jax.lax.map(lambda row: pull(row)[0], rows)
    slopes = jnp.where(jnp.isfinite(slopes), slopes, 0)
    dual = {'linf': 'l1', 'l2': 'l2', 'l1': 'linf'}[self.norm]
    steep = jax.vmap(lambda slope: norms.length(slope, dual))(slopes)
    far = jnp.abs(values) / (1e-12 + steep.T)
    chosen = far.argmin(1)
    pick = jax.nn.one_hot(chosen, rivals, dtype=x.dtype)
    slope = jnp.einsum('br,rbhwc->bhwc', pick, slopes)
    return (pick * values).sum(1), slope
