"""Noisy top-k router of V-MoE (arXiv:2106.05974): tokens pick experts."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from vmoe_robust.models import losses, plan
from vmoe_robust.models.routers.routing import (
  Experts,
  Placement,
  Routing,
  affinity,
)


class Router(nn.Module):
  """Gates are the softmax over all experts; the top K are kept as they are."""

  num_experts: int
  config: ConfigDict  # config.model.router

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'groups tokens dim'],
    mask: Bool[Array, 'groups tokens'],
    keys: Array | None,
  ) -> Routing:
    """Chooses; `keys`, one a group, switch on the noise of training."""
    logits = affinity(self.num_experts)(x.astype(jnp.float32))
    config, noisy = self.config, logits
    noise_std = config.noise_std / self.num_experts
    if keys is not None and noise_std:
      draw = partial(jax.random.normal, shape=logits.shape[1:])
      noisy = logits + noise_std * jax.vmap(draw)(keys)
    clean = jax.nn.softmax(logits)
    gates = clean if noisy is logits else jax.nn.softmax(noisy)
    found = {
      'importance': losses.importance(clean, mask),
      'gshard': losses.gshard(gates, mask),
      'z': losses.router_z(logits, mask),
    }
    if noisy is not logits:
      found['load'] = losses.load(
        logits, noisy, mask, config.selected, noise_std
      )
    total = sum(config[f'{name}_weight'] * v for name, v in found.items())
    top, experts = lax.top_k(gates, config.selected)
    experts = jnp.where(mask[..., None], experts, self.num_experts)
    top = jnp.where(mask[..., None], top, 0)
    return Routing(logits, experts, top, found, total)


def run(
  experts: Experts,
  weights: tuple,
  x: Float[Array, 'groups tokens dim'],
  routing: Routing,
  config: ConfigDict,
  dropless: bool,
) -> tuple[Float[Array, 'groups tokens dim'], Placement]:
  """Plans, dispatches, runs the experts and combines, on one device's groups.

  With `dropless` every choice is served and groups do not matter; else a
  group has `plan.capacity` slots an expert, and the last in line are dropped.
  """
  groups, tokens, dim = x.shape
  num_experts = routing.logits.shape[-1]
  if dropless:
    merged = jax.tree.map(
      lambda a: a.reshape(groups * tokens, *a.shape[2:]),
      (x, routing.experts, routing.gates),
    )
    rows, chosen, gates = merged
    line = plan.queue(chosen, num_experts)
    size = plan.capacity(rows.shape[0], chosen.shape[1], 1.25, num_experts)
    size = min(size, rows.shape[0])
    y = serve_all(experts, size, weights, rows, line, chosen)
    shape = routing.experts.shape
    kept = routing.experts < num_experts
    placed = Placement(line.rank.reshape(shape), kept)
  else:
    source, slot, placed = capacity_plan(routing, config)
    rows = plan.dispatch(x.reshape(-1, dim), source.ravel(), slot)
    rows = experts(weights, rows.reshape(num_experts, -1, dim))
    y = plan.collect(rows.reshape(-1, dim), source.ravel(), slot)
    gates = routing.gates.reshape(-1, routing.gates.shape[-1])
  y = combine(y, gates).astype(x.dtype)
  return y.reshape(groups, tokens, dim), placed


def combine(
  y: Float[Array, 'tokens selected dim'],
  gates: Float[Array, 'tokens selected'],
) -> Float[Array, 'tokens dim']:
  """Sums the selected experts' outputs, weighted by their gates, in float32."""
  return (y.astype(jnp.float32) * gates[..., None]).sum(1)


