"""Runs of rows of one matrix, each through the MLP of its own expert.

What differs between backends: a CPU takes the runs in blocks that stay in its
cache, a TPU has a kernel. Either does the work of the rows that there are.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

Rows = Float[Array, 'rows dim']
Counts = Int[Array, 'experts']
Mlp = Callable[[tuple, Rows], Rows]

# Rows that meet one expert's matrices at a time: few enough to stay in the
# cache, enough to be fast.
_MOST, _LEAST = 256, 32
# Rows, inner and outer width that the kernel holds in a core's fast memory.
_TILING = (256, 512, 512)


def block_size(rows: int, experts: int, even: bool) -> int:
  """Rows of a block for `blocks`.

  Runs of equal length are cut into equal parts. The last block of an uneven
  run is partly wasted, so that blocks are half of the mean run or less.
  """
  mean = -(-rows // experts)
  if even:
    return -(-mean // -(-mean // _MOST))
  return min(max(2 ** (mean.bit_length() - 2), _LEAST), _MOST)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def blocks(
  mlp: Mlp, block: int, weights: tuple, rows: Rows, count: Counts
) -> Rows:
  """Runs each expert on its run of `count` rows, one run behind another.

  The last block of a run covers rows of the next one, which writes over them
  in its turn. Rows behind the last run mean nothing.

  Args:
    mlp: runs one expert, whose weights it is given.
    block: rows that it is given at a time.
    weights: of all experts, along the leading axis.
    rows: sorted by expert.
    count: rows of each expert.
  """
  padded = _pad(rows, block)

  def expert(out, run):
    begin, length, mine = run

    def body(i, out):
      at = begin + i * block
      y = mlp(mine, lax.dynamic_slice_in_dim(padded, at, block))
      return lax.dynamic_update_slice_in_dim(out, y, at, 0)

    return lax.fori_loop(0, -(-length // block), body, out), None

  runs = jnp.cumsum(count) - count, count, weights
  return lax.scan(expert, jnp.zeros_like(padded), runs)[0][: len(rows)]


def _blocks_forward(mlp, block, weights, rows, count):
  want = wanted(weights)
  weights, rows, count = values((weights, rows, count))
  y = blocks(mlp, block, weights, rows, count)
  return y, (weights, rows, count, want)


def _blocks_backward(mlp, block, saved, dy):
  weights, rows, count, want = saved
  size, dy, rows = len(rows), _pad(dy, block), _pad(rows, block)

  def expert(d_rows, run):
    begin, length, mine = run

    def body(i, state):
      d_rows, d_mine = state
      at = begin + i * block
      real = jnp.arange(block)[:, None] < length - i * block
      here = lax.dynamic_slice_in_dim(rows, at, block)
      d_here = jnp.where(real, lax.dynamic_slice_in_dim(dy, at, block), 0)
      d_here, d_mine = pull(mlp, mine, here, d_here, d_mine, want)
      return lax.dynamic_update_slice_in_dim(d_rows, d_here, at, 0), d_mine

    first = d_rows, zeros(mine) if want else ()
    return lax.fori_loop(0, -(-length // block), body, first)

  runs = jnp.cumsum(count) - count, count, weights
  d_rows, d_weights = lax.scan(expert, jnp.zeros_like(rows), runs)
  return d_weights if want else zeros(weights), d_rows[:size], None


blocks.defvjp(_blocks_forward, _blocks_backward, symbolic_zeros=True)


def kernel(
  weights: tuple, rows: Rows, count: Counts, interpret: bool = False
) -> Rows:
  """The same as `blocks` by a TPU's kernel for grouped matrix products.

  Args:
    weights: both layers' kernels and biases, in the type of `rows`.
    rows: sorted by expert.
    count: rows of each expert.
    interpret: run the kernel without a TPU, slowly.
  """
  # Imported late: it takes a second, and other backends do not need it.
  from jax.experimental.pallas.ops.tpu import megablox

  w1, b1, w2, b2 = weights
  size = len(rows)
  rows = jnp.pad(rows, ((0, -size % _TILING[0]), (0, 0)))
  experts = jnp.arange(count.size, dtype=jnp.int32)
  owner = jnp.repeat(experts, count, total_repeat_length=len(rows))

  real = jnp.arange(len(rows))[:, None] < count.sum()
  # The kernel does not even write the rows behind the last run.
  only_real = lambda y: jnp.where(real, y, 0)

  def product(rows, kernel):
    return only_real(
      megablox.gmm(
        rows, kernel, count, rows.dtype, _TILING, interpret=interpret
      )
    )

  hidden = only_real(nn.gelu(product(rows, w1) + b1[owner]))
  return (product(hidden, w2) + b2[owner])[:size]


def pull(
  mlp: Callable,
  weights: tuple,
  rows: Array,
  dy: Array,
  total: tuple,
  want: bool,
) -> tuple[Array, tuple]:
  """The rows' gradient, and the weights' added to `total` if wanted."""
  if not want:
    return jax.vjp(partial(mlp, weights), rows)[1](dy)[0], total
  d_weights, d_rows = jax.vjp(mlp, weights, rows)[1](dy)
  return d_rows, jax.tree.map(jnp.add, total, d_weights)


def wanted(weights: PyTree) -> bool:
  """Whether the gradient of what `symbolic_zeros` describes is asked for.

  An attack asks for the image's gradient alone: that of the weights is not
  worked out.
  """
  return any(leaf.perturbed for leaf in jax.tree.leaves(weights))


def values(tree: PyTree) -> PyTree:
  """The arrays themselves of what `symbolic_zeros` describes."""
  return jax.tree.map(lambda leaf: leaf.value, tree)


def zeros(tree: PyTree) -> PyTree:
  """Zeros of the same shapes."""
  return jax.tree.map(jnp.zeros_like, tree)


def _pad(rows, block):
  """A block may begin at the last row."""
  return jnp.pad(rows, ((0, block), (0, 0)))
