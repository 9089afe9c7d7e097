"""One clean pass, one verdict, one set of columns: what is reported.

The verdict is made of two functions. `classes` is the prediction of each image,
and `is_right`, of report/verdicts.py, says whether a prediction is right. A
number that is reported comes from the columns that `Measure` finds, which come
from x_adv judged again as mere numbers.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from vmoe_robust.attacks import check, distance
from vmoe_robust.config import UserError
from vmoe_robust.mesh import batch_sharding, batch_shards, replicated
from vmoe_robust.mesh.batch import BatchRows
from vmoe_robust.report.verdicts import NO_CLASS, is_right
from vmoe_robust.robustness.target import (
  JUDGE_DRAWS,
  Target,
  as_floats,
  cross_entropy,
  predict,
)

Columns = dict[str, np.ndarray]


def classes(
  logits: Float[Array, 'batch classes'],
) -> Int[Array, 'batch']:
  """The top class of each image, -1 where a logit is not finite."""
  top = logits.argmax(-1).astype(jnp.int32)
  return jnp.where(jnp.isfinite(logits).all(-1), top, NO_CLASS)


def without_own(
  scores: Float[Array, 'batch classes'], labels: Array
) -> Float[Array, 'batch classes']:
  """Scores of classes, -inf of those that an image has, and instead of NaN."""
  own = labels > 0
  if labels.ndim == 1:
    own = labels[:, None] == jnp.arange(scores.shape[1])
  return jnp.where(own | jnp.isnan(scores), -jnp.inf, scores)


@runtime_checkable
class Rows(Protocol):
  """Examples by number: 'image', 'label' and 'mask'; see `data.rows.Rows`."""

  def __len__(self) -> int:
    """How many there are."""
    ...

  def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Their fields, stacked; -1 is padding."""
    ...

  def ahead(self, indices: Iterable[int]) -> None:
    """Says which will be asked for."""
    ...


@dataclasses.dataclass(frozen=True)
class Clean:
  """What the model says of the examples as they are."""

  label: np.ndarray  # int32 [examples], or which classes [examples, classes]
  mask: np.ndarray  # bool [examples]; False: corrupt
  ranked: np.ndarray  # int32 [examples, ranks]; wrong classes, nearest first
  columns: Columns  # prediction_before, loss_before

  @property
  def right(self) -> Bool[np.ndarray, 'examples']:
    """Which examples the model predicts rightly."""
    right = is_right(self.columns['prediction_before'], self.label)
    return right & self.mask


