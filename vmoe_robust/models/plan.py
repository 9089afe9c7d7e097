"""Integer tables that say which token takes which slot of which expert."""

import functools
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

  order: Int[Array, 'choices']  # those in a queue, by expert, then by rank
  start: Int[Array, 'experts']  # where an expert's queue begins in `order`
  length: Int[Array, 'experts']  # how long it is
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
  choice = (turn * selected + jnp.arange(selected)[:, None]).ravel()
  # Counted, not sorted: TPUs compile sorts slowly.
  mine = flat[:, None] == jnp.arange(num_experts, dtype=jnp.int32)
  so_far = jnp.cumsum(mine, axis=0, dtype=jnp.int32)
  count = so_far[-1]
  start = jnp.cumsum(count) - count
  rank = jnp.where(mine, so_far - 1, 0).sum(1)
  # Choices of no expert are in no queue: their place is out of range.
  place = start.at[flat].get(mode='fill', fill_value=flat.size) + rank
  order = jnp.zeros_like(choice).at[place].set(choice, unique_indices=True)
  rank = jnp.zeros_like(rank).at[choice].set(rank, unique_indices=True)
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
  filled = ahead < line.length[:, None]
  place = jnp.minimum(line.start[:, None] + ahead, line.order.size - 1)
  source = jnp.where(filled, line.order[place], line.order.size)
  slot = line.rank - skip
  kept = (slot >= 0) & (slot < size) & (experts < line.length.size)
  return source, slot, kept


def dispatch(
  x: Float[Array, 'tokens dim'],
  source: Int[Array, 'slots'],
  slot: Int[Array, 'tokens selected'],
  plain: bool,
) -> Float[Array, 'slots dim']:
  """Copies tokens to slots; an empty slot (source out of range) is zero.

  `source` and `slot` are each other's inverse, so that the gradient is a
  gather too, never a scatter; `plain` leaves differentiation to JAX, which
  knows the forward mode too.
  """
  return (_dispatch if plain else _dispatch_by_gather)(x, source, slot)


def combine(
  y: Float[Array, 'slots dim'],
  gates: Float[Array, 'tokens selected'],
  source: Int[Array, 'slots'],
  slot: Int[Array, 'tokens selected'],
  plain: bool,
) -> Float[Array, 'tokens dim']:
  """Sums each token's slots, weighted by its gates, in float32.

  A choice without a slot (out of range) adds nothing. The result is of the
  type of `y`; `source` and `plain` are as for `dispatch`.
  """
  return (_combine if plain else _combine_by_gather)(y, gates, source, slot)


def take(
  rows: Float[Array, 'rows *shape'], index: Int[Array, 'taken']
) -> Float[Array, 'taken *shape']:
  """Rows by their number; zero for a number that is out of range."""
  return rows.at[index].get(mode='fill', fill_value=0)


def _dispatch(x, source, slot):
  return take(x, source // slot.shape[1])


def _dispatch_forward(x, source, slot):
  return _dispatch(x, source, slot), slot


def _dispatch_backward(slot, dy):
  return _sum(take(dy, place) for place in slot.T), None, None


_dispatch_by_gather = jax.custom_vjp(_dispatch)
_dispatch_by_gather.defvjp(_dispatch_forward, _dispatch_backward)


def _combine(y, gates, source, slot):
  terms = zip(gates.T, slot.T, strict=True)
  total = _sum(gate[:, None] * _float32(take(y, at)) for gate, at in terms)
  return total.astype(y.dtype)


def _combine_forward(y, gates, source, slot):
  return _combine(y, gates, source, slot), (y, gates, source, slot)


def _combine_backward(saved, d_total):
  y, gates, source, slot = saved
  gate = take(gates.ravel(), source)[:, None]
  dy = gate * _float32(take(d_total, source // slot.shape[1]))
  d_total = _float32(d_total)
  d_gates = [(d_total * _float32(take(y, at))).sum(1) for at in slot.T]
  return dy.astype(y.dtype), jnp.stack(d_gates, 1), None, None


_combine_by_gather = jax.custom_vjp(_combine)
_combine_by_gather.defvjp(_combine_forward, _combine_backward)


def _sum(arrays):
  return functools.reduce(jnp.add, arrays)


def _float32(array):
  return array.astype(jnp.promote_types(array.dtype, jnp.float32))
