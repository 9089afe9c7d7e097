"""Projected gradient ascent (Madry et al. 2018, arXiv:1706.06083)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vmoe_robust.attacks import norms
from vmoe_robust.attacks.interface import Images, Keys, Loss


def pgd(
  loss: Loss,
  images: Images,
  keys: Keys,
  eps: Float[Array, ''],
  *,
  norm: str,
  steps: int,
  step_size: float,
  random_start: bool,
  restarts: int,
  momentum: float,
) -> Images:
  """The worst of all iterates of `restarts` runs of `steps` updates.

  Iterates are compared image by image: a broken one beats one that is not,
  then the higher loss wins. The clean image is the first of them, so no image
  comes out easier than it went in.

  Args:
    loss: see `interface.Loss`; called on single batches, never on images of
      different sizes.
    images: pixels in [0, 1].
    keys: one an image, for the random starts.
    eps: radius, in units of pixels in [0, 1].
    norm: 'linf' or 'l2'.
    steps: gradients a restart.
    step_size: in the units of eps; 0 means 2.5 * eps / steps.
    random_start: start uniformly inside the ball, not at the image.
    restarts: runs, each with a start of its own.
    momentum: decay of the gradients' running sum (MI-FGSM, arXiv:1710.06081,
      equation 6); 0 steps along the gradient itself.

  Returns:
    Images inside the ball and inside [0, 1].
  """
  size = step_size or 2.5 * eps / steps

  def total(x):
    values, broken = loss(x)
    return values.sum(), (values, broken)

  def update(_, carry):
    x, velocity, worst = carry
    (_, found), gradient = jax.value_and_grad(total, has_aux=True)(x)
    worst = _worse(worst, x, *found)
    # An infinite loss has no direction; the image waits where it is.
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
    velocity = momentum * velocity + norms.unit_l1(gradient)
    x = x + size * norms.direction(velocity, norm)
    return norms.project(x, images, eps, norm), velocity, worst

  def run(restart, worst):
    x = images
    if random_start:
      fresh = jax.vmap(jax.random.fold_in, (0, None))(keys, restart)
      x = norms.random_point(images, fresh, eps, norm)
      x = norms.project(x, images, eps, norm)
    start = x, jnp.zeros_like(x), worst
    x, _, worst = jax.lax.fori_loop(0, steps, update, start)
    return _worse(worst, x, *loss(x))

  batch = len(images)
  worst = images, jnp.full(batch, -jnp.inf), jnp.zeros(batch, bool)
  if random_start:
    worst = _worse(worst, images, *loss(images))
  return jax.lax.fori_loop(0, restarts, run, worst)[0]


def _worse(worst, x, values, broken):
  """Of two candidates an image, the one that does more harm."""
  kept, kept_values, kept_broken = worst
  better = broken & ~kept_broken
  better |= (broken == kept_broken) & (values > kept_values)
  return (
    jnp.where(better[:, None, None, None], x, kept),
    jnp.where(better, values, kept_values),
    jnp.where(better, broken, kept_broken),
  )
