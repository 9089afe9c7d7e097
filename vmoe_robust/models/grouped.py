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
Layer = Callable[[tuple, Rows], Rows]

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
  layers: tuple[Layer, Layer],
  block: int,
  weights: tuple,
  rows: Rows,
  count: Counts,
) -> Rows:
  """Runs each expert on its run of `count` rows, one run behind another.

  The last block of a run covers rows of the next one, which writes over them
  in its turn. Rows behind the last run mean nothing.

  Args:
    layers: both layers of one expert, whose weights they are given; what the
      first returns is kept for the gradient.
    block: rows that they are given at a time.
    weights: of all experts, along the leading axis.
    rows: sorted by expert.
    count: rows of each expert.
  """
  return _blocks(layers, block, weights, rows, count, 1)[0]


def _blocks(layers, block, weights, rows, count, last):
  """What the last of the layers return, for all rows."""
  padded = _pad(rows, block)

  def run_block(mine, at):
    outs = [lax.dynamic_slice_in_dim(padded, at, block)]
    for layer in layers:
      outs.append(layer(mine, outs[-1]))
    return outs[-last:]

  def run_expert(outs, run):
    begin, length, mine = run

    def body(i, outs):
      at = begin + i * block
      return _put(outs, run_block(mine, at), at)

    return lax.fori_loop(0, -(-length // block), body, outs), None

  runs = jnp.cumsum(count) - count, count, weights
  # Zeros that vary over the same axes of the mesh as what replaces them.
  like = run_block(jax.tree.map(lambda w: w[0], weights), 0)
  zero = lambda x: jnp.broadcast_to(zeros(x[:1]), (len(padded), x.shape[1]))
  outs = jax.tree.map(zero, like)
  outs = lax.scan(run_expert, outs, runs)[0]
  return [out[: len(rows)] for out in outs]


def _blocks_forward(layers, block, weights, rows, count):
  want = wanted(weights)
  weights, rows, count = values((weights, rows, count))
  hidden, y = _blocks(layers, block, weights, rows, count, 2)
  return y, (weights, rows, hidden, count, want)


def _blocks_backward(layers, block, saved, dy):
  weights, rows, hidden, count, want = saved
  size = len(rows)
  dy, inputs = _pad(dy, block), [_pad(x, block) for x in (rows, hidden)]

  def expert(d_rows, run):
    begin, length, mine = run

    def body(i, state):
      d_rows, d_mine = state
      at = begin + i * block
      real = jnp.arange(block)[:, None] < length - i * block
      d_here = jnp.where(real, lax.dynamic_slice_in_dim(dy, at, block), 0)
      for layer, x in zip(layers[::-1], inputs[::-1], strict=True):
        here = lax.dynamic_slice_in_dim(x, at, block)
        d_here, d_mine = pull(layer, mine, here, d_here, d_mine, want)
      return _put(d_rows, d_here, at), d_mine

    first = d_rows, zeros(mine) if want else ()
    return lax.fori_loop(0, -(-length // block), body, first)

  runs = jnp.cumsum(count) - count, count, weights
  d_rows, d_weights = lax.scan(expert, jnp.zeros_like(inputs[0]), runs)
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


def _put(outs, blocks, at):
  put = lambda out, block: lax.dynamic_update_slice_in_dim(out, block, at, 0)
  return jax.tree.map(put, outs, blocks)