def capacity_plan(
  routing: Routing, config: ConfigDict
) -> tuple[
  Int[Array, 'experts groups size'],
  Int[Array, 'rows selected'],
  Placement,
]:
  """The tables of `plan.tables` for all groups at once.

  Slots are numbered by expert, then group, then place, so that the dispatched
  rows need no transposition before they are exchanged.

  Returns:
    The choice in each slot, each choice's slot, and its place in its group.
  """
  groups, tokens, selected = routing.experts.shape
  num_experts = routing.logits.shape[-1]
  size = plan.capacity(tokens, selected, config.capacity_factor, num_experts)
  size = min(size, -(-tokens // 4) * 4)  # no expert is chosen twice by a token

  def one(experts, gates):
    first = gates[:, 0] if config.batch_priority else None
    line = plan.queue(experts, num_experts, first)
    return plan.tables(line, experts, size)

  source, slot, kept = jax.vmap(one)(routing.experts, routing.gates)
  group = jnp.arange(groups, dtype=jnp.int32)[:, None, None]
  choices = tokens * selected
  empty = source >= choices
  source = jnp.where(empty, groups * choices, source + group * choices)
  flat = (routing.experts * groups + group) * size + slot
  flat = jnp.where(kept, flat, num_experts * groups * size)
  placed = Placement(slot, kept)
  return source.swapaxes(0, 1), flat.reshape(-1, selected), placed


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def serve_all(
  experts: Experts,
  size: int,
  weights: tuple,
  x: Float[Array, 'tokens dim'],
  line: plan.Queue,
  chosen: Int[Array, 'tokens selected'],
) -> Float[Array, 'tokens selected dim']:
  """Every choice's expert output, in as many rounds as the longest queue needs.

  A round serves `size` choices an expert. Each choice is served in exactly
  one, so that the order of summation never depends on the other tokens.
  """
  rounds = _rounds(experts, line, size)

  def body(state):
    i, y = state
    source, slot = _round(line, chosen, size, i)
    rows = plan.dispatch(x, source, slot).reshape(-1, size, x.shape[1])
    rows = experts(weights, rows).reshape(-1, x.shape[1])
    return i + 1, y + plan.collect(rows, source, slot)

  y = jnp.repeat(jnp.zeros_like(x)[:, None], chosen.shape[1], axis=1)
  return lax.while_loop(lambda state: state[0] < rounds, body, (0, y))[1]


def _rounds(experts, line, size):
  return experts.longest(-(-line.count.max() // size))


def _round(line, chosen, size, i):
  source, slot, kept = plan.tables(line, chosen, size, i * size)
  slot = jnp.where(kept, chosen * size + slot, line.count.size * size)
  return source.ravel(), slot


def _serve_forward(experts, size, weights, x, line, chosen):
  # An attack asks for the image's gradient alone: skip that of the weights.
  wanted = any(leaf.perturbed for leaf in jax.tree.leaves(weights))
  value = lambda tree: jax.tree.map(lambda leaf: leaf.value, tree)
  arguments = value((weights, x, line, chosen))
  return serve_all(experts, size, *arguments), (arguments, wanted)


def _serve_backward(experts, size, saved, dy):
  (weights, x, line, chosen), wanted = saved
  rounds, dim = _rounds(experts, line, size), x.shape[1]

  def body(state):
    i, dx, dw = state
    source, slot = _round(line, chosen, size, i)
    rows = plan.dispatch(x, source, slot).reshape(-1, size, dim)
    dy_rows = dy.reshape(-1, dim).at[source].get(mode='fill', fill_value=0)
    dy_rows = dy_rows.reshape(-1, size, dim)
    if wanted:
      pulled, d_rows = jax.vjp(experts, weights, rows)[1](dy_rows)
      dw = jax.tree.map(jnp.add, dw, pulled)
    else:
      (d_rows,) = jax.vjp(partial(experts, weights), rows)[1](dy_rows)
    back = plan.collect(d_rows.reshape(-1, dim), source, slot)
    return i + 1, dx + back.sum(1), dw

  zeros = jax.tree.map(jnp.zeros_like, weights)
  first = (0, jnp.zeros_like(x), zeros if wanted else ())
  _, dx, dw = lax.while_loop(lambda state: state[0] < rounds, body, first)
  return dw if wanted else zeros, dx, None, None


serve_all.defvjp(_serve_forward, _serve_backward, symbolic_zeros=True)
