"""Rows through the MLP of their own expert, one expert after another.

What differs between backends: a CPU has blocks whose hidden units stay in its
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
Product = Callable[[Rows, Float[Array, 'experts dim outer'], Counts], Array]

# Rows of the smallest unit and of the largest block.
_UNIT, _BLOCK = 16, 512
# Units of a block: few where a matrix is smaller than so many weights.
_FEW, _MANY, _SMALL = 8, 16, 2**18
# Rows behind the last run that `blocks` needs.
SPARE = _BLOCK // _FEW
# Rows, inner and outer width that the kernel holds in a core's fast memory.
TILING = (256, 512, 512)


def each(
  layers: tuple[Layer, Layer],
  weights: tuple,
  rows: Float[Array, 'experts rows dim'],
) -> Float[Array, 'experts rows dim']:
  """Runs each expert on as many rows.

  Args:
    layers: both layers of one expert, whose weights they are given; what the
      first returns is kept for the gradient, and nothing of the second.
    weights: of all experts, along the leading axis.
    rows: of each expert.
  """
  first, second = layers
  second = jax.checkpoint(second, prevent_cse=False)
  one = lambda run: second(run[0], first(*run))
  return lax.map(one, (weights, rows))


def block_sizes(rows: int, experts: int, matrix: int) -> range:
  """Rows of the blocks for `blocks`, each of which is compiled.

  They are the multiples of a unit, which is between an eighth and a sixteenth
  of the mean run, within limits. A large matrix takes as long to read as to
  meet some 25 rows, so that larger and more closely fitting blocks are worth
  the time that compiling them takes.

  Args:
    rows: of all experts.
    experts: how many there are.
    matrix: weights of one of an expert's matrices.
  """
  number = _FEW if matrix < _SMALL else _MANY
  mean = -(-rows // experts)
  unit = min(max(2 ** (mean.bit_length() - 4), _UNIT), _BLOCK // number)
  most = min(number, rows // unit)
  return range(unit, (most + 1) * unit, unit)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def blocks(
  layers: tuple[Layer, Layer],
  sizes: range,
  weights: tuple,
  rows: Rows,
  count: Counts,
) -> Rows:
  """Runs each expert on its run of `count` rows, one run behind another.

  The last block of a run covers rows of the next one, which writes over them
  in its turn. Rows behind the last run mean nothing; `SPARE` are needed.

  Args:
    layers: both layers of one expert, whose weights they are given; what the
      first returns is kept for the gradient.
    sizes: rows that they may be given at once, see `block_sizes`.
    weights: of all experts, along the leading axis.
    rows: sorted by expert.
    count: rows of each expert.
  """
  return _blocks(layers, sizes, weights, rows, count, 1)[0]


def _blocks(layers, sizes, weights, rows, count, last):
  """What the last of the layers return, for all rows."""

  def run_block(mine, at, size):
    outs = [lax.dynamic_slice_in_dim(rows, at, size)]
    for layer in layers:
      outs.append(layer(mine, outs[-1]))
    return outs[-last:]

  def run_expert(outs, run):
    begin, length, mine = run

    def body(done, size, outs):
      at = begin + done
      return _put(outs, run_block(mine, at, size), at)

    return _blockwise(sizes, length, body, outs), None

  runs = jnp.cumsum(count) - count, count, weights
  # Zeros that vary over the same axes of the mesh as what replaces them.
  like = run_block(jax.tree.map(lambda w: w[0], weights), 0, 1)
  zero = lambda x: jnp.broadcast_to(zeros(x), (len(rows), x.shape[1]))
  return lax.scan(run_expert, jax.tree.map(zero, like), runs)[0]


def _blockwise(sizes, length, body, state):
  """Calls `body(rows done, size of the block, state)` to the end of a run.

  Blocks are as large as can be, and the last one has the units that are left:
  a matrix that meets few rows takes nearly as long as one that meets many.
  """
  unit, most = sizes[0], sizes[-1]
  length = -(-length // unit) * unit
  done = 0
  for size in reversed(sizes):
    number = length // most if size == most else length % most == size

    def step(i, state, size=size, done=done):
      # XLA would move what does not depend on i out of the loop.
      return body(done + i * size, size, state)

    state = lax.fori_loop(0, jnp.int32(number), step, state)
    done = done + number * size
  return state


def _blocks_forward(layers, sizes, weights, rows, count):
  want = wanted(weights)
  weights, rows, count = values((weights, rows, count))
  hidden, y = _blocks(layers, sizes, weights, rows, count, 2)
  return y, (weights, rows, hidden, count, want)


def _blocks_backward(layers, sizes, saved, dy):
  weights, rows, hidden, count, want = saved

  def expert(d_rows, run):
    begin, length, mine = run

    def body(done, size, state):
      d_rows, d_mine = state
      at = begin + done
      real = jnp.arange(size)[:, None] < length - done
      d_here = jnp.where(real, lax.dynamic_slice_in_dim(dy, at, size), 0)
      for layer, x in zip(layers[::-1], (hidden, rows), strict=True):
        here = lax.dynamic_slice_in_dim(x, at, size)
        d_here, d_mine = pull(layer, mine, here, d_here, d_mine, want)
      return _put(d_rows, d_here, at), d_mine

    first = d_rows, zeros(mine) if want else ()
    return _blockwise(sizes, length, body, first)

  runs = jnp.cumsum(count) - count, count, weights
  d_rows, d_weights = lax.scan(expert, jnp.zeros_like(rows), runs)
  return d_weights if want else zeros(weights), d_rows, None


blocks.defvjp(_blocks_forward, _blocks_backward, symbolic_zeros=True)


def megablox(
  rows: Rows,
  matrices: Float[Array, 'experts dim outer'],
  count: Counts,
  interpret: bool = False,
) -> Float[Array, 'rows outer']:
  """Each run of rows times its own expert's matrix, by a TPU's kernel.

  Rows behind the last run mean nothing.

  Args:
    rows: sorted by expert.
    matrices: of the experts.
    count: rows of each expert.
    interpret: run the kernel without a TPU, slowly.
  """
  # Imported late: it takes a second, and other backends do not need it.
  from jax.experimental.pallas.ops.tpu import megablox

  size = len(rows)
  rows = jnp.pad(rows, ((0, -size % TILING[0]), (0, 0)))
  return megablox.gmm(
    rows, matrices, count, rows.dtype, TILING, interpret=interpret
  )[:size]


# The product of each backend that runs experts by one; others take rounds of
# batched products, and CPUs `blocks`. Measured: docs/results/performance.md.
PRODUCTS: dict[str, Product] = {'tpu': megablox}


def by_products(
  product: Product, weights: tuple, rows: Rows, count: Counts
) -> Rows:
  """The same as `blocks` by a product of all runs at once.

  Args:
    product: one of `PRODUCTS`.
    weights: both layers' kernels and biases, in the type of `rows`.
    rows: sorted by expert.
    count: rows of each expert.
  """
  w1, b1, w2, b2 = weights
  experts = jnp.arange(count.size, dtype=jnp.int32)
  owner = jnp.repeat(experts, count, total_repeat_length=len(rows))
  owner = jax.nn.one_hot(owner, count.size, dtype=rows.dtype)
  real = jnp.arange(len(rows))[:, None] < count.sum()

  def layer(rows, kernel, bias):
    # Kernels need not write the rows behind the last run. The bias comes by a
    # product, whose gradient is one too, where a gather's is a slow scatter.
    y = product(rows, kernel, count)
    y += jnp.matmul(owner, bias, precision='highest')
    return jnp.where(real, y, 0)

  return layer(nn.gelu(layer(rows, w1, b1)), w2, b2)


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


def _put(outs, blocks, at):
  put = lambda out, block: lax.dynamic_update_slice_in_dim(out, block, at, 0)
  return jax.tree.map(put, outs, blocks)
