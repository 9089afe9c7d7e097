"""Vision Transformer, dense or sparse (arXiv:2010.11929, arXiv:2106.05974)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vmoe_robust.config import moe_blocks
from vmoe_robust.mesh import constrain_batch
from vmoe_robust.models.layers import Attention, Dropout, LayerScale, Mlp
from vmoe_robust.models.moe import Grouping, Moe, Record
from vmoe_robust.models.routers.routing import DECIDED, at_least_float32
from vmoe_robust.models.stem import convolution_on, stem

_named = nn.with_logical_partitioning
_xavier = nn.initializers.xavier_uniform()
# What the backward pass need not compute again, by `config.train.remat`. What
# routers decided is always kept: ties might be broken otherwise, and it is
# small and slow to find.
_decided = jax.checkpoint_policies.save_only_these_names(DECIDED)
_SAVED = {
  'blocks': _decided,
  'dots': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _decided
  ),
}


class Block(nn.Module):
  """Attention and an MLP, dense or sparse, each behind a LayerNorm."""

  config: ConfigDict  # config.model
  depth: float  # 0 at the first block, 1 at the last
  sparse: bool
  dtype: jnp.dtype
  mesh: Mesh

  @nn.compact
  def __call__(
    self, x: Float[Array, 'batch tokens dim'], grouping: Grouping
  ) -> tuple[Float[Array, 'batch tokens dim'], Record | None]:
    """Returns the tokens and, of a sparse block, the router's record."""
    config, record = self.config, None

    def branch(y):
      y = Dropout(config.dropout)(y, grouping)
      rate = config.stochastic_depth * self.depth
      return constrain_batch(Dropout(rate, whole=True)(y, grouping), self.mesh)

    y = nn.LayerNorm(dtype=self.dtype)(x)
    y = Attention(config.heads, self.dtype, name='SelfAttention')(y)
    x = x + branch(self._scaled(y, 'LayerScale_0'))
    y = nn.LayerNorm(dtype=self.dtype)(x)
    if self.sparse:
      y, record = self._experts(y, grouping)
    else:
      y = Mlp(config, self.dtype, name='Mlp')(y, grouping)
    return x + branch(self._scaled(y, 'LayerScale_1')), record

  def _experts(self, x, grouping):
    config = self.config
    moe = Moe(config, self.dtype, self.mesh, name='Moe')
    y, record = moe(x, grouping, self.name)
    if config.shared_experts:  # as one that is as wide as all of them
      hidden = config.shared_experts * (config.expert_mlp or config.mlp)
      y += Mlp(config, self.dtype, hidden, name='Shared')(x, grouping)
    return y, record

  def _scaled(self, y, name):
    start = self.config.layer_scale
    return LayerScale(start, name=name)(y) if start else y


class _PositionEmbedding(nn.Module):
  kind: str

  @nn.compact
  def __call__(self, x: Array, grid: tuple[int, int]) -> Array:
    if self.kind == 'sincos':
      table = sincos(grid, x.shape[-1])
      front = x.shape[1] - len(table)  # the token of the class has none
      return x + jnp.pad(table, ((front, 0), (0, 0))).astype(x.dtype)
    embedding = self.param(
      'pos_embedding',
      _named(nn.initializers.normal(0.02), (None, None, 'embed')),
      (1, *x.shape[1:]),
      jnp.float32,
    )
    return x + jnp.asarray(embedding, x.dtype)


class Encoder(nn.Module):
  """Positions, blocks and the final LayerNorm."""

  config: ConfigDict  # config.model
  remat: str  # config.train.remat
  dtype: jnp.dtype
  mesh: Mesh

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'batch tokens dim'],
    grouping: Grouping,
    grid: tuple[int, int],
  ) -> tuple[Float[Array, 'batch tokens dim'], dict[str, Record]]:
    """Returns the tokens and each sparse block's record by its name."""
    config, records = self.config, {}
    embed = _PositionEmbedding(config.positions, name='posembed_input')
    x = Dropout(config.dropout)(embed(x, grid), grouping)
    x = constrain_batch(x, self.mesh)
    block = Block
    if self.remat:
      block = nn.remat(Block, policy=_SAVED[self.remat])
    sparse = moe_blocks(config)
    for i in range(config.layers):
      name = f'encoderblock_{i}'
      depth = i / max(config.layers - 1, 1)
      x, record = block(
        config, depth, i in sparse, self.dtype, self.mesh, name=name
      )(x, grouping)
      if record is not None:
        records[name] = record
    return nn.LayerNorm(dtype=self.dtype, name='encoder_norm')(x), records


