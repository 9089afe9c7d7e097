"""The model behind one seam: `apply(params, images, ...) -> (logits, aux)`."""

import dataclasses
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict, FrozenConfigDict

from vmoe_robust.models.moe import Grouping, Record, padded_batch
from vmoe_robust.models.recognise import recognise as recognise
from vmoe_robust.models.vit import VisionTransformer


@flax.struct.dataclass
class Aux:
  """What comes with the logits: the routers' losses and decisions."""

  loss: Float[Array, '']  # weighted, summed over routers, mean over groups
  records: dict[str, Record]  # by block; empty for a dense model


@dataclasses.dataclass(frozen=True)
class Model:
  """A ViT or V-MoE for one image shape on one mesh."""

  module: VisionTransformer
  image_shape: tuple[int, int, int]  # height, width, channels

  def init(self, key: Array) -> dict:
    """Initial weights, boxed with their logical axes (`flax.linen.unbox`)."""
    shards = self.module.mesh.size
    images = jnp.zeros((shards, *self.image_shape))
    grouping = _grouping(images, None, None, 1, dropless=True, train=False)
    return self.module.init(key, images, grouping)['params']

  def apply(
    self,
    params: dict,
    images: Float[Array, 'batch height width channels'],
    *,
    experts: Literal['capacity', 'dropless'] = 'dropless',
    mask: Bool[Array, 'batch'] | None = None,
    index: Int[Array, 'batch'] | None = None,
    key: Array | None = None,
    plain: bool = False,
  ) -> tuple[Float[Array, 'batch classes'], Aux]:
    """Logits of images in [0, 1].

    Args:
      params: the weights, unboxed.
      images: pixels in [0, 1].
      experts: 'dropless' serves every token its experts and, without a key,
        routes each image alone; 'capacity' lets `router.group_images` images
        share slots.
      mask: False for padding, which takes no capacity and adds no loss.
      index: each image's place in the whole batch, which random draws follow;
        in order by default.
      key: draws noise and dropout; None is deterministic.
      plain: differentiable in forward mode (`jax.jvp`) too, at some cost in
        speed and memory.
    """
    config, batch = self.module.config, images.shape[0]
    train = key is not None
    together = config.router.group_images
    if config.router.name == 'soft' or not config.experts:
      together = 1
    if experts == 'dropless' and not train:
      together = 1
    grouping = _grouping(
      images, mask, index, together, experts == 'dropless', train, plain
    )
    more = padded_batch(batch, together, self.module.mesh) - batch
    if more:
      pad = lambda a: jnp.pad(a, ((0, more),) + ((0, 0),) * (a.ndim - 1))
      images, grouping = jax.tree.map(pad, (images, grouping))
    rngs = {}
    if train:
      noise, dropout = jax.random.split(key)
      rngs = {'noise': noise, 'dropout': dropout}
    logits, records = self.module.apply(
      {'params': params}, images, grouping, rngs=rngs
    )
    loss = _auxiliary_loss(records, grouping)
    groups = -(-batch // together)
    records = jax.tree.map(lambda a: a[:groups], records)
    return logits[:batch], Aux(loss, records)


def _grouping(images, mask, index, together, dropless, train, plain=False):
  batch = images.shape[0]
  return Grouping(
    mask=jnp.ones(batch, bool) if mask is None else mask,
    index=jnp.arange(batch) if index is None else index,
    images=together,
    dropless=dropless,
    train=train,
    plain=plain,
  )


def _auxiliary_loss(records, grouping):
  loss = jnp.zeros(())
  real = grouping.mask.reshape(-1, grouping.images).any(1)
  for record in records.values():
    loss += jnp.where(real, record.routing.auxiliary_loss, 0).sum()
  return loss / jnp.maximum(real.sum(), 1)


def build(
  config: ConfigDict,
  image_shape: tuple[int, int, int],
  mesh: Mesh,
  remat: str = '',
) -> Model:
  """The model of `config.model`, whose number of classes is set."""
  module = VisionTransformer(FrozenConfigDict(config), remat, mesh)
  return Model(module, image_shape)


def unbox(params: PyTree) -> PyTree:
  """Weights without the names of their logical axes."""
  return nn.unbox(params)
