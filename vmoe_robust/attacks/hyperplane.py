"""Projections onto a hyperplane within the box [0, 1], one an image.

The shortest move, by the norm, that brings x to w . x = b without leaving the
box; where no point of the box is on the hyperplane, the move that comes as near
as the box lets it (Croce & Hein 2020, arXiv:1907.02044, section 3).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vmoe_robust.attacks.interface import Images
from vmoe_robust.attacks.norms import per_image, rescale

# Of Newton's method; random problems of 3,072 pixels took fewer.
_STEPS = {'linf': 10, 'l2': 16}
# Weights, as a share of the largest, that are as good as none.
_TINY = 1e-8
# More than all pixels can gain under weights of about 1.
_FAR = 1e15


def project(
  x: Images, weights: Images, gap: Float[Array, 'batch'], norm: str
) -> Images:
  """The move from x.

  Args:
    x: pixels in [0, 1].
    weights: w, of each image.
    gap: b - w . x, which the move is to add to w . x.
    norm: 'linf', 'l2' or 'l1'.
  """
  # The move is to raise the sum.
  weights = weights * per_image(jnp.where(gap >= 0, 1, -1).astype(x.dtype))
  room = jnp.where(weights > 0, 1 - x, x)  # towards the hyperplane
  # Weights that cannot be used do not say what is small.
  weights, power = rescale(jnp.where(room > 0, weights, 0))
  weights = jnp.where(jnp.abs(weights) > _TINY, weights, 0)
  need = jnp.minimum(jnp.abs(gap) / power, _FAR)
  if norm == 'l1':
    amount = _greedy(jnp.abs(weights), room, need)
  else:
    amount = _level(jnp.abs(weights), room, need, norm)
  return jnp.sign(weights) * amount


def _level(size, room, need, norm):
  """Moves min(t * speed, room), with the least t whose gain is enough.

  The gain is concave and piecewise linear in t, so that Newton's method comes
  from below and ends at the very t once it is on its piece.
  """
  speed = jnp.sign(size) if norm == 'linf' else size
  total = lambda x: x.sum((1, 2, 3))
  move = lambda t: jnp.minimum(per_image(t) * speed, room)

  def better(_, t):
    free = per_image(t) * speed < room
    slope = total(jnp.where(free, size * speed, 0))
    rest = jnp.maximum(need - total(size * move(t)), 0)
    return t + jnp.where(slope > 0, rest / jnp.where(slope > 0, slope, 1), 0)

  return move(jax.lax.fori_loop(0, _STEPS[norm], better, jnp.zeros_like(need)))


def _greedy(size, room, need):
  """Moves the pixels of the largest weights first, the last of them in part."""
  shape = size.shape
  size, room = (a.reshape(len(a), -1) for a in (size, room))
  order = jnp.argsort(-size, axis=1)
  ranked, free = (jnp.take_along_axis(a, order, 1) for a in (size, room))
  gains = ranked * free
  before = jnp.cumsum(gains, axis=1) - gains
  rest = jnp.clip(need[:, None] - before, 0, gains)
  amount = jnp.where(ranked > 0, rest / jnp.where(ranked > 0, ranked, 1), 0)
  back = jnp.argsort(order, axis=1)
  return jnp.take_along_axis(amount, back, 1).reshape(shape)
