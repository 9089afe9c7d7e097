"""The model behind one seam: `apply(params, images, ...) -> (logits, aux)`."""

import dataclasses
import math
from functools import partial
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict, FrozenConfigDict

from vmoe_robust.config import EXPERT_MODES, UserError, choose
from vmoe_robust.models.intervene import Intervention, without_padding
from vmoe_robust.models.moe import Grouping, Record
from vmoe_robust.models.moe import padded_batch as padded_batch
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
    grouping = grouping.replace(labels=jnp.zeros(shards, jnp.int32))
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
    gate_noise: float | Float[Array, ''] | None = None,
    intervene: Intervention | None = None,
    labels: Int[Array, 'batch'] | None = None,
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
      key: what is drawn follows it; None is deterministic. Without
        `gate_noise` it means training: noise of the routers' logits, dropout
        and stochastic depth, as the config has them.
      plain: differentiable in forward mode (`jax.jvp`), at some cost in speed
        and memory. With 'dropless' it is then not in reverse mode; products
        with the Hessian are `jax.jvp` of `jax.grad` without `plain`.
      gate_noise: with a `key`, noise of the routers' logits by itself: no
        dropout, no stochastic depth, and with 'dropless' each image is still
        routed alone. 1.0 has the standard deviation of training,
        `router.noise_std` over the number of experts. An image's noise
        follows its `index` (with 'capacity', its group's), so that neither
        the rest of the batch nor the mesh changes it.
      intervene: changes what the experts see and which of them are chosen, in
        each sparse block; see `vmoe_robust.models.intervene`. It is called
        while tracing: another function is another program.
      labels: each image's class, which the router 'oracle' alone is told.

    Raises:
      UserError: the images are of another shape than the model's, or no
        floating-point numbers; `experts` is neither of its values;
        `gate_noise` is asked for without a key, is negative or not finite, or
        of a model that draws none; `intervene` returned other shapes or types
        than it was given; or the oracle has no labels.
    """
    config, batch = self.module.config, images.shape[0]
    _check_images(images, self.image_shape)
    choose('experts', experts, EXPERT_MODES)
    if gate_noise is not None:
      gate_noise = _checked_noise(gate_noise, key, config)
    if config.experts and config.router.name == 'oracle' and labels is None:
      raise UserError(
        "config.model.router.name='oracle' is told the class of each image, "
        'which is not given here: it is a control to train and to measure the '
        'clean accuracy of, not a classifier that can be called or attacked; '
        "use another router, such as 'top_k', or give `labels`"
      )
    train = key is not None and gate_noise is None
    together = config.router.group_images
    if config.router.name == 'soft' or not config.experts:
      together = 1
    if experts == 'dropless' and not train:
      together = 1
    grouping = _grouping(
      images, mask, index, together, experts == 'dropless', train, plain
    )
    groups = -(-batch // together)
    grouping = grouping.replace(labels=labels)
    more = padded_batch(batch, together, self.module.mesh) - batch
    if more:
      pad = lambda a: jnp.pad(a, ((0, more),) + ((0, 0),) * (a.ndim - 1))
      images, grouping = jax.tree.map(pad, (images, grouping))
    if intervene is not None:
      intervene = partial(without_padding, intervene, groups)
    grouping = grouping.replace(gate_noise=gate_noise, intervene=intervene)
    rngs = {}
    if key is not None:
      noise, dropout = jax.random.split(key)
      rngs = {'noise': noise, 'dropout': dropout}
    # What `intervene` closes over would be kept with the trace.
    run = _run_traced_once if intervene is None else _run
    module = self._module_for(params)
    logits, records = run(module, params, images, grouping, rngs)
    loss = _auxiliary_loss(records, grouping)
    records = jax.tree.map(lambda a: a[:groups], records)
    return logits[:batch], Aux(loss, records)

  def changed(self, fields: dict[str, object]) -> 'Model':
    """The model of the same weights with other settings.

    Args:
      fields: of `config.model` and their values, such as 'router.selected'.
    """
    # A copy: what `as_configdict` gives is this model's own, by which JAX keeps
    # its traces.
    config = self.module.config.as_configdict().copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    module = self.module.clone(config=FrozenConfigDict(config))
    return dataclasses.replace(self, module=module)

  def _module_for(self, params):
    # Weights in float64 are of someone who wants all of it in float64.
    double = any(w.dtype == jnp.float64 for w in jax.tree.leaves(params))
    if not double or self.module.config.compute_dtype != 'float32':
      return self.module
    return self.changed({'compute_dtype': 'float64'}).module


def _run(module, params, images, grouping, rngs):
  return module.apply({'params': params}, images, grouping, rngs=rngs)


# The programs of a run call the model in some ten places, and tracing it takes
# seconds each time. JAX keeps a trace by the module and the shapes, and with it
# no weights.
_run_traced_once = jax.jit(_run, static_argnums=0)


def _check_images(images, shape: tuple[int, int, int]):
  if images.shape[1:] != shape or not len(images):
    raise UserError(
      f'images are {list(images.shape)}; the model takes one or more of '
      f'{list(shape)}'
    )
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise UserError(
      f'images are {images.dtype}, and the model takes pixels in [0, 1] as '
      'floating-point numbers; divide bytes by 255'
    )


def _checked_noise(gate_noise, key, config):
  if key is None:
    raise UserError(
      f'gate_noise={gate_noise} is drawn with a key; give `key` too'
    )
  router = config.router
  if not config.experts or router.name != 'top_k' or not router.noise_std:
    raise UserError(
      f'gate_noise={gate_noise} is of the top_k router, relative to its '
      f'noise_std; this model has config.model.experts={config.experts}, '
      f'router.name={router.name!r} and router.noise_std={router.noise_std}; '
      'add other noise with `intervene`'
    )
  known = not isinstance(gate_noise, jax.core.Tracer)
  if known and not 0 <= gate_noise < math.inf:
    raise UserError(
      f'gate_noise={gate_noise} multiplies a standard deviation; give a '
      'finite number that is not negative'
    )
  return jnp.asarray(gate_noise, jnp.float32)


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
  loss = jnp.zeros((), jnp.float32)
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
  # A copy, by which traces are kept: the caller may change the original.
  config = FrozenConfigDict(config.copy_and_resolve_references())
  module = VisionTransformer(config, remat, mesh)
  return Model(module, image_shape)


def unbox(params: PyTree) -> PyTree:
  """Weights without the names of their logical axes."""
  return nn.unbox(params)
