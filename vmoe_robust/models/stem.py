"""How an image becomes tokens: one convolution, or several small ones."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

_named = nn.with_logical_partitioning


def strides(patch: int) -> tuple[int, ...]:
  """Strides of the 3x3 convolutions of a stem 'conv'; at least two.

  Their product is the patch side, a power of two. No stride is above 2, so
  that no pixel is left out: 2 is (1, 2), 4 is (2, 2), 8 is (2, 2, 2).
  """
  halvings = patch.bit_length() - 1
  return (1,) * (2 - halvings) + (2,) * halvings


def widths(patch: int, hidden: int) -> tuple[int, ...]:
  """Channels after each convolution: they double up to the hidden width."""
  number = len(strides(patch))
  return tuple(hidden >> (number - 1 - i) for i in range(number))


class ConvStem(nn.Module):
  """3x3 convolutions of stride 2 instead of patches (arXiv:2106.14881).

  A LayerNorm over each pixel's channels and a GELU stand between them; the
  authors have BatchNorm, with which images change each other's tokens.
  """

  patch: int
  hidden: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: Float[Array, 'batch height width channels']
  ) -> Float[Array, 'batch rows columns dim']:
    """One token a patch; each also sees pixels around its patch."""
    sizes = widths(self.patch, self.hidden)
    for i, stride in enumerate(strides(self.patch)):
      if i:
        x = nn.LayerNorm(dtype=self.dtype, name=f'norm_{i - 1}')(x)
        x = nn.gelu(x)
      x = nn.Conv(
        sizes[i],
        (3, 3),
        strides=stride,
        padding=1,
        dtype=self.dtype,
        kernel_init=_named(
          nn.initializers.lecun_normal(), (None, None, None, 'embed')
        ),
        name=f'conv_{i}',
      )(x)
    return x


def stem(config: ConfigDict, dtype: jnp.dtype) -> nn.Module:
  """The stem of `config.model`, a layer from pixels to a grid of tokens."""
  if config.stem == 'conv':
    return ConvStem(config.patch, config.hidden, dtype, name='stem')
  return nn.Conv(
    config.hidden,
    (config.patch, config.patch),
    strides=(config.patch, config.patch),
    padding='VALID',
    dtype=dtype,
    kernel_init=_named(
      nn.initializers.lecun_normal(), (None, None, None, 'embed')
    ),
    name='embedding',
  )
