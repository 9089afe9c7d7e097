"""Balls in image space, one an image: distances, projections, random points.

`norm` is 'linf', 'l2' or 'l1' throughout; lengths are in units of pixels in
[0, 1].
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vmoe_robust.attacks import l1_ball
from vmoe_robust.attacks.interface import Images, Keys

# The share of pixels that a step in l1 moves (as SLIDE, arXiv:1904.13000).
_L1_SHARE = 0.01
# A pixel this near to 0 or 1 is there, but for rounding.
_AT_THE_BOX = 1e-6


def length(delta: Images, norm: str) -> Float[Array, 'batch']:
  """The norm of each image."""
  scaled, power = rescale(delta)
  return power * _length(scaled, norm)


def rescale(
  delta: Images,
) -> tuple[Images, Float[Array, 'batch']]:
  """Images divided by a power of two near their largest entry, and that power.

  Squares of numbers below 1e-19 or above 1e19 leave the range of float32; of
  what is returned they do not. A power of two changes no digit of a number.
  """
  info = jnp.finfo(delta.dtype)
  largest = jnp.abs(delta).max((1, 2, 3))
  # Rounded to no digits behind the first.
  bounded = jnp.clip(largest, info.tiny, info.max / 4)
  power = jax.lax.reduce_precision(bounded, info.nexp, 0)
  power = jnp.where(largest > 0, power, 1).astype(delta.dtype)
  return delta / per_image(power), power


def distance(x_adv: Images, x: Images, norm: str) -> Float[Array, 'batch']:
  """The distance between each image and its perturbed self."""
  return length(x_adv - x, norm)


def check(
  x_adv: Images,
  x: Images,
  eps: Float[Array, ''],
  norm: str,
  tolerance: float = 1e-6,
) -> tuple[Bool[Array, 'batch'], Bool[Array, 'batch']]:
  """Whether each image is inside the ball, and inside [0, 1].

  Sums of many pixels round; of l1 the tolerance is relative to a radius that is
  larger than 1.
  """
  if norm == 'l1':
    tolerance *= jnp.maximum(eps, 1)
  in_ball = distance(x_adv, x, norm) <= eps + tolerance
  in_range = ((x_adv >= 0) & (x_adv <= 1)).all((1, 2, 3))
  return in_ball, in_range


def project(
  x_adv: Images,
  x: Images,
  eps: Float[Array, ''] | Float[Array, 'batch'],
  norm: str,
) -> Images:
  """Pulls images into the ball around `x` and into [0, 1].

  In linf and l1 to the nearest point (in l2 distance) of both; in l2 to that of
  the ball, then to that of the box. In l1 radii may differ between images.
  """
  delta, eps = x_adv - x, jnp.asarray(eps, x.dtype)
  if norm == 'linf':
    return jnp.clip(x + jnp.clip(delta, -eps, eps), 0, 1)
  # A sum over pixels errs by about this share: leave room for it.
  share = (8 + math.sqrt(x[0].size)) * float(jnp.finfo(x.dtype).eps) / 4
  radius = eps * (1 - share / 2 if norm == 'l1' else 1 - share)
  if norm == 'l2':
    size = per_image(length(delta, norm))
    delta *= jnp.minimum(1, radius / jnp.where(size > 0, size, 1))
  else:
    delta = l1_ball.shrink(delta, x, jnp.broadcast_to(radius, len(x)))
  moved = x + delta
  # What rounding adds to each of many pixels would add up: round towards x.
  far = jnp.abs(moved - x) > jnp.abs(delta)
  return jnp.clip(jnp.where(far, jnp.nextafter(moved, x), moved), 0, 1)


def direction(gradient: Images, norm: str) -> Images:
  """The step of length 1 along which the loss rises; 0 where it cannot.

  In l1 the one steepest pixel would do; a small share of all moves alike.
  """
  if norm == 'linf':
    return jnp.sign(gradient)
  if norm == 'l2':
    return unit(gradient, norm)
  pixels = gradient[0].size
  least = jnp.full(len(gradient), max(round(_L1_SHARE * pixels), 1))
  return top_signs(gradient, least)


def top_signs(gradient: Images, count: Float[Array, 'batch'] | Array) -> Images:
  """Signs of the `count` steepest pixels of each image, as a step of l1 1."""
  size = jnp.abs(gradient)
  flat = jnp.sort(size.reshape(len(gradient), -1), axis=1)
  place = jnp.clip(flat.shape[1] - count, 0, flat.shape[1] - 1)
  place = place.astype(jnp.int32)[:, None]
  least = jnp.take_along_axis(flat, place, axis=1)[:, 0]
  signs = jnp.where(size >= per_image(least), jnp.sign(gradient), 0)
  return unit(signs, 'l1')


def unit(delta: Images, norm: str) -> Images:
  """Images of length 1 in the same direction; those that are 0 stay 0."""
  scaled, _ = rescale(delta)
  size = _length(scaled, norm)
  return scaled / per_image(jnp.where(size > 0, size, 1))


def inward(gradient: Images, x: Images) -> Images:
  """Gradients without the entries that point out of the box [0, 1].

  A pixel at 1 whose gradient is positive, or at 0 whose gradient is negative,
  cannot move, so that a sparse step must not be spent on it.
  """
  outward = (gradient > 0) & (x > 1 - _AT_THE_BOX)
  outward |= (gradient < 0) & (x < _AT_THE_BOX)
  return jnp.where(outward, 0, gradient)


def random_point(
  x: Images, keys: Keys, eps: Float[Array, ''], norm: str
) -> Images:
  """A point drawn uniformly from the ball around each image, not clipped."""
  draw = {'linf': _linf_point, 'l2': _l2_point, 'l1': _l1_point}[norm]
  offset = jax.vmap(lambda key: draw(key, x.shape[1:], x.dtype))(keys)
  return x + jnp.asarray(eps, x.dtype) * offset


def noise(x: Images, keys: Keys, norm: str) -> Images:
  """Noise of the form of `x`: uniform in linf, otherwise normal."""
  draw = _linf_point if norm == 'linf' else jax.random.normal
  return jax.vmap(lambda key: draw(key, x.shape[1:], x.dtype))(keys)


def random_direction(x: Images, keys: Keys, norm: str) -> Images:
  """Noise that is scaled to the unit sphere."""
  return unit(noise(x, keys, norm), norm)


def _linf_point(key, shape, dtype):
  return jax.random.uniform(key, shape, dtype, -1, 1)


def _l2_point(key, shape, dtype):
  # The volume inside radius r of n dimensions grows as r^n.
  for_direction, for_radius = jax.random.split(key)
  normal = jax.random.normal(for_direction, shape, dtype)
  radius = jax.random.uniform(for_radius, (), dtype) ** (1 / math.prod(shape))
  size = jnp.sqrt(jnp.square(normal).sum())
  return radius * normal / jnp.where(size > 0, size, 1)


def _l1_point(key, shape, dtype):
  for_direction, for_radius = jax.random.split(key)
  point = jax.random.laplace(for_direction, shape, dtype)
  radius = jax.random.uniform(for_radius, (), dtype) ** (1 / math.prod(shape))
  size = jnp.abs(point).sum()
  return radius * point / jnp.where(size > 0, size, 1)


def _length(delta, norm):
  if norm == 'linf':
    return jnp.abs(delta).max((1, 2, 3))
  if norm == 'l2':
    return jnp.sqrt(_sum(jnp.square(delta)))
  return _sum(jnp.abs(delta))


def _sum(images):
  """Of all pixels of an image: row by row, since a long sum would drift."""
  rows = images.sum((2, 3))
  return jax.lax.optimization_barrier(rows).sum(1)  # else XLA makes it one sum


def per_image(values: Float[Array, 'batch']) -> Float[Array, 'batch 1 1 1']:
  """Numbers of images in a form that meets their pixels."""
  return values[:, None, None, None]
