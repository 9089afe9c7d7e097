"""The seam at which a study changes what routers decided.

An intervention is a function `(block, tokens, routing) -> (tokens, routing)`.
`Model.apply(..., intervene=...)` calls it in each sparse block after its router
has decided and before experts run: `block` is the block's name, such as
'encoderblock_1', `tokens` is what the experts will see, and `routing` is what
`Aux.records[block].routing` would have been without it. What it returns is what
happens: in capacity mode, who finds a slot is worked out from the changed
choices, and `Aux.records` holds the changed routing, with its losses as they
were returned. Groups that pad the batch to the mesh are not shown to it, and
padding (mask False) keeps the router's own decision, whatever is returned.

It is called while JAX traces, on arrays of the whole batch, so that it works
under jit, on any mesh and inside a gradient. A frozen routing may be an
argument of the function that is traced:

  def logits(params, images, clean):  # clean: Aux.records of other images
    frozen = lambda block, tokens, routing: (tokens, clean[block].routing)
    return model.apply(params, images, intervene=frozen)[0]

Which fields mean something differs by router:

- top_k: `experts` are the K choices of a token, in their order; the number of
  experts, or anything out of range, is no expert, so that a token without any
  leaves the block by its residual connection alone. `gates` weigh the choices
  and need not sum to one; the first one orders the queue under
  `batch_priority`. `probabilities` holds the gates of experts that were not
  chosen, noise included; with `router.renormalize` or a uniform gate, `gates`
  are made of them and are others. `logits` are read no more. An expert may be
  chosen twice by a token; in capacity mode it never has more slots than its
  group has tokens, rounded up to four.
- hash, oracle: as top_k; `logits` and `probabilities` are 1 / K for the chosen
  experts and 0 for all others.
- expert_choice: `gates`, of all experts, say both whom an expert picks (the
  highest first) and with what weight; a gate of zero adds nothing. `experts`
  is expert e in column e, or none: it is for `Placement.kept` alone. `logits`
  are read no more; `probabilities` are the gates as the router gave them.
- soft: `logits` mix tokens into slots (their softmax over tokens), and `gates`
  mix slots into tokens: change both to freeze a routing, or to stop its
  gradient. `experts` is the owner of each slot, for `Placement.kept` alone.
  `probabilities` are the gates as the router gave them.

`losses` and `auxiliary_loss` are never worked out again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vmoe_robust.errors import UserError
from vmoe_robust.models.routers.routing import Routing

Tokens = Float[Array, 'groups tokens dim']
Intervention = Callable[[str, Tokens, Routing], tuple[Tokens, Routing]]


def intervened(
  intervene: Intervention,
  block: str,
  tokens: Tokens,
  routing: Routing,
  mask: Bool[Array, 'groups tokens'],
  num_experts: int,
) -> tuple[Float[Array, 'groups tokens dim'], Routing]:
  """What `intervene` returns for tokens, and the router's for padding.

  Raises:
    UserError: it returned other shapes or types than it was given.
  """
  old = tokens, routing
  tokens, routing = intervene(block, *old)
  _check(block, (tokens, routing), old)
  real = lambda new, was: jnp.where(mask[..., None], new, was)
  experts = routing.experts
  chosen = (experts >= 0) & (experts < num_experts)
  experts = jnp.where(chosen, experts, num_experts)
  was = old[1]
  routing = routing._replace(
    logits=real(routing.logits, was.logits),
    experts=real(experts, was.experts),
    gates=real(routing.gates, was.gates),
  )
  return real(tokens, old[0]), routing


def without_padding(
  intervene: Intervention,
  groups: int,
  block: str,
  tokens: Tokens,
  routing: Routing,
) -> tuple[Float[Array, '...'], Routing]:
  """Shows an intervention the first `groups` alone, and puts the rest back."""
  if len(tokens) == groups:
    return intervene(block, tokens, routing)
  whole = tokens, routing
  shown = jax.tree.map(lambda a: a[:groups], whole)
  found = intervene(block, *shown)
  _check(block, found, shown)
  join = lambda new, old: jnp.concatenate([new, old[groups:]])
  return jax.tree.map(join, tuple(found), whole)


def _check(block, found, given):
  shapes = lambda tree: jax.tree.map(
    lambda a: (jnp.shape(a), str(jnp.result_type(a))), tree
  )
  found, given = shapes(tuple(found)), shapes(given)
  if found != given:
    raise UserError(
      f'intervene returned {found} in {block}; it was given {given}; keep the '
      'shapes and types of (tokens, routing)'
    )
