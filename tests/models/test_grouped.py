"""Runs of rows, each by its own expert."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.slow import all_slow_but
from vmoe_robust.models import grouped

DIM, HIDDEN, EXPERTS = 8, 12, 4
# Runs that are even, empty, all of one expert, and rows that belong to none.
COUNTS = [(5, 5, 5, 5), (0, 13, 0, 7), (0, 0, 20, 0), (3, 0, 1, 2)]


def first(weights, rows):
  return rows @ weights[0] + weights[1]


def second(weights, hidden):
  return nn.gelu(hidden) @ weights[2] + weights[3]


def mlp(weights, rows):
  return second(weights, first(weights, rows))


LAYERS = (first, second)


def draw(rng, rows):
  shapes = (DIM, HIDDEN), (HIDDEN,), (HIDDEN, DIM), (DIM,)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  weights = tuple(normal(EXPERTS, *shape) for shape in shapes)
  return weights, normal(rows, DIM), normal(rows, DIM)


def one_by_one(weights, rows, count):
  parts = jnp.split(rows, np.cumsum(np.asarray(count)))
  runs = zip(zip(*weights, strict=True), parts[:-1], strict=True)
  return jnp.concatenate([*(mlp(*run) for run in runs), parts[-1]])


@pytest.mark.parametrize('count', COUNTS, ids=str)
@pytest.mark.parametrize(
  'sizes',
  all_slow_but(
    [range(3, 9, 3)], [range(1, 9), range(3, 9, 3), range(16, 33, 16)]
  ),
  ids=str,
)
def test_blocks(close, count, sizes):
  size = 20 + grouped.SPARE
  real = jnp.arange(size)[:, None] < sum(count)
  weights, rows, dy = draw(np.random.default_rng(0), size)
  count = jnp.asarray(count, jnp.int32)

  def pulled(run):
    @jax.jit
    def value(weights, rows):
      return jnp.where(real, run(weights, rows), 0)

    y, pull = jax.vjp(value, weights, rows)
    return y, pull(dy)

  run = functools.partial(grouped.blocks, LAYERS, sizes)
  expected = pulled(functools.partial(one_by_one, count=count))
  close(pulled(lambda w, r: run(w, r, count)), expected)
  only = jax.grad(lambda r: (run(weights, r, count) * real * dy).sum())(rows)
  close(only * real, expected[1][1] * real)


@pytest.mark.parametrize(
  'product',
  [
    pytest.param(
      functools.partial(grouped.megablox, interpret=True),
      marks=pytest.mark.slow,
    ),
    jax.lax.ragged_dot,
  ],
  ids=['megablox', 'XLA'],
)
def test_by_products(close, product):
  weights, rows, dy = draw(np.random.default_rng(0), 20)
  count = jnp.asarray((4, 0, 9, 3), jnp.int32)
  real = jnp.arange(20)[:, None] < 16

  @functools.partial(jax.jit, static_argnums=0)
  def pulled(run, weights, rows):
    value = lambda *a: jnp.where(real, run(*a, count), 0)
    y, pull = jax.vjp(value, weights, rows)
    d_weights, d_rows = pull(dy)
    return y, d_weights, jnp.where(real, d_rows, 0)

  kernel = functools.partial(grouped.by_products, product)
  blocks = functools.partial(grouped.blocks, LAYERS, range(4, 21, 4))
  close(pulled(kernel, weights, rows), pulled(blocks, weights, rows))


@pytest.mark.parametrize('matrix, number', [(2**14, 8), (2**20, 16)])
@pytest.mark.parametrize('rows, experts', [(65, 4), (512, 32), (8704, 8)])
def test_block_sizes(rows, experts, matrix, number):
  sizes = grouped.block_sizes(rows, experts, matrix)
  unit, most = sizes[0], sizes[-1]
  assert list(sizes) == [unit * (1 + i) for i in range(len(sizes))]
  assert len(sizes) == min(number, rows // unit)
  assert 16 <= unit <= grouped.SPARE and most <= min(rows, 512)
  limits = 16, 512 // number
  assert unit in limits or unit <= rows / experts / 8 < 2 * unit


@pytest.mark.slow
def test_each(close):
  weights, rows, dy = draw(np.random.default_rng(0), 20)
  count = np.full(EXPERTS, 5)

  def each(weights, rows):
    rows = rows.reshape(EXPERTS, 5, DIM)
    return grouped.each(LAYERS, weights, rows).reshape(20, DIM)

  y, pull = jax.vjp(jax.jit(each), weights, rows)
  expected, expected_pull = jax.vjp(
    lambda w, r: one_by_one(w, r, count), weights, rows
  )
  close((y, pull(dy)), (expected, expected_pull(dy)))
