"""A saved model, ready to run, whoever saved it."""

import dataclasses
import functools
import math
import numbers
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Float, Int, PyTree

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import (
  RunWeights,
  Weights,
  abstract,
  open_weights,
  plan,
  require_same,
  shapes_of,
  take,
)
from vmoe_robust.config import (
  ConfigDict,
  UserError,
  default,
  mesh_shape,
  validate_mesh,
  validate_model,
)
from vmoe_robust.distributed import fetch
from vmoe_robust.evaluate import routing
from vmoe_robust.evaluate.target import of_model
from vmoe_robust.models import Model, build, recognise, unbox
from vmoe_robust.robustness.arguments import checked_images, require_shape
from vmoe_robust.robustness.target import Target, as_floats

# Images of one call of a program, for each device that shares the batch: so
# many sizes are compiled at most, whatever batches come.
_SIZES = (1, 8, 64)


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A model with its weights on a mesh, and where they come from.

  Every token gets its experts and each image is routed alone, so that no image
  changes another's prediction. For gradients there is `model.apply(params,
  images)`.
  """

  model: Model
  params: PyTree
  config: ConfigDict  # of the run, or what the weights' shapes tell
  mesh: Mesh
  where: str | os.PathLike  # the work directory, or the weights' path
  step: int | None  # None: not known
  checksum: str | None = None  # by which the weights are known again

  def target(self, shape: tuple[int, int, int]) -> Target:
    """What `robust_accuracy` attacks.

    Args:
      shape: of the images.

    Raises:
      UserError: they are of another size, or the model has several labels an
        image.
    """
    require_shape(shape, self.model.image_shape)
    if self.config.train.loss != 'softmax':
      raise UserError(
        f'the model has several labels an image ({self.config.train.loss} '
        'loss); attack it by configs/attack_pgd.py'
      )
    return of_model(self.model, self.params)

  def __call__(
    self, images: np.ndarray | jax.Array
  ) -> Float[np.ndarray, 'batch classes']:
    """Logits of any number of images.

    They are padded to 1, 8 or 64 for each device (more than that in several
    calls), so that three programs are compiled at most.

    Args:
      images: [batch, height, width, channels] of the model's size, uint8 or
        floats in [0, 1].

    Raises:
      UserError: the images are of another size or range.
    """
    return self.outputs(self._checked(images))[0]

  def routing(
    self, images: np.ndarray | jax.Array
  ) -> dict[str, Int[np.ndarray, 'batch tokens selected']]:
    """The experts that each token selected, by sparse block, heaviest first.

    Tokens are the patches, row by row, after the class token if
    `config.model.head` is 'token'. Where experts pick tokens (expert choice), a
    token has as many as picked it, and then -1; of Soft MoE it is the expert
    whose slot weighs most in the token's output. Empty for a dense model.

    Args:
      images: as for a call.

    Raises:
      UserError: the images are of another size or range.
    """
    return self.outputs(self._checked(images))[1]

  @functools.cached_property
  def _program(self):
    def program(params, images, mask):
      logits, aux = self.model.apply(
        params, as_floats(images), experts='dropless', mask=mask
      )
      return logits, {
        name: routing.by_weight(record, self.config.model)
        for name, record in aux.records.items()
      }

    return jax.jit(program)

  def _checked(self, images) -> np.ndarray:
    images = checked_images(images)
    require_shape(images.shape[1:], self.model.image_shape)
    return images

  def outputs(
    self, images: np.ndarray
  ) -> tuple[
    Float[np.ndarray, 'batch classes'],
    dict[str, Int[np.ndarray, 'batch tokens selected']],
  ]:
    """What a call and `routing` return, of any pixels.

    An attack that does not clip leaves [0, 1], which those two refuse.
    """
    parts, count, shards = [], len(images), mesh_lib.batch_shards(self.mesh)
    sizes = [shards * size for size in _SIZES]
    while len(images):
      size = next((s for s in sizes if s >= len(images)), sizes[-1])
      part, images = images[:size], images[size:]
      pad = [(0, size - len(part))] + 3 * [(0, 0)]
      arrays = (np.pad(part, pad), np.arange(size) < len(part))
      arrays = [_place(x, mesh_lib.batch_sharding(self.mesh)) for x in arrays]
      parts.append(fetch(self._program(self.params, *arrays)))
    join = lambda *x: np.concatenate(x)[:count]
    return jax.tree.map(join, *parts)


def load(
  path: str | os.PathLike,
  *,
  step: int | None = None,
  mesh: Mesh | Mapping[str, int] | None = None,
  num_selected: int | None = None,
) -> Classifier:
  """Reads a saved model, whoever saved it.

  Args:
    path: a work directory (its newest whole checkpoint, the averaged weights
      if it kept them), `WORKDIR/checkpoints/STEP`, the prefix of an official
      V-MoE checkpoint (local or gs://), or a .npz or .safetensors file.
    step: of a work directory, another step.
    mesh: over which devices: a `jax.sharding.Mesh` of the axes data, expert and
      model, or their sizes, such as {'expert': 4}. All devices by default.
    num_selected: experts a token (K), in place of those of the run. Weights
      without a configuration do not tell it, and it is 2 for them.

  Raises:
    UserError: there is no such checkpoint, it is damaged, or it is of no model
      that is known.
  """
  weights = open_weights(path, step=step, field='path')
  try:
    config = weights.config or recognised(weights)
    select(config, num_selected or 0, 'num_selected')
    try:
      validate_model(config)
    except UserError as error:
      raise UserError(f'path={str(path)!r}: {error}') from error
    return restore(weights, config, _mesh(mesh, config))
  finally:
    weights.close()


def restore(
  weights: Weights, config: ConfigDict, mesh: Mesh | None = None
) -> Classifier:
  """Reads weights, each device its part.

  Args:
    weights: of the model.
    config: which says the model and the images' size.
    mesh: to spread them over; that of `config` by default.

  Raises:
    UserError: the weights are of another model.
  """
  if mesh is None:
    mesh = mesh_lib.create(mesh_shape(config, jax.device_count()))
  size = config.data.image_size
  model = build(config.model, (size, size, config.model.channels), mesh)
  boxed = jax.eval_shape(model.init, jax.random.key(0))
  places = mesh_lib.tree_shardings(
    boxed, mesh, mesh_lib.rules(config.mesh.fsdp)
  )
  params = abstract(unbox(boxed), places)
  there, wanted = shapes_of(weights.shapes), shapes_of(params)
  way = 'use the configuration it was trained with'
  if weights.config is None:
    way = 'of models without a configuration only ViT and V-MoE are known'
  require_same(weights.where, there, wanted, way)
  params = take(weights, plan(there, wanted, weights.renamed), params)
  return Classifier(model, params, config, mesh, *origin(weights))


def origin(weights: Weights) -> tuple[str, int | None, str | None]:
  """The work directory, step and checksum of a run's weights.

  Of others their path, the step if the file says it, and what tells one file
  from another.
  """
  where = weights.where
  if isinstance(weights, RunWeights):
    where = weights.workdir
  return where, weights.step, weights.stamp()


def recognised(weights: Weights) -> ConfigDict:
  """A configuration from shapes alone; it names no data.

  Raises:
    UserError: the weights are of no model that is known.
  """
  config = default()
  config.model, config.data.image_size = recognise(
    shapes_of(weights.shapes), weights.where
  )
  config.data.name = ''
  return config


def select(config: ConfigDict, selected: Any, field: str) -> None:
  """Sets K, the experts a token, unless it is 0.

  Raises:
    UserError: the model's tokens cannot select so many.
  """
  model = config.model
  most = 0 if model.router.name == 'soft' else model.experts
  whole = isinstance(selected, numbers.Integral) and selected is not True
  if not whole or not 0 <= selected <= most:
    way = f'use 1 to {most}' if most else 'leave it out'
    raise UserError(
      f'{field}={selected} does not fit a model whose tokens select among '
      f'{most} experts; {way}'
    )
  if selected:
    model.router.selected = int(selected)


def _mesh(mesh, config: ConfigDict) -> Mesh:
  """The devices that `load` was given, as a mesh of this project's axes."""
  devices, sizes = jax.devices(), {'data': -1, 'expert': -1, 'model': 1}
  if mesh is not None:
    given = sizes = dict(mesh.shape if isinstance(mesh, Mesh) else mesh)
    if not isinstance(mesh, Mesh):
      sizes = dict.fromkeys(mesh_lib.AXES, 1) | given
    if set(sizes) != set(mesh_lib.AXES):
      raise UserError(
        f'mesh has axes {tuple(given)}; they are {mesh_lib.AXES} here'
      )
    count = math.prod(sizes.values())
    if not 0 < count <= len(devices):
      raise UserError(
        f'mesh={given} takes {count} devices; there are {len(devices)}'
      )
    devices = devices[:count]
  config.mesh.update(sizes)
  validate_mesh(config, len(devices))
  if isinstance(mesh, Mesh):  # whose axes may be of another type
    types = (AxisType.Auto,) * len(sizes)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)
  return mesh_lib.create(mesh_shape(config, len(devices)), devices)


def _place(x: np.ndarray, sharding) -> jax.Array:
  """The same array in all processes, as one on all their devices."""
  return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])
