"""A sparse MLP: router, then experts spread over the mesh."""

import dataclasses
import math
from functools import partial

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from vmoe_robust.mesh import DATA, EXPERT, MODEL, batch_shards, platform
from vmoe_robust.models import grouped
from vmoe_robust.models.intervene import Intervention, intervened
from vmoe_robust.models.routers import ROUTERS
from vmoe_robust.models.routers.routing import Given, Noise, Placement, Routing


@flax.struct.dataclass
class Grouping:
  """How the images of a batch are routed, and what their draws follow."""

  mask: Bool[Array, 'batch']  # False: padding, which takes no capacity
  index: Int[Array, 'batch']  # an image's place in the whole batch
  images: int = flax.struct.field(pytree_node=False)  # routed together
  dropless: bool = flax.struct.field(pytree_node=False)
  train: bool = flax.struct.field(pytree_node=False)
  # Differentiable forward too (`jax.jvp`), at some cost in speed.
  plain: bool = flax.struct.field(pytree_node=False, default=False)
  # Times training's noise of the routers' logits, without its dropout.
  gate_noise: Float[Array, ''] | None = None
  intervene: Intervention | None = flax.struct.field(
    pytree_node=False, default=None
  )
  labels: Int[Array, 'batch'] | None = None  # of the router that is told them


@flax.struct.dataclass
class Record:
  """What a sparse block decided about each group."""

  routing: Routing
  placement: Placement
  images: int = flax.struct.field(pytree_node=False)  # of a group


# Hidden units of all experts from which a CPU runs one expert after another.
# Measured: docs/results/performance.md.
_CACHED = 9 * 2**18


@dataclasses.dataclass(frozen=True)
class ExpertParallel:
  """The experts' MLPs under `jax.shard_map`, tokens coming by all_to_all."""

  mesh: Mesh
  dtype: jnp.dtype
  plain: bool  # see `routing.Experts`

  @property
  def grouped(self) -> bool:
    """Whether `run` serves here. Measured: docs/results/performance.md."""
    here = self.mesh.shape[EXPERT] * self.mesh.shape[MODEL] == 1
    known = self._platform == 'cpu' or self._product is not None
    return here and not self.plain and known

  @property
  def kernel(self) -> bool:
    """Whether a kernel of the backend's runs the experts."""
    return self.grouped and self._product is not None

  @property
  def _product(self):
    return grouped.PRODUCTS.get(self._platform)

  @property
  def _platform(self):
    return platform(self.mesh)

  def __call__(
    self, weights: tuple, rows: Float[Array, 'experts rows dim']
  ) -> Float[Array, 'experts rows dim']:
    """Runs each expert on its rows, bringing them to its device and back."""
    return self.bring(self.mlp(weights, self.send(rows)))

  def run(
    self,
    weights: tuple,
    rows: Float[Array, 'rows dim'],
    count: Int[Array, 'experts'],
  ) -> Float[Array, 'rows dim']:
    """Runs each expert on its run of `count` rows, see `grouped.blocks`."""
    if self.kernel:
      weights = self._cast(weights)
      return grouped.by_products(self._product, weights, rows, count)
    matrix = weights[0].size // count.size
    sizes = grouped.block_sizes(len(rows), count.size, matrix)
    return grouped.blocks(self._layers, sizes, weights, rows, count)

  def send(
    self, rows: Float[Array, 'experts rows dim']
  ) -> Float[Array, 'local_experts all_rows dim']:
    """Sends rows to their expert's device."""
    if self.mesh.shape[EXPERT] == 1:
      return rows
    return lax.all_to_all(rows, EXPERT, 0, 1, tiled=True)

  def bring(
    self, rows: Float[Array, 'local_experts all_rows dim']
  ) -> Float[Array, 'experts rows dim']:
    """Brings back what was sent."""
    if self.mesh.shape[EXPERT] == 1:
      return rows
    return lax.all_to_all(rows, EXPERT, 1, 0, tiled=True)

  def mlp(
    self, weights: tuple, rows: Float[Array, 'experts rows dim']
  ) -> Float[Array, 'experts rows dim']:
    """Runs this device's experts, each on its rows."""
    experts, number, _ = rows.shape
    large = experts * number * weights[0].shape[-1] >= _CACHED
    if large and self._platform == 'cpu' and self.mesh.shape[MODEL] == 1:
      return grouped.each(self._layers, weights, rows)
    w1, b1, w2, b2 = self._cast(weights)
    hidden = nn.gelu(jnp.einsum('end,edf->enf', rows, w1) + b1[:, None])
    return self._sum(jnp.einsum('enf,efd->end', hidden, w2)) + b2[:, None]

  @property
  def _layers(self):
    return self._first, self._second

  def _first(self, weights, rows):
    w1, b1, _, _ = self._cast(weights)
    return rows @ w1 + b1

  def _second(self, weights, hidden):
    _, _, w2, b2 = self._cast(weights)
    return self._sum(nn.gelu(hidden) @ w2) + b2

  def _sum(self, parts):
    # Each device of the model axis holds some of the hidden units.
    return lax.psum(parts, MODEL) if self.mesh.shape[MODEL] > 1 else parts

  def longest(self, length: Int[Array, '']) -> Int[Array, '']:
    """The maximum over the devices that exchange rows."""
    return lax.pmax(length, EXPERT) if self.mesh.shape[EXPERT] > 1 else length

  def _cast(self, weights):
    return tuple(w.astype(self.dtype) for w in weights)


