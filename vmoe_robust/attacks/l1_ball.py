"""The point of an L1 ball and the box [0, 1] that is nearest to a given one.

The nearest point takes the same amount off the size of each move, and no move
below 0 (soft thresholding). It is found by a fixed number of turns, the same
for all images: a loop that ends when the last image is done would make the
devices of a mesh wait for each other in each turn.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vmoe_robust.attacks.interface import Images

# Attacks need at most 12 turns; moves with tails as heavy as the fifth power of
# normal noise need 19.
_TURNS = 20


def shrink(delta: Images, x: Images, radius: Float[Array, 'batch']) -> Images:
  """The moves that are nearest to `delta`, in the ball and in the box.

  With threshold t a pixel moves by clip(|delta| - t, 0, room), and the length
  of all moves falls piecewise linearly as t rises. Two thresholds that enclose
  the wanted one come nearer to each other by Newton's method, by the secant
  and, each fourth turn, by halving. The result lies between the moves of the
  two, at the point whose length is the radius. So it fills the ball, and is
  exact when no pixel starts or stops between the two thresholds.

  Args:
    delta: moves of each pixel.
    x: where they begin; pixels in [0, 1].
    radius: of the L1 ball around each image.
  """
  size = jnp.abs(delta)
  room = jnp.where(delta > 0, 1 - x, x)
  low, high = _thresholds(size, room, radius)
  cut = lambda by: jnp.clip(size - _pixels(by), 0, room)
  longer, shorter = cut(low), cut(high)
  long, short = _sum(longer), _sum(shorter)
  share = (radius - short) / jnp.where(long > short, long - short, 1)
  share = jnp.where(long > radius, jnp.clip(share, 0, 1), 1)
  moves = shorter + _pixels(share) * (longer - shorter)
  return jnp.sign(delta) * jnp.minimum(moves, room)


def _thresholds(size, room, radius):
  """Two thresholds whose moves are too long and short enough.

  Both are 0 for what is inside the ball.
  """
  zeros = jnp.zeros_like(radius)
  length, slope = _measure(size, room, zeros)
  first = (zeros, length, size.max((1, 2, 3)), zeros, zeros, length, slope)

  def closer(turn, state):
    low, long, high, short, by, length, slope = state
    middle = (low + high) / 2
    newton = by + (length - radius) / jnp.maximum(slope, 1)
    secant = (long - radius) / jnp.where(long > short, long - short, 1)
    secant = low + (high - low) * secant
    aim = jnp.where(turn % 2 == 0, newton, secant)
    usable = (low < aim) & (aim < high) & ((turn % 2 == 1) | (slope > 0))
    by = jnp.where(usable & (turn % 4 < 3), aim, middle)
    length, slope = _measure(size, room, by)
    above = length > radius
    low, long = jnp.where(above, by, low), jnp.where(above, length, long)
    high, short = jnp.where(above, high, by), jnp.where(above, short, length)
    return low, long, high, short, by, length, slope

  low, _, high, *_ = jax.lax.fori_loop(0, _TURNS, closer, first)
  inside = length <= radius
  return low, jnp.where(inside, 0, high)


def _measure(size, room, by):
  """Length of the moves and how many pixels take part in its fall.

  One reduction over channels begins both, since XLA would otherwise read the
  images once for each.
  """
  rest = size - _pixels(by)
  moving = ((rest > 0) & (rest < room)).astype(size.dtype)
  zero = jnp.zeros((), size.dtype)
  add = lambda a, b: (a[0] + b[0], a[1] + b[1])
  moves = jnp.clip(rest, 0, room)
  parts = jax.lax.reduce((moves, moving), (zero, zero), add, (3,))
  moves, moving = jax.lax.optimization_barrier(parts)
  return _sum(moves[..., None]), moving.sum((1, 2))


def _sum(images):
  """Of all pixels of an image: row by row, since a long sum would drift."""
  rows = images.sum((2, 3))
  return jax.lax.optimization_barrier(rows).sum(1)  # else XLA makes it one sum


def _pixels(values):
  return values[:, None, None, None]