class VisionTransformer(nn.Module):
  """Images in [0, 1] to logits, in float32 or the float64 of weights."""

  config: ConfigDict  # config.model
  remat: str
  mesh: Mesh

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'batch height width channels'],
    grouping: Grouping,
  ) -> tuple[Float[Array, 'batch classes'], dict[str, Record]]:
    """Returns logits and each sparse block's record by its name."""
    config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
    x = (images - jnp.asarray(config.mean)) / jnp.asarray(config.std)
    x = stem(config, dtype, convolution_on(self.mesh))(x.astype(dtype))
    grid = x.shape[1], x.shape[2]
    x = x.reshape(x.shape[0], -1, config.hidden)
    if config.head == 'token':
      zeros = nn.initializers.zeros_init()
      shape = (1, 1, config.hidden)
      token = self.param('cls', zeros, shape, jnp.float32).astype(dtype)
      token = jnp.broadcast_to(token, (x.shape[0], 1, config.hidden))
      x = jnp.concatenate([token, x], axis=1)
    x, records = Encoder(config, self.remat, dtype, self.mesh, name='Encoder')(
      x, grouping, grid
    )
    x = self._pool(x, grouping, dtype)
    if config.pre_logits:
      x = nn.Dense(config.pre_logits, dtype=dtype, name='pre_logits')(x)
      x = nn.tanh(x)
    logits = nn.Dense(
      config.num_classes,
      kernel_init=_named(nn.initializers.zeros_init(), ('embed', None)),
      name='head',
    )(at_least_float32(x))
    return logits, records

  def _pool(self, x, grouping, dtype):
    config = self.config
    if config.head == 'token':
      return x[:, 0]
    if config.head == 'gap':
      return x.mean(1)
    if config.head == 'seqpool':
      return _sequence_pool(x, dtype)
    # One learnt query attends to all tokens (arXiv:2106.04560).
    shape = (1, 1, config.hidden)
    probe = self.param('map_probe', _xavier, shape, jnp.float32).astype(dtype)
    probe = jnp.broadcast_to(probe, (x.shape[0], 1, config.hidden))
    x = Attention(config.heads, dtype, name='map_attention')(x, probe)
    y = nn.LayerNorm(dtype=dtype, name='map_norm')(x)
    return (x + Mlp(config, dtype, name='map_mlp')(y, grouping))[:, 0]


def _sequence_pool(x, dtype):
  """The mean over tokens, weighted by a softmax of learnt scores.

  arXiv:2104.05704, equation 3. Scores start at zero, so that it is the mean.
  """
  scores = nn.Dense(
    1,
    use_bias=False,  # the softmax would not see it
    dtype=dtype,
    kernel_init=_named(nn.initializers.zeros_init(), ('embed', None)),
    name='seqpool',
  )(x)
  weights = jax.nn.softmax(at_least_float32(scores), axis=1)
  return (weights.astype(dtype) * x).sum(1)


def sincos(grid: tuple[int, int], dim: int) -> Float[np.ndarray, 'tokens dim']:
  """Fixed 2-D sine and cosine positions (arXiv:2104.02057)."""
  y, x = np.mgrid[: grid[0], : grid[1]]
  omega = 1 / 10_000 ** (np.arange(dim // 4) / max(dim // 4 - 1, 1))
  angles = [axis.reshape(-1, 1) * omega for axis in (x, y)]
  parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
  return np.concatenate(parts, axis=1).astype(np.float32)
