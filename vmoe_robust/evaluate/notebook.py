"""The two names a notebook needs: a saved model, and its robust accuracy."""

import contextlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vmoe_robust.config import UserError, default, validate_attack
from vmoe_robust.data import eval_batches
from vmoe_robust.evaluate import outcome, robustness
from vmoe_robust.evaluate.fit import check_fit
from vmoe_robust.evaluate.load import Restored
from vmoe_robust.evaluate.load import load as load
from vmoe_robust.mesh import batch_sharding, batch_shards

_BATCH = 256


def robust_accuracy(
  restored: Restored,
  images: np.ndarray,
  labels: Int[np.ndarray, 'batch'] | Float[np.ndarray, 'batch classes'],
  eps: float | Sequence[float],
  steps: int = 40,
  norm: str = 'linf',
) -> dict[float, float]:
  """Accuracy under PGD at each eps, every image routed alone.

  Args:
    restored: what `load` returned.
    images: uint8 (batch, height, width, channels), of the size that the model
      was trained on.
    labels: classes; for a multi-label model zeros and ones.
    eps: radius or radii, in units of pixels in [0, 1]; 0 is the clean accuracy.
    steps: of PGD.
    norm: 'linf' or 'l2'.

  Raises:
    UserError: images or radii that make no sense for this model.
  """
  shape = restored.model.image_shape
  if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
    raise UserError(
      f'images are {images.dtype}{list(images.shape)}; the model takes uint8 '
      f'of [any, {", ".join(map(str, shape))}]'
    )
  config = restored.config.copy_and_resolve_references()
  radii = tuple(float(e) for e in np.atleast_1d(eps))
  config.attack = default().attack
  config.attack.update(dict(eps=radii, steps=steps, norm=norm))
  validate_attack(config.attack)
  source = _InMemory(images, labels, config.model.num_classes)
  check_fit(config, source)
  shards = batch_shards(restored.mesh)
  batches = eval_batches(
    config.data,
    source,
    batch_size=-(-min(len(images), _BATCH) // shards) * shards,
    sharding=batch_sharding(restored.mesh),
  )
  program = robustness.Program(restored.model, config)
  with contextlib.closing(batches):
    found = robustness.run(program, restored.params, batches)
  results = outcome.summarise(found.columns, found.loads, config)
  (sweep,) = results['attacks'].values()
  return {one['eps']: one['robust_accuracy'] for one in sweep.values()}


class _InMemory:
  """Arrays as a data set."""

  def __init__(self, images, labels, classes):
    self._images, self._labels = images, np.asarray(labels)
    self.num_classes, self.channels = classes, images.shape[-1]
    self.class_names = tuple(map(str, range(classes)))
    self.multi_label = self._labels.ndim == 2

  def __len__(self):
    return len(self._images)

  def __getitem__(self, index):
    return {'image': self._images[index], 'label': self._labels[index]}

  def describe(self, index):
    return f'image {index}'
