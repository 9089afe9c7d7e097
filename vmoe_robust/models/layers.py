"""Layers that several parts of the transformer share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vmoe_robust.models.moe import Grouping

_named = nn.with_logical_partitioning
_xavier = nn.initializers.xavier_uniform()
_small = nn.initializers.normal(1e-6)


class Dropout(nn.Module):
  """Dropout whose draws follow the image, so that no mesh changes them.

  With `whole`, an image's branch is dropped as one: stochastic depth
  (arXiv:1603.09382).
  """

  rate: float
  whole: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, 'batch ...'], grouping: Grouping
  ) -> Float[Array, 'batch ...']:
    """Drops and rescales while training, else returns `x`."""
    if not self.rate or not grouping.train:
      return x
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      self.make_rng('dropout'), grouping.index
    )
    shape = (1,) * (x.ndim - 1) if self.whole else x.shape[1:]
    # A Python float would draw others where JAX computes in float64.
    chance = np.float32(1 - self.rate)
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, chance, shape))
    return jnp.where(keep(keys), x / (1 - self.rate), 0)


class Attention(nn.Module):
  """Multi-head self-attention, or attention of `queries` to `x`."""

  heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'batch tokens dim'],
    queries: Float[Array, 'batch queries dim'] | None = None,
  ) -> Float[Array, 'batch queries dim']:
    """Attends; scores are scaled by one over the root of the head's width."""
    dim = x.shape[-1]

    def project(name, source):
      return nn.DenseGeneral(
        (self.heads, dim // self.heads),
        dtype=self.dtype,
        kernel_init=_named(_xavier, ('embed', 'heads', None)),
        bias_init=_named(nn.initializers.zeros_init(), ('heads', None)),
        name=name,
      )(source)

    query = project('query', x if queries is None else queries)
    attend = jax.nn.dot_product_attention
    if self.dtype == jnp.float64:
      attend = _attend_in_float64
    out = attend(query, project('key', x), project('value', x))
    return nn.DenseGeneral(
      dim,
      axis=(-2, -1),
      dtype=self.dtype,
      kernel_init=_named(_xavier, ('heads', None, 'embed')),
      name='out',
    )(out)


def _attend_in_float64(query, key, value):
  # JAX's own takes the softmax in float32.
  scores = jnp.einsum('bqhd,bkhd->bhqk', query, key)
  weights = jax.nn.softmax(scores / query.shape[-1] ** 0.5)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


class Mlp(nn.Module):
  """Two layers with a GELU (tanh approximation) between them."""

  config: ConfigDict  # config.model
  dtype: jnp.dtype
  hidden: int = 0  # 0: config.model.mlp

  @nn.compact
  def __call__(
    self, x: Float[Array, 'batch tokens dim'], grouping: Grouping
  ) -> Float[Array, 'batch tokens dim']:
    """Transforms each token alone."""
    x_in, rate = x, self.config.dropout
    x = nn.Dense(
      self.hidden or self.config.mlp,
      dtype=self.dtype,
      kernel_init=_named(_xavier, ('embed', 'mlp')),
      bias_init=_named(_small, ('mlp',)),
    )(x)
    x = Dropout(rate)(nn.gelu(x), grouping)
    return nn.Dense(
      x_in.shape[-1],
      dtype=self.dtype,
      kernel_init=_named(_xavier, ('mlp', 'embed')),
      bias_init=_small,
    )(x)


class LayerScale(nn.Module):
  """A learnt factor for each channel of a branch (arXiv:2103.17239, eq. 3)."""

  start: float  # of every channel

  @nn.compact
  def __call__(self, x: Float[Array, '... dim']) -> Float[Array, '... dim']:
    """Multiplies; what is learnt stays in float32."""
    scale = self.param(
      'scale',
      _named(nn.initializers.constant(self.start), ('embed',)),
      x.shape[-1:],
      jnp.float32,
    )
    return x * jnp.asarray(scale, x.dtype)
