"""Serves every choice its expert, however uneven the experts' queues are.

Each choice is served once, and a token's choices are summed in their order, so
that no token's output depends on the others.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from vmoe_robust.models import grouped, plan
from vmoe_robust.models.routers.routing import Experts


def serve(
  experts: Experts,
  weights: tuple,
  x: Float[Array, 'tokens dim'],
  line: plan.Queue,
  chosen: Int[Array, 'tokens selected'],
  gates: Float[Array, 'tokens selected'],
) -> Float[Array, 'tokens dim']:
  """The gated sum of the outputs of each token's experts."""
  if experts.grouped:
    # The queues, one behind the other.
    size = line.order.size + grouped.SPARE
    served = jnp.arange(size) < line.length.sum()
    source = jnp.pad(line.order, (0, grouped.SPARE))
    source = jnp.where(served, source, line.order.size)
    start = line.start.at[chosen].get(mode='fill', fill_value=size)
    slot = jnp.minimum(start + line.rank, size)
    rows = plan.dispatch(x, source, slot, False)
    y = experts.run(weights, rows, line.length)
    return plan.combine(y, gates, source, slot, False)
  size = plan.capacity(len(x), chosen.shape[1], 1.25, line.length.size)
  size = min(size, len(x))
  run = _rounds if experts.plain else rounds
  y = run(experts, size, weights, x, line, chosen)
  # Each choice has a row of its own now.
  slot = jnp.arange(len(y), dtype=jnp.int32).reshape(chosen.shape)
  return plan.combine(y, gates, slot.ravel(), slot, experts.plain)


def _rounds(
  experts: Experts,
  size: int,
  weights: tuple,
  x: Float[Array, 'tokens dim'],
  line: plan.Queue,
  chosen: Int[Array, 'tokens selected'],
) -> Float[Array, 'choices dim']:
  """Every choice's output, in as many rounds as the longest queue needs.

  A round serves `size` choices of each expert, and devices that exchange
  tokens take the same number of rounds.
  """
  number = _number_of_rounds(experts, line, size)

  def body(state):
    i, y = state
    source, slot = _round(line, chosen, size, i)
    rows = plan.dispatch(x, source, slot, True).reshape(-1, size, x.shape[1])
    rows = experts(weights, rows)
    rows = rows.reshape(-1, x.shape[1])
    return i + 1, y + plan.take(rows, slot.ravel())

  y = jnp.repeat(jnp.zeros_like(x), chosen.shape[1], axis=0)
  return lax.while_loop(lambda state: state[0] < number, body, (0, y))[1]


rounds = partial(jax.custom_vjp, nondiff_argnums=(0, 1))(_rounds)


def _number_of_rounds(experts, line, size):
  return experts.longest(-(-line.length.max() // size))


def _round(line, chosen, size, i):
  source, slot, kept = plan.tables(line, chosen, size, i * size)
  slot = jnp.where(kept, chosen * size + slot, line.length.size * size)
  return source.ravel(), slot


def _rounds_forward(experts, size, weights, x, line, chosen):
  want = grouped.wanted(weights)
  arguments = grouped.values((weights, x, line, chosen))
  return _rounds(experts, size, *arguments), (arguments, want)


def _rounds_backward(experts, size, saved, dy):
  (weights, x, line, chosen), want = saved
  number, dim = _number_of_rounds(experts, line, size), x.shape[1]

  def body(state):
    i, dx, dw = state
    source, slot = _round(line, chosen, size, i)
    rows = plan.dispatch(x, source, slot, True)
    both = jnp.concatenate([rows, plan.take(dy, source)], axis=1)
    # Sent in one exchange, not two.
    both = experts.send(both.reshape(-1, size, 2 * dim))
    rows, d_rows = jnp.split(both, 2, axis=-1)
    d_rows, dw = grouped.pull(experts.mlp, weights, rows, d_rows, dw, want)
    back = experts.bring(d_rows).reshape(-1, dim)
    back = plan.take(back, slot.ravel()).reshape(*chosen.shape, dim)
    return i + 1, dx + back.sum(1), dw

  first = (0, jnp.zeros_like(x), grouped.zeros(weights) if want else ())
  _, dx, dw = lax.while_loop(lambda state: state[0] < number, body, first)
  return dw if want else grouped.zeros(weights), dx, None, None


rounds.defvjp(_rounds_forward, _rounds_backward, symbolic_zeros=True)
