"""Which predictions are right: of arrays, and of the records of a run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
from jax import Array
from jaxtyping import Bool, Int

from vmoe_robust.config import UserError
from vmoe_robust.report.records import to_numpy
from vmoe_robust.report.results import DAMAGE, Results

NO_CLASS = -1  # the prediction where a logit is not finite
CLEAN = 'clean'  # images without an attack, as a condition
# Of records, those that say it; the last one may be missing.
_COLUMNS = ['condition', 'index', 'label', 'prediction_after']
_COLUMNS += ['prediction_before']
# Fields of a row that tell how many predictions under its condition are right.
_SHARES = ('robust_accuracy', 'accuracy')
# What comes from NumPy stays there.
_Array = TypeVar('_Array', Array, np.ndarray)


def is_right(
  predictions: Int[_Array, 'rows'], labels: Array | np.ndarray
) -> Bool[_Array, 'rows']:
  """Whether a class is the label, or one of several; -1 never is.

  Args:
    predictions: classes, -1 for none.
    labels: classes [rows], or which classes an image has [rows, classes].
  """
  if labels.ndim == 1:
    return (predictions == labels) & (predictions != NO_CLASS)
  # One row an image and one column a class: no gather, which a mesh would
  # communicate for.
  chosen = predictions[:, None] == np.arange(labels.shape[1])
  return (chosen & (labels > 0)).any(-1)


@dataclasses.dataclass(frozen=True)
class Judged:
  """Which images are right under one condition.

  Attributes:
    index: int [images], of the example in its split; sorted.
    label: int [images], or which classes an image has [images, classes].
    right: bool [images].
    fingerprint: of the examples; None where it is not known.
  """

  index: np.ndarray
  label: np.ndarray
  right: np.ndarray
  fingerprint: str | None = None

  def is_of_same_images(self, other: 'Judged') -> bool:
    """Whether examples and labels are those of the other, as far as known."""
    known = {self.fingerprint, other.fingerprint} - {None}
    return (
      len(known) < 2
      and np.array_equal(self.index, other.index)
      and np.array_equal(self.label, other.label)
    )


def judged(records: pa.Table) -> dict[str, Judged]:
  """The images of a run by condition, without an attack ('clean') first.

  Raises:
    UserError: a column is missing, or an image is twice under a condition.
  """
  *needed, _ = _COLUMNS
  if missing := [n for n in needed if n not in records.column_names]:
    raise UserError(f'the records have no {missing[0]!r}')
  there = [n for n in _COLUMNS if n in records.column_names]
  found = {n: to_numpy(records[n]) for n in there}
  out: dict[str, Judged] = {}
  for condition in dict.fromkeys(found['condition'].tolist()):
    own = np.flatnonzero(found['condition'] == condition)
    own = own[np.argsort(found['index'][own], kind='stable')]
    index, label = found['index'][own], found['label'][own]
    if len(np.unique(index)) < len(own):
      raise UserError(f'an image is twice under {condition!r}')
    if not out and 'prediction_before' in found:
      before = found['prediction_before'][own]
      out[CLEAN] = Judged(index, label, is_right(before, label))
    after = found['prediction_after'][own]
    out[condition] = Judged(index, label, is_right(after, label))
  return out


def judged_of(results: Results) -> dict[str, Judged]:
  """`judged` of a run's records, which have to be those of its numbers.

  Raises:
    UserError: a column is missing, an image is twice under a condition, or
      `results.json` is of other records.
  """
  found = judged(results.records)
  _require_agreement(found, results)
  data = results['data'].get('fingerprint')  # older versions wrote none
  return {
    condition: dataclasses.replace(one, fingerprint=data)
    for condition, one in found.items()
  }


def require_agreement(results: Results) -> None:
  """Refuses numbers of a run that its records contradict.

  Where there are no records that can be read, nothing contradicts them.

  Raises:
    UserError: says which number is of another run.
  """
  try:
    # Of many runs all columns would not fit into memory.
    found = judged(results.read(_COLUMNS))
  except DAMAGE:
    return
  _require_agreement(found, results)


def _require_agreement(found: Mapping[str, Judged], results: Results):
  shares = [(CLEAN, results['summary'].get('clean_accuracy'))]
  shares += [
    (row['condition'], row.get(name))
    for row in results['rows']
    for name in _SHARES
  ]
  for condition, share in shares:
    if condition not in found or not isinstance(share, Mapping):
      continue
    right = found[condition].right
    if share['value'] is None or not len(right):
      continue
    # Not a number is no share either.
    if not abs(right.mean() - share['value']) <= 1e-9:
      raise UserError(
        f'the records have {right.mean():.6g} right under {condition!r} and '
        f'results.json says {share["value"]:.6g}: they are of different runs'
      )


def union(conditions: Sequence[Judged]) -> Judged:
  """Right under all of several conditions: the worst case of each image.

  Raises:
    UserError: they are not of the same images.
  """
  first = conditions[0]
  if not all(first.is_of_same_images(other) for other in conditions):
    raise UserError('the conditions of a union are of other images')
  right = np.logical_and.reduce([one.right for one in conditions])
  return dataclasses.replace(first, right=right)
