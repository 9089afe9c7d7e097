"""Mixup (arXiv:1710.09412) on the device, between neighbours in the batch."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32
from scipy import special

_KNOTS = 1 << 14


def mixup(
  key: Key[Array, ''] | UInt32[Array, '2'],
  images: Float[Array, 'batch height width channels'],
  targets: Float[Array, 'batch classes'],
  index: Int[Array, 'batch'],
  alpha: float,
  mask: Bool[Array, 'batch'] | None = None,
) -> tuple[
  Float[Array, 'batch height width channels'],
  Float[Array, 'batch classes'],
]:
  """Mixes image 2j with image 2j + 1 by a ratio drawn from Beta(alpha, alpha).

  The training order is shuffled, so neighbours are random partners, and no
  device needs another's images. Each pair's ratio depends on the key and the
  pair's place alone: neither the mesh nor gradient accumulation changes it.

  Args:
    key: of this step.
    images: in [0, 1]; an even number of them.
    targets: one-hot, or several-hot.
    index: the images' places in the whole batch.
    alpha: of the Beta distribution; above 0.
    mask: which images there are; the neighbour of another one stays as it is.
      None: all.
  """
  pairs = images.shape[0] // 2
  places = index.reshape(pairs, 2)[:, 0] // 2

  def draw(pair):
    return jax.random.uniform(jax.random.fold_in(key, pair), (), jnp.float32)

  ratio = _beta_quantile(jax.vmap(draw)(places), alpha)
  if mask is not None:
    ratio = jnp.where(mask.reshape(pairs, 2).all(1), ratio, 1)

  def mix(x):
    both = x.reshape(pairs, 2, *x.shape[1:])
    r = ratio.astype(x.dtype).reshape(pairs, *[1] * x.ndim)
    return (r * both + (1 - r) * both[:, ::-1]).reshape(x.shape)

  return mix(images), mix(targets)


def _beta_quantile(
  uniform: Float[Array, 'pairs'], alpha: float
) -> Float[Array, 'pairs']:
  # By a table, because jax.random.beta rejects in a loop: its condition is a
  # reduction over the pairs, which on a mesh is an all-reduce a round.
  table = special.betaincinv(alpha, alpha, np.linspace(0, 1, _KNOTS + 1))
  table = jnp.asarray(table, jnp.float32)
  place = uniform * _KNOTS
  low = jnp.clip(place.astype(jnp.int32), 0, _KNOTS - 1)
  part = place - low.astype(place.dtype)
  return (1 - part) * table[low] + part * table[low + 1]
