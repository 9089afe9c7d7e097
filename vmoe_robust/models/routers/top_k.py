"""Noisy top-k router of V-MoE (arXiv:2106.05974): tokens pick experts."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from vmoe_robust.models import losses, plan
from vmoe_robust.models.dropless import serve
from vmoe_robust.models.routers.routing import (
  Experts,
  Given,
  Placement,
  Routing,
  affinity,
  at_least_float32,
  decided,
  repeated,
)


class Router(nn.Module):
  """Gates are a function of the scores; the highest K are chosen.

  V-MoE's: the softmax over all experts, kept as it is. With `unit='image'` an
  image's tokens have the route of their mean.
  """

  num_experts: int
  config: ConfigDict  # config.model.router

  @nn.compact
  def __call__(
    self, x: Float[Array, 'groups tokens dim'], given: Given
  ) -> Routing:
    """Chooses by the logits, or by the logits and noise."""
    config, mask, tokens = self.config, given.mask, x.shape[1]
    x = at_least_float32(x)
    if config.unit == 'image':
      of_image = lambda a: a.reshape(len(a), given.images, -1, *a.shape[2:])
      x, mask = of_image(x).mean(2), of_image(mask)[:, :, 0]
    routing = self._route(x, mask, given.noise)
    if config.unit == 'token':
      return routing
    spread = partial(repeated, tokens=tokens)
    return routing._replace(
      logits=spread(routing.logits),
      experts=spread(routing.experts),
      gates=spread(routing.gates),
      probabilities=spread(routing.probabilities),
    )

  def _route(self, x, mask, noise):
    config = self.config
    logits = noisy = self._logits(x)
    noise_std = config.noise_std / self.num_experts
    if noise is not None and noise_std:
      draw = partial(
        jax.random.normal, shape=logits.shape[1:], dtype=jnp.float32
      )
      drawn = noise_std * jax.vmap(draw)(noise.keys)
      if noise.scale is not None:
        drawn = noise.scale * drawn
      noisy = logits + drawn
    clean = gates_of(logits, config.gate)
    gates = clean if noisy is logits else gates_of(noisy, config.gate)
    found = {
      'importance': losses.importance(self._shares(logits, clean), mask),
      'gshard': losses.gshard(self._shares(noisy, gates), mask),
      'z': losses.router_z(logits, mask),
    }
    order = gates + self._bias() if config.balance_rate else noisy
    experts = decided(highest(order, config.selected))
    at = lambda x: [pick(x, expert) for expert in jnp.moveaxis(experts, -1, 0)]
    drawn_to_train = noisy is not logits and noise.scale is None
    if drawn_to_train and not config.balance_rate:  # else it is not defined
      found['load'] = losses.load(logits, at(noisy)[-1], mask, noise_std)
    total = sum(config[f'{name}_weight'] * v for name, v in found.items())
    chosen = jnp.stack(at(noisy), -1), jnp.stack(at(gates), -1)
    top = jnp.where(mask[..., None], self._weigh(*chosen), 0)
    experts = jnp.where(mask[..., None], experts, self.num_experts)
    return Routing(logits, experts, top, found, total, gates)

  def _logits(self, x):
    if not self.config.frozen:
      return affinity(self.num_experts)(x)
    # Not named 'kernel', which the optimizer would decay.
    kernel = self.param(
      'frozen',
      nn.with_logical_partitioning(
        nn.initializers.lecun_normal(), ('embed', None)
      ),
      (x.shape[-1], self.num_experts),
      jnp.float32,
    )
    kernel = jax.lax.stop_gradient(kernel)
    return jnp.einsum('gtd,de->gte', x, kernel, precision='highest')

  def _shares(self, logits, gates):
    """Gates of all experts that sum to one, as those of a softmax do."""
    if self.config.gate == 'sigmoid':
      return summing_to_one(logits, sigmoid=True)
    return gates

  def _bias(self):
    """Of each expert, moved by `models/balance.py` and by no gradient."""
    zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,))
    bias = self.param('bias', zeros, (self.num_experts,), jnp.float32)
    return jax.lax.stop_gradient(bias)

  def _weigh(self, logits, gates):
    """Gates of the chosen experts, as they weigh these experts' outputs."""
    if self.config.gate == 'uniform':
      return jnp.full_like(gates, 1 / self.config.selected)
    if self.config.renormalize:
      return summing_to_one(logits, self.config.gate == 'sigmoid')
    return gates


def summing_to_one(
  logits: Float[Array, 'groups tokens experts'], sigmoid: bool
) -> Float[Array, 'groups tokens experts']:
  """Gates over their sum, of some experts or of all.

  In logarithms: where all gates are small, below 1e-19, the square of their sum
  is 0 in float32, and the gradient of the quotient is not finite.
  """
  # A softmax over all experts, over the sum of some, is that of these alone.
  return jax.nn.softmax(jax.nn.log_sigmoid(logits) if sigmoid else logits)


def gates_of(
  logits: Float[Array, 'groups tokens experts'], gate: str
) -> Float[Array, 'groups tokens experts']:
  """Each expert's gate if it were chosen, by `router.gate`."""
  sigmoid = gate == 'sigmoid'
  return jax.nn.sigmoid(logits) if sigmoid else jax.nn.softmax(logits)


def highest(
  scores: Float[Array, 'groups tokens experts'], number: int
) -> Int[Array, 'groups tokens {number}']:
  """The experts of the highest scores, the highest first.

  Ties go to the first. `jax.lax.top_k` gives the same, but is a sort on TPUs,
  and gathers the scores of all devices on CPUs.
  """
  found = []
  for _ in range(number):
    found.append(scores.argmax(-1).astype(jnp.int32))
    taken = jax.nn.one_hot(found[-1], scores.shape[-1], dtype=bool)
    scores = jnp.where(taken, -jnp.inf, scores)
  return jnp.stack(found, -1)


def pick(
  x: Float[Array, 'groups tokens experts'], expert: Int[Array, 'groups tokens']
) -> Float[Array, 'groups tokens']:
  """Each token's value for one expert, without a scatter as its gradient."""
  return jnp.where(jax.nn.one_hot(expert, x.shape[-1], dtype=bool), x, 0).sum(
    -1
  )


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
    line = decided(plan.queue(chosen, num_experts))
    y = serve(experts, weights, rows, line, chosen, gates)
    rank = line.rank.reshape(routing.experts.shape)
    placed = Placement(rank, routing.experts < num_experts)
  else:
    source, slot, placed = decided(capacity_plan(routing, config))
    source, plain = source.ravel(), experts.plain
    rows = plan.dispatch(x.reshape(-1, dim), source, slot, plain)
    rows = experts(weights, rows.reshape(num_experts, -1, dim))
    gates = routing.gates.reshape(-1, routing.gates.shape[-1])
    y = plan.combine(rows.reshape(-1, dim), gates, source, slot, plain)
  return y.reshape(groups, tokens, dim), placed


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
