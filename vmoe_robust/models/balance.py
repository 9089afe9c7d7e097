"""How much each expert is chosen, and biases that even it out.

Auxiliary-loss-free load balancing (arXiv:2408.15664): each expert has a bias,
which is added to its gate where experts are chosen, and nowhere else. After a
step it rises by a constant if the expert was chosen less than evenly, and falls
if more. The biases are weights, so they are saved, averaged and read as such;
no gradient reaches them, and evaluation does not move them.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from vmoe_robust.mesh import replicated
from vmoe_robust.models.moe import Record

# Routers of which the load is even by design.
_EVEN = ('expert_choice', 'soft')
_ROUNDING = 1e-6  # of a load
PREFIX = 'load/'  # of a metric, before the name of the block
BIAS = 'bias'  # of a router's weights


def chooses(model: ConfigDict) -> bool:
  """Whether tokens have experts chosen for them, in `config.model`."""
  return model.experts > 0 and model.router.name not in _EVEN


def loads(
  records: dict[str, Record],
  model: ConfigDict,
  weight: Float[Array, ''],
  mesh: Mesh,
) -> dict[str, Float[Array, 'experts']]:
  """How often each expert was chosen in each block; 1 is evenly.

  Choices count as they were made, whether or not there was room.

  Args:
    records: `Aux.records` of a microbatch.
    model: `config.model`.
    weight: 1 / the images of the whole batch; results of its microbatches are
      to be added.
    mesh: on all of whose devices the results are.

  Returns:
    'load/BLOCK' of each sparse block whose router chooses experts.
  """
  if not chooses(model):
    return {}
  found = {}
  for block, record in records.items():
    experts = record.routing.experts
    chosen = jax.nn.one_hot(experts, model.experts, dtype=jnp.float32)
    count = chosen.sum((0, 1, 2))
    choices = experts[0].size / record.images  # of an image
    load = count * weight * model.experts / choices
    found[PREFIX + block] = jax.lax.with_sharding_constraint(
      load, replicated(mesh)
    )
  return found


def moved(
  params: PyTree, metrics: dict[str, Array], model: ConfigDict
) -> PyTree:
  """Weights whose biases follow the loads among `metrics`, if there are any.

  Algorithm 1 of arXiv:2408.15664.

  Args:
    params: the weights after the optimizer's step.
    metrics: that hold what `loads` found, summed over microbatches.
    model: `config.model`.
  """
  if not model.experts or not model.router.balance_rate:
    return params
  encoder = dict(params['Encoder'])
  for name, load in metrics.items():
    if name.startswith(PREFIX):
      block = name.removeprefix(PREFIX)
      moe = encoder[block]['Moe']
      bias = moe['Router'][BIAS]
      # An even load may differ from 1 by its rounding.
      away = jnp.where(jnp.abs(1 - load) > _ROUNDING, jnp.sign(1 - load), 0)
      step = model.router.balance_rate * away
      router = moe['Router'] | {BIAS: bias + step.astype(bias.dtype)}
      encoder[block] = encoder[block] | {'Moe': moe | {'Router': router}}
  return params | {'Encoder': encoder}
