"""Integer tables that say which token takes which slot of which expert."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Queue(NamedTuple):
  """Every expert's queue of choices, and each choice's place in it.

  A choice is a pair (token, k), numbered `token * K + k`. A tuple, since
  `jax.custom_vjp` rebuilds it of what is no array, which a dataclass refuses.
  """

  order: Int[Array, 'choices']  # choices, sorted by expert, then by rank
  start: Int[Array, 'experts']  # where an expert's queue begins in `order`
  count: Int[Array, 'experts']  # how long it is
  rank: Int[Array, 'tokens selected']  # a choice's place in its queue


def capacity(tokens: int, selected: int, factor: float, experts: int) -> int:
  """Slots an expert has for a group: V-MoE's, a multiple of four."""
  slots = math.ceil(tokens * selected * factor / experts)
  return slots + -slots % 4


def queue(
  experts: Int[Array, 'tokens selected'],
  num_experts: int,
  priority: Float[Array, 'tokens'] | None = None,
) -> Queue:
  """Queues all first choices before all second ones.

  Args:
    experts: the experts each token selected; `num_experts` is none.
    num_experts: how many experts there are.
    priority: within a choice, tokens of high priority come first (batch
      priority routing, arXiv:2106.05974, section 3.3); None: in order.
  """
  tokens, selected = experts.shape
  turn = jnp.arange(tokens, dtype=jnp.int32)
  if priority is not None:
    turn = jnp.argsort(-priority, stable=True).astype(jnp.int32)
  flat = experts[turn].T.ravel()  # by k, then by turn
  by_expert = jnp.argsort(flat, stable=True)
  k, place = jnp.divmod(by_expert.astype(jnp.int32), tokens)
  order = turn[place] * selected + k
  count = jnp.bincount(flat, length=num_experts).astype(jnp.int32)
  start = jnp.cumsum(count) - count
  # Choices of no expert are last in `order`, behind every queue.
  behind = jnp.concatenate([start, count.sum(keepdims=True)])
  position = jnp.arange(order.size, dtype=jnp.int32)
  rank = position - behind[flat[by_expert]]
  rank = jnp.zeros_like(rank).at[order].set(rank, unique_indices=True)
  return Queue(order, start, count, rank.reshape(tokens, selected))


def tables(
  line: Queue,
  experts: Int[Array, 'tokens selected'],
  size: int,
  skip: Int[Array, ''] | int = 0,
) -> tuple[
  Int[Array, 'experts {size}'],
  Int[Array, 'tokens selected'],
  Bool[Array, 'tokens selected'],
]:
  """Fills `size` slots an expert from its queue, leaving out `skip` choices.

  Returns:
    The choice in each slot (tokens * selected where it is empty), the place
    of each choice among its expert's slots, and whether it has one.
  """
  ahead = skip + jnp.arange(size, dtype=jnp.int32)
  filled = ahead < line.count[:, None]
  place = jnp.minimum(line.start[:, None] + ahead, line.order.size - 1)
  source = jnp.where(filled, line.order[place], line.order.size)
  slot = line.rank - skip
  kept = (slot >= 0) & (slot < size) & (experts < line.count.size)
  return source, slot, kept


@jax.custom_vjp
def dispatch(
  x: Float[Array, 'tokens dim'],
  source: Int[Array, 'slots'],
  slot: Int[Array, 'tokens selected'],
) -> Float[Array, 'slots dim']:
  """Copies tokens to slots; an empty slot (source out of range) is zero.

  `source` and `slot` are each other's inverse, so that the gradient is a
  gather too, never a scatter.
  """
  return _take(x, source // slot.shape[1])


def _dispatch_forward(x, source, slot):
  return dispatch(x, source, slot), slot


def _dispatch_backward(slot, dy):
  return _take(dy, slot).sum(1), None, None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def collect(
  y: Float[Array, 'slots dim'],
  source: Int[Array, 'slots'],
  slot: Int[Array, 'tokens selected'],
) -> Float[Array, 'tokens selected dim']:
  """Brings each choice its slot's row; zero where it has none."""
  return _take(y, slot)


def _collect_forward(y, source, slot):
  return collect(y, source, slot), source


def _collect_backward(source, dy):
  return _take(dy.reshape(-1, dy.shape[-1]), source), None, None


collect.defvjp(_collect_forward, _collect_backward)


def _take(rows, index):
  return rows.at[index].get(mode='fill', fill_value=0)
