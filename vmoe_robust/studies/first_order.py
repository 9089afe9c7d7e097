"""At which distance a number that depends on the image changes its sign."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vmoe_robust.attacks import Images, norms

DUAL = {'linf': 'l1', 'l2': 'l2', 'l1': 'linf'}
# Steps that are tried, times the radius.
STEPS = (1.1, 1.5)
Margins = Float[Array, 'batch tokens']


def first_order(
  margins: Callable[[Images], Margins],
  images: Images,
  order: Int[Array, 'batch sampled'],
  norm: str,
) -> tuple[Float[Array, 'batch sampled'], Float[Array, 'batch sampled']]:
  """Where margins would be 0 if they were linear, and where they were below.

  Images do not see each other, so that a backward pass serves a token of each
  image of the batch.

  Args:
    margins: of each token; all are 0 or more at `images`.
    images: pixels in [0, 1].
    order: which tokens of each image.
    norm: 'linf', 'l2' or 'l1', in which distances are.

  Returns:
    The radii: infinite where the gradient is zero, for nothing then moves the
    margin, and NaN where margin or gradient is not finite. And the distances
    from the image at which the margin was seen to be negative; infinite if it
    was not.
  """
  found, backward = jax.vjp(margins, images)

  def one(token):
    at = lambda x: jnp.take_along_axis(x, token[:, None], 1)[:, 0]
    hot = jax.nn.one_hot(token, found.shape[1], dtype=found.dtype)
    (gradient,) = backward(hot)
    down = norms.inward(-gradient, images)
    slope = norms.length(down, DUAL[norm])
    radius = at(found) / jnp.where(slope > 0, slope, 1)
    radius = jnp.where(slope > 0, radius, jnp.inf)
    finite = jnp.isfinite(at(found)) & jnp.isfinite(slope)
    radius = jnp.where(finite, radius, jnp.nan)
    reached = jnp.full_like(radius, jnp.inf)
    for times in reversed(STEPS):
      way = times * radius
      x = images + norms.per_image(way) * steepest(down, norm)
      is_other = at(margins(jnp.clip(x, 0, 1))) < 0
      reached = jnp.where(is_other, way, reached)
    return radius, reached

  radius, reached = jax.lax.map(one, order.T)
  return radius.T, reached.T


def steepest(gradient: Images, norm: str) -> Images:
  """The step of length 1 along which a linear function rises most."""
  if norm != 'l1':
    return norms.direction(gradient, norm)
  flat = gradient.reshape(len(gradient), -1)
  largest = jnp.abs(flat).argmax(1)
  hot = jax.nn.one_hot(largest, flat.shape[1], dtype=flat.dtype)
  return (hot * jnp.sign(flat)).reshape(gradient.shape)
