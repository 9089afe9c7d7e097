"""How an image becomes tokens: one convolution, or several small ones.

What differs between backends: on a CPU a convolution is a product of matrices,
as XLA's CPU compiler makes those in loops more than a hundred times slower, its
gradient by the weights above all (github.com/jax-ml/jax/issues/12868).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vmoe_robust.mesh import platform

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


def product(
  x: Float[Array, 'batch height width inputs'],
  kernel: Float[Array, 'rows columns inputs outputs'],
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **_,
) -> Float[Array, 'batch down across outputs']:
  """A convolution as one product of matrices.

  What `jax.lax.conv_general_dilated` computes without dilation, to rounding.
  The pixels under a kernel are copied: 9 / 4 of the image for a kernel of 3x3
  at stride 2.
  """
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  if tuple(strides) == kernel.shape[:2]:
    under = _patches(x, *strides)
  else:
    under = _windows(x, kernel.shape[:2], strides)
  return under @ kernel.reshape(-1, kernel.shape[-1])


def _patches(x, rows: int, columns: int):
  """The pixels of patches that do not overlap, each patch in one vector."""
  batch, height, width, inputs = x.shape
  down, across = height // rows, width // columns
  x = x[:, : down * rows, : across * columns]
  x = x.reshape(batch, down, rows, across, columns, inputs).swapaxes(2, 3)
  return x.reshape(batch, down, across, rows * columns * inputs)


def _windows(x, sides: Sequence[int], strides: Sequence[int]):
  """The same where they overlap: a slice of the images a pixel of a kernel."""
  ranges = [
    range(0, size - side + 1, stride)
    for size, side, stride in zip(x.shape[1:3], sides, strides, strict=True)
  ]
  places = [
    [slice(i, i + r[-1] + 1, r.step) for i in range(side)]
    for r, side in zip(ranges, sides, strict=True)
  ]
  under = [x[:, rows, columns] for rows in places[0] for columns in places[1]]
  return jnp.concatenate(under, axis=-1)


class ConvStem(nn.Module):
  """3x3 convolutions of stride 2 instead of patches (arXiv:2106.14881).

  A LayerNorm over each pixel's channels and a GELU stand between them; the
  authors have BatchNorm, with which images change each other's tokens.
  """

  patch: int
  hidden: int
  dtype: jnp.dtype
  convolution: Callable | None = None  # None: XLA's own

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
        conv_general_dilated=self.convolution,
        name=f'conv_{i}',
      )(x)
    return x


def convolution_on(mesh: Mesh) -> Callable | None:
  """What computes convolutions on these devices; None: XLA's own."""
  return product if platform(mesh) == 'cpu' else None


def stem(
  config: ConfigDict, dtype: jnp.dtype, convolution: Callable | None
) -> nn.Module:
  """The stem of `config.model`, a layer from pixels to a grid of tokens.

  Args:
    config: `config.model`.
    dtype: in which it computes.
    convolution: see `convolution_on`.
  """
  if config.stem == 'conv':
    return ConvStem(
      config.patch, config.hidden, dtype, convolution, name='stem'
    )
  return nn.Conv(
    config.hidden,
    (config.patch, config.patch),
    strides=(config.patch, config.patch),
    padding=0,
    dtype=dtype,
    kernel_init=_named(
      nn.initializers.lecun_normal(), (None, None, None, 'embed')
    ),
    conv_general_dilated=convolution,
    name='embedding',
  )