class _Dense(nn.Module):
  """Kernel and bias of one layer of all experts, each drawn on its own."""

  experts: int
  inputs: int
  outputs: int
  names: tuple[str, str]

  @nn.compact
  def __call__(self):
    draw = nn.initializers.xavier_uniform(batch_axis=(0,))
    kernel = self.param(
      'kernel',
      nn.with_logical_partitioning(draw, ('experts', *self.names)),
      (self.experts, self.inputs, self.outputs),
      jnp.float32,
    )
    bias = self.param(
      'bias',
      nn.with_logical_partitioning(
        nn.initializers.normal(1e-6), ('experts', self.names[1])
      ),
      (self.experts, self.outputs),
      jnp.float32,
    )
    return kernel, bias


class _Mlp(nn.Module):
  """The experts' weights, under the names of the dense MLP's."""

  experts: int
  hidden: int

  @nn.compact
  def __call__(self, dim: int):
    first = _Dense(
      self.experts, dim, self.hidden, ('embed', 'mlp'), name='Dense_0'
    )()
    second = _Dense(
      self.experts, self.hidden, dim, ('mlp', 'embed'), name='Dense_1'
    )()
    return first + second


class Moe(nn.Module):
  """Routes tokens in float32 and runs each one's experts."""

  config: ConfigDict  # config.model
  dtype: jnp.dtype
  mesh: Mesh

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'batch tokens dim'],
    grouping: Grouping,
    block: str = '',
  ) -> tuple[Float[Array, 'batch tokens dim'], Record]:
    """Returns the layer's output and what was decided, in `block`."""
    config, router = self.config, ROUTERS[self.config.router.name]
    batch, tokens, dim = x.shape
    groups = batch // grouping.images
    shape = (groups, grouping.images * tokens)
    grouped = x.reshape(*shape, dim)
    mask = jnp.repeat(grouping.mask, tokens).reshape(shape)
    labels = grouping.labels
    if labels is not None:
      labels = labels.reshape(groups, -1)
    noise = self._noise(grouping, groups)
    given = Given(mask, noise, grouping.images, labels)
    routing = router.Router(config.experts, config.router, name='Router')(
      grouped, given
    )
    if grouping.intervene is not None:
      grouped, routing = intervened(
        grouping.intervene, block, grouped, routing, mask, config.experts
      )
    weights = _Mlp(config.experts, config.expert_mlp or config.mlp, name='Mlp')(
      dim
    )
    experts = ExpertParallel(self.mesh, self.dtype, grouping.plain)
    run = partial(
      _run_local,
      run=router.run,
      experts=experts,
      config=config.router,
      dropless=grouping.dropless,
    )
    data, expert, model = (_split(self.mesh, a) for a in (DATA, EXPERT, MODEL))
    rows = P(data + expert)
    run = jax.shard_map(
      run,
      mesh=self.mesh,
      in_specs=(
        (
          P(expert, None, model),
          P(expert, model),
          P(expert, model, None),
          P(expert, None),
        ),
        rows,
        rows,
      ),
      out_specs=rows,
      # A kernel does not say over which axes its result varies.
      check_vma=not experts.kernel,
    )
    # Outside of jit, shard_map does not know custom_vjp's symbolic zeros.
    y, placement = jax.jit(run, inline=True)(weights, grouped, routing)
    record = Record(routing, placement, grouping.images)
    return y.reshape(x.shape), record

  def _noise(self, grouping, groups):
    if not grouping.train and grouping.gate_noise is None:
      return None
    # Noise follows the group, not where the mesh put it.
    place = grouping.index.reshape(groups, -1)[:, 0] // grouping.images
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return Noise(fold(self.make_rng('noise'), place), grouping.gate_noise)


def _split(mesh, axis):
  """The axis, if there is something to split: else no sum is taken over it.

  CPUs make a copy for a sum over one device.
  """
  return (axis,) if mesh.shape[axis] > 1 else ()


def _run_local(weights, x, routing, *, run, experts, config, dropless):
  # Weights enter alike on all of `data`: typed as varying here, their
  # gradient is summed over it once, not in every round.
  data = _split(experts.mesh, DATA)
  weights = tuple(lax.pcast(w, data, to='varying') for w in weights)
  return run(experts, weights, x, routing, config, dropless)


def padded_batch(batch: int, images: int, mesh: Mesh) -> int:
  """The batch that whole groups on every device make; at least `batch`."""
  unit = images * batch_shards(mesh)
  return math.ceil(batch / unit) * unit
