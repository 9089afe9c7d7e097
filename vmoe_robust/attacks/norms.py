"""Balls in image space, one an image: distances, projections, random points.

`norm` is 'linf' or 'l2' throughout; lengths are in units of pixels in [0, 1].
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vmoe_robust.attacks.interface import Images, Keys


def distance(x_adv: Images, x: Images, norm: str) -> Float[Array, 'batch']:
  """The distance between each image and its perturbed self."""
  delta = x_adv - x
  if norm == 'linf':
    return jnp.abs(delta).max((1, 2, 3))
  return jnp.sqrt(jnp.square(delta).sum((1, 2, 3)))


def check(
  x_adv: Images,
  x: Images,
  eps: Float[Array, ''],
  norm: str,
  tolerance: float = 1e-6,
) -> tuple[Bool[Array, 'batch'], Bool[Array, 'batch']]:
  """Whether each image is inside the ball, and inside [0, 1]."""
  in_ball = distance(x_adv, x, norm) <= eps + tolerance
  in_range = ((x_adv >= 0) & (x_adv <= 1)).all((1, 2, 3))
  return in_ball, in_range


def project(
  x_adv: Images, x: Images, eps: Float[Array, ''], norm: str
) -> Images:
  """Pulls images into the ball around `x`, then into [0, 1]."""
  delta = x_adv - x
  if norm == 'linf':
    delta = jnp.clip(delta, -eps, eps)
  else:
    # Rounding x + delta moves a pixel below 1 by at most 2^-25, which over
    # many equal pixels adds up: leave room for it.
    radius = jnp.maximum(eps - math.sqrt(x[0].size) * 2**-25, 0)
    length = _per_image(distance(x_adv, x, norm))
    delta *= jnp.minimum(1, radius / jnp.where(length > 0, length, 1))
  return jnp.clip(x + delta, 0, 1)


def direction(gradient: Images, norm: str) -> Images:
  """The step of length 1 along which the loss rises most; 0 where it cannot."""
  if norm == 'linf':
    return jnp.sign(gradient)
  return _divide(gradient, jnp.sqrt(jnp.square(gradient).sum((1, 2, 3))))


def unit_l1(gradient: Images) -> Images:
  """Gradients whose absolute values sum to 1, or are all 0."""
  return _divide(gradient, jnp.abs(gradient).sum((1, 2, 3)))


def random_point(
  x: Images, keys: Keys, eps: Float[Array, ''], norm: str
) -> Images:
  """A point drawn uniformly from the ball around each image, not clipped."""
  draw = _linf_point if norm == 'linf' else _l2_point
  unit = jax.vmap(lambda key: draw(key, x.shape[1:], x.dtype))(keys)
  return x + eps * unit


def _linf_point(key, shape, dtype):
  return jax.random.uniform(key, shape, dtype, -1, 1)


def _l2_point(key, shape, dtype):
  # The volume inside radius r of n dimensions grows as r^n.
  for_direction, for_radius = jax.random.split(key)
  normal = jax.random.normal(for_direction, shape, dtype)
  radius = jax.random.uniform(for_radius, (), dtype) ** (1 / math.prod(shape))
  return radius * normal / jnp.sqrt(jnp.square(normal).sum())


def _divide(gradient, length):
  return gradient / _per_image(jnp.where(length > 0, length, 1))


def _per_image(values):
  return values[:, None, None, None]
