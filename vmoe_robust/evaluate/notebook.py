"""The two names a notebook needs: a saved model, and a robust accuracy."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from vmoe_robust.attacks import Budget, ensemble
from vmoe_robust.config import UserError, choose
from vmoe_robust.evaluate import sweep
from vmoe_robust.evaluate.ensemble import Runner
from vmoe_robust.evaluate.load import Classifier, checked_images
from vmoe_robust.evaluate.load import load as load
from vmoe_robust.evaluate.victim import of_function, of_model, simple_score
from vmoe_robust.files import locked, write_json
from vmoe_robust.mesh import batch_shards
from vmoe_robust.report.progress import Stages
from vmoe_robust.report.records import write_records

_NORMS = {'Linf': 'linf', 'L2': 'l2', 'L1': 'l1'}


@dataclasses.dataclass(frozen=True)
class Result:
  """What an attack found; the numbers are those of `x_adv`, judged again."""

  accuracy: float  # under attack, the worst case of all attacks
  clean_accuracy: float
  robust: Bool[np.ndarray, 'examples']  # still right
  x_adv: Float[np.ndarray, 'examples height width channels']
  prediction: Int[np.ndarray, 'examples']  # of x_adv
  per_attack: dict[str, float]  # accuracy after each attack
  seconds: dict[str, float]  # that each attack took
  warnings: list[str]
  settings: dict[str, object]

  def save(self, path: str | os.PathLike):
    """Writes a folder: `results.json`, `records.parquet`, `x_adv.npy`."""
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    hidden = ('robust', 'x_adv', 'prediction')
    numbers = {
      k: v for k, v in dataclasses.asdict(self).items() if k not in hidden
    }
    write_json(folder / 'results.json', numbers)
    index = np.arange(len(self.robust))
    write_records(
      folder / 'records.parquet',
      {'index': index, 'robust': self.robust, 'prediction': self.prediction},
    )
    np.save(folder / 'x_adv.npy', self.x_adv)


def robust_accuracy(
  model: Callable | Classifier,
  images: np.ndarray,
  labels: Sequence[int] | np.ndarray,
  *,
  attack: str | Sequence[str] = 'autoattack',
  norm: str = 'Linf',
  eps: float = 8 / 255,
  seed: int = 0,
  iterations: int = 100,
  queries: int = 5000,
  restarts: int = 0,
  targets: int = 0,
  batch_size: int = 256,
  attack_through: Callable | None = None,
  folder: str | os.PathLike | None = None,
  progress: bool = True,
) -> Result:
  """Accuracy under attack of any classifier in JAX.

  Args:
    model: a function from images in [0, 1], float32 [batch, height, width,
      channels], to logits [batch, classes], or what `load` returned. A random
      model takes an argument `key` besides, and is judged by its mean.
    images: uint8, or floats in [0, 1].
    labels: classes, one an image.
    attack: 'autoattack', another name of `attacks.ensembles.names()`, or a
      list of attacks.
    norm: 'Linf', 'L2' or 'L1'.
    eps: radius, in units of pixels in [0, 1].
    seed: of all that is drawn.
    iterations: of APGD, FAB and PGD.
    queries: of Square.
    restarts: of attacks without targets; 0: as many as the ensemble has.
    targets: classes that targeted attacks try; 0: as many as the ensemble has,
      nine at most.
    batch_size: images attacked at once, on all devices.
    attack_through: a cheaper twin of a function, in bfloat16 say, that is
      attacked in its place; `model` judges.
    folder: what is left there when the attack is cut short; the same call goes
      on from it.
    progress: show how far it is.

  Raises:
    UserError: arguments that make no sense, or a model whose images change
      each other's predictions.
  """
  images, labels = _checked(images, labels, eps)
  norm = _NORMS[choose('norm', norm.capitalize(), _NORMS)]
  if norm == 'linf' and eps > 1:
    raise UserError(
      f'eps={eps} is above 1; pixels are in [0, 1], so write 8 / 255'
    )
  rows = _InMemory(images, labels)
  names = attack if isinstance(attack, str) else tuple(attack)
  budget = Budget(iterations, queries, restarts, targets)
  if isinstance(model, Classifier) and attack_through is not None:
    raise UserError('attack_through is for functions; leave it out')
  size = min(batch_size, len(images))
  shape = images.shape[1:]
  runner, classes = _runner(
    model, attack_through, shape, names, norm, budget, seed, size
  )
  if labels.max() >= classes:
    raise UserError(
      f'labels go up to {labels.max()}; the model has {classes} classes'
    )
  settings = dict(attack=names, norm=norm, eps=float(eps), seed=seed)
  settings |= dataclasses.asdict(budget)
  settings |= dict(examples=len(images), jax=jax.__version__)
  with contextlib.ExitStack() as stack:
    stages = Stages(len(images))
    stack.callback(stages.close)
    if folder is not None:
      stack.enter_context(locked(folder, 'folder'))
    found = sweep.run(
      runner,
      rows,
      (float(eps),),
      shape=images.shape[1:],
      identity=settings,
      folder=folder,
      keep_images=True,
      on_progress=stages.update if progress else lambda *_: None,
    )
  (fall,) = found.falls.values()
  columns = found.columns
  right = columns['prediction_after'] == columns['label']
  return Result(
    accuracy=float(right.mean()),
    clean_accuracy=float(
      (columns['prediction_before'] == columns['label']).mean()
    ),
    robust=right,
    x_adv=columns['x_adv'].reshape(images.shape),
    prediction=columns['prediction_after'],
    per_attack=fall.robust_after,
    seconds=fall.seconds,
    warnings=found.warnings,
    settings=settings,
  )


# The same model at another radius, or on other images, compiles nothing.
@functools.lru_cache(maxsize=4)
def _runner(model, through, shape, names, norm, budget, seed, size):
  """What attacks the model, and the number of its classes."""
  if isinstance(model, Classifier):
    wanted, loss = model.model.image_shape, model.config.train.loss
    if shape != wanted:
      raise UserError(
        f'images are {list(shape)}; the model takes {list(wanted)}'
      )
    if loss != 'softmax':
      raise UserError(
        f'the model has several labels an image ({loss} loss); attack it by '
        'configs/attack_pgd.py'
      )
    victim = of_model(model.model, model.params, 'dropless')
  else:
    victim = of_function(model, through)
  classes = _classes(victim, shape)
  chosen = ensemble(names, norm, classes, budget)
  shards = batch_shards(victim.mesh)
  batch = -(-size // shards) * shards
  score = simple_score(victim, norm, seed)
  return Runner(victim, chosen, score, seed, batch), classes


def _checked(images, labels, eps):
  images, labels = checked_images(images), np.asarray(labels)
  if labels.shape != (len(images),) or labels.dtype.kind not in 'iu':
    raise UserError(
      f'labels are {labels.dtype}{list(labels.shape)}; give one class for each '
      f'of the {len(images)} images'
    )
  if not 0 <= eps < np.inf:
    raise UserError(f'eps={eps} is no radius; use 0 or more, such as 8 / 255')
  return images, labels.astype(np.int32)


def _classes(victim, shape) -> int:
  shards = batch_shards(victim.mesh)
  x = jax.ShapeDtypeStruct((shards, *shape), np.float32)
  mask = jax.ShapeDtypeStruct((shards,), bool)
  key = jax.eval_shape(jax.random.key, 0)
  logits = jax.eval_shape(victim.forward, victim.params, x, mask, key)
  if getattr(logits, 'ndim', 0) != 2:
    raise UserError(
      f'the model returns {logits}; it must return logits [batch, classes]'
    )
  return logits.shape[1]


class _InMemory:
  """Arrays as rows."""

  def __init__(self, images, labels):
    self._images, self._labels = images, labels

  def __len__(self):
    return len(self._images)

  def __call__(self, indices):
    place = np.maximum(indices, 0)
    return {
      'image': self._images[place],
      'label': self._labels[place],
      'mask': np.asarray(indices) >= 0,
    }

  def ahead(self, indices):
    """Nothing to load."""
