"""Queues, tables and moves against plain Python."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_robust.models import plan

SHAPES = [(1, 1, 1), (7, 1, 3), (12, 2, 4), (9, 3, 3), (16, 2, 5)]


def draw(rng, tokens, selected, experts):
  """Distinct experts a token, some of them none, and gates with ties."""
  chosen = np.stack(
    [rng.permutation(experts)[:selected] for _ in range(tokens)]
  )
  chosen[rng.random(tokens) < 0.2] = experts
  gates = rng.integers(0, 4, tokens) / 4
  return chosen.astype(np.int32), gates.astype(np.float32)


def queues(chosen, experts, priority=None):
  """Each expert's choices, as `token * K + k`, in the order of serving."""
  tokens, selected = chosen.shape
  turns = list(range(tokens))
  if priority is not None:
    turns.sort(key=lambda t: -priority[t])  # Python's sort is stable
  lines = [[] for _ in range(experts)]
  for k in range(selected):
    for token in turns:
      if chosen[token, k] < experts:
        lines[chosen[token, k]].append(token * selected + k)
  return lines


def cases(tokens, selected, experts, count=6):
  rng = np.random.default_rng(tokens)
  for i in range(count):
    chosen, gates = draw(rng, tokens, selected, experts)
    yield chosen, gates if i % 2 else None


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_queue(shape):
  make = jax.jit(plan.queue, static_argnums=1)
  for chosen, priority in cases(*shape):
    found = make(chosen, shape[2], priority)
    lines = queues(chosen, shape[2], priority)
    assert found.length.tolist() == [len(line) for line in lines]
    assert found.order.tolist()[: sum(map(len, lines))] == sum(lines, [])
    for start, line in zip(found.start, lines, strict=True):
      for place, choice in enumerate(line):
        assert found.order[start + place] == choice
        assert found.rank.ravel()[choice] == place


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('size', [1, 4])
def test_tables_of_all_rounds_serve_each_choice_once(shape, size):
  tokens, selected, experts = shape
  queue = jax.jit(plan.queue, static_argnums=1)
  tables = jax.jit(plan.tables, static_argnums=2)
  for chosen, priority in cases(*shape, count=2):
    line = queue(chosen, experts, priority)
    lines = queues(chosen, experts, priority)
    served = []
    for skip in range(0, tokens * selected, size):
      source, slot, kept = map(np.asarray, tables(line, chosen, size, skip))
      for expert, row in enumerate(source):
        real = row[row < tokens * selected].tolist()
        assert real == lines[expert][skip : skip + size]
        assert (row[len(real) :] == tokens * selected).all()
        for place, choice in enumerate(real):
          assert kept.ravel()[choice] and slot.ravel()[choice] == place
        served += real
      assert kept.sum() == (source < tokens * selected).sum()
    wanted = np.flatnonzero(chosen.ravel() < experts)
    assert sorted(served) == wanted.tolist()


@pytest.mark.slow
def test_moves_and_their_gradients_are_those_of_gathers():
  rng = np.random.default_rng(0)
  (tokens, selected, experts), size, dim = (12, 2, 4), 4, 3
  chosen, gates = draw(rng, tokens, selected, experts)
  line = plan.queue(jnp.asarray(chosen), experts, jnp.asarray(gates))
  source, slot, kept = plan.tables(line, jnp.asarray(chosen), size)
  slot = jnp.where(kept, chosen * size + slot, experts * size)
  source = source.ravel()
  assert 0 < kept.sum() < tokens * selected
  x = jnp.asarray(rng.normal(size=(tokens, dim)), jnp.float32)
  y = jnp.asarray(rng.normal(size=(experts * size, dim)), jnp.float32)

  gates = jnp.asarray(rng.normal(size=slot.shape), jnp.float32)
  moves = (
    lambda x, plain: plan.dispatch(x, source, slot, plain),
    lambda y, plain: plan.combine(y, gates, source, slot, plain),
    lambda gates, plain: plan.combine(y, gates, source, slot, plain),
  )

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def pull(move, plain, value, dy):
    found, back = jax.vjp(lambda value: move(value, plain), value)
    return found, back(dy)[0]

  for value, move in zip((x, y, gates), moves, strict=True):
    dy = jnp.asarray(rng.normal(size=move(value, True).shape), jnp.float32)
    found, pulled = pull(move, False, value, dy)
    expected, plainly_pulled = pull(move, True, value, dy)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(pulled, plainly_pulled, atol=1e-6)
    assert pulled.any()


@pytest.mark.parametrize('tokens', [1, 17, 68])
@pytest.mark.parametrize('selected, experts', [(1, 4), (2, 32)])
@pytest.mark.parametrize('factor', [0.5, 1.05, 8.0])
def test_capacity(tokens, selected, experts, factor):
  found = plan.capacity(tokens, selected, factor, experts)
  least = tokens * selected * factor / experts
  assert found % 4 == 0 and math.ceil(least) <= found < math.ceil(least) + 4