class Measure:
  """Programs that judge, for one model and one shape; compiled once."""

  def __init__(
    self,
    target: Target,
    *,
    norm: str,
    seed: int,
    batch_size: int,
    ranks: int = 1,
    aim: str = 'runner_up',
  ):
    """Compiles nothing yet.

    Args:
      target: what is judged.
      norm: of the ball that x_adv is to be in.
      seed: of all that is drawn.
      batch_size: of all devices together.
      ranks: the number of classes of `Clean.ranked`.
      aim: by what these are ranked: 'runner_up', 'least_likely' or 'random'.

    Raises:
      UserError: the devices cannot share a batch evenly.
    """
    shards = batch_shards(target.mesh)
    if batch_size % shards:
      raise UserError(
        f'batch_size={batch_size} is not divisible by the {shards} devices '
        f'that share it; use {batch_size // shards * shards or shards}'
      )
    self.batch_rows = BatchRows(batch_sharding(target.mesh), batch_size)
    self._target, self.norm, self._seed = target, norm, seed
    self._ranks, self._aim = min(ranks, target.classes), aim
    whole = replicated(target.mesh)
    self._clean = jax.jit(self._clean_program, out_shardings=whole)
    self._score = jax.jit(self._score_program, out_shardings=whole)

  def clean(self, params: PyTree, rows: Rows) -> Clean:
    """Judges every example as it is."""
    found = []
    for indices, batch in self.batches(rows):
      out = jax.device_get(self._clean(params, batch))
      found.append({k: v[indices >= 0] for k, v in out.items()})
    whole = {k: np.concatenate([one[k] for one in found]) for k in found[0]}
    parts = {k: whole.pop(k) for k in ('label', 'mask', 'ranked')}
    return Clean(**parts, columns=whole)

  def batches(self, rows: Rows) -> Iterator[tuple[np.ndarray, dict]]:
    """All examples in order: their numbers, -1 in padding, and a batch."""
    size, count = self.batch_rows.batch_size, len(rows)
    steps = np.arange(-(-count // size) * size, dtype=np.int32)
    steps = np.where(steps < count, steps, -1).reshape(-1, size)
    for number, indices in enumerate(steps):
      batch = self.batch(rows, indices)
      if number + 1 < len(steps):
        rows.ahead(steps[number + 1][self.batch_rows.mine].tolist())
      yield indices, batch

  def batch(
    self, rows: Rows, indices: Int[np.ndarray, 'batch']
  ) -> dict[str, Array]:
    """One batch of examples by their numbers, -1 in padding."""
    here = rows(indices[self.batch_rows.mine])
    batch = {
      name: self.batch_rows.put(np.asarray(here[name]))
      for name in ('image', 'label', 'mask')
    }
    return batch | {'index': self.batch_rows.spread(indices)}

  def score(
    self, params: PyTree, batch: dict[str, Array], x_adv: Array, eps: float
  ) -> Columns:
    """Judges x_adv of a batch as mere numbers; columns in NumPy.

    Args:
      params: the weights.
      batch: 'image', 'label' and 'mask'.
      x_adv: [batch, height, width, channels].
      eps: radius, in units of pixels in [0, 1].
    """
    return jax.device_get(self._score(params, batch, x_adv, np.float32(eps)))

  def lower(
    self, params: PyTree, batch: PyTree, x_adv: PyTree
  ) -> jax.stages.Lowered:
    """The program of `score`, of shapes alone."""
    eps = jax.ShapeDtypeStruct((), np.float32)
    return self._score.lower(params, batch, x_adv, eps)

  def _predict(self, params, images, mask):
    target = dataclasses.replace(self._target, params=params)
    key = jax.random.key(self._seed)
    return predict(target, target.judge, images, mask, key, JUDGE_DRAWS)

  def _clean_program(self, params, batch):
    logits, _ = self._predict(params, as_floats(batch['image']), batch['mask'])
    label = batch['label']
    return {
      'label': label.astype(jnp.int32) if label.ndim == 1 else label,
      'mask': batch['mask'],
      'ranked': self._ranked(logits, label, batch['index']),
      'prediction_before': classes(logits),
      'loss_before': cross_entropy(logits, label),
    }

  def _ranked(self, logits, label, index):
    """Classes that an image does not have, those that are aimed at first."""
    score = -logits if self._aim == 'least_likely' else logits
    if self._aim == 'random':
      seed = jax.random.key(self._seed)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(seed, index)
      draw = lambda key: jax.random.gumbel(key, logits.shape[1:])
      score = jax.vmap(draw)(keys)
    return jax.lax.top_k(without_own(score, label), self._ranks)[1]

  def _score_program(self, params, batch, x_adv, eps):
    images, mask = as_floats(batch['image']), batch['mask']
    in_ball, in_range = check(x_adv, images, eps, self.norm)
    logits, more = self._predict(params, x_adv, mask)
    out = {
      'prediction_after': classes(logits),
      'loss_after': cross_entropy(logits, batch['label']),
      'in_ball': in_ball,
      'in_range': in_range,
    }
    for norm in ('linf', 'l2', 'l1'):
      out[norm] = distance(x_adv, images, norm)
    if self._target.compare is not None:
      _, before = self._predict(params, images, mask)
      out |= self._target.compare(before, more, mask)
    return out


class Some:
  """A part of some rows, numbered anew."""

  def __init__(self, rows: Rows, numbers: Int[np.ndarray, 'examples']):
    """`numbers` are those of the examples, which may be none."""
    self._rows, self._numbers = rows, numbers

  def __len__(self) -> int:
    return len(self._numbers)

  def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """See `Rows`."""
    return self._rows(self.there(indices))

  def ahead(self, indices: Iterable[int]) -> None:
    """See `Rows`."""
    self._rows.ahead(self.there(np.asarray(indices)).tolist())

  def there(self, indices: np.ndarray) -> Int[np.ndarray, 'batch']:
    """The examples' own numbers; -1 is padding."""
    place = np.clip(indices, 0, None)
    return np.where(indices >= 0, self._numbers[place], -1)


class Arrays:
  """Images and labels that are in memory, as rows."""

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    """Images are uint8, or floats in [0, 1]; labels classes, one an image."""
    self.images, self.labels = images, labels

  def __len__(self) -> int:
    return len(self.images)

  def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """See `Rows`."""
    place = np.maximum(indices, 0)
    return {
      'image': self.images[place],
      'label': self.labels[place],
      'mask': np.asarray(indices) >= 0,
    }

  def ahead(self, indices: Iterable[int]) -> None:
    """Nothing to load."""

  def some(self, count: int) -> 'Arrays':
    """As many of them, from all over."""
    count = min(count, len(self))
    chosen = np.arange(count) * len(self) // count
    return Arrays(self.images[chosen], self.labels[chosen])

  def floats(self) -> np.ndarray:
    """A copy of the images, as floats in [0, 1]."""
    if self.images.dtype == np.uint8:
      return self.images.astype(np.float32) / np.float32(255)
    return self.images.copy()
