"""The split syntax of TensorFlow Datasets, for every kind of source.

'train', 'train[:10%]', 'train[100:200]', 'train[-5%:]', 'train+test', 'all':
https://www.tensorflow.org/datasets/splits
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data.hold_out import places


class Range(NamedTuple):
  """Examples `start` to `stop` of one of a data set's splits."""

  split: str
  start: int
  stop: int


def ranges(
  data: ConfigDict, split: str, lengths: Mapping[str, int]
) -> tuple[Range, ...]:
  """What a split such as 'train[:10%]+test' names, in its order.

  Args:
    data: `config.data`, for the errors.
    split: in the syntax of TensorFlow Datasets, whose parser this uses.
    lengths: the number of examples of each split there is.

  Raises:
    UserError: there is no such split, it holds no examples, or some twice.
  """
  if split in lengths:  # the usual case needs no import of a second
    found = (Range(split, 0, lengths[split]),)
  else:
    found = _parse(data, split, lengths)
  found = tuple(r for r in found if r.stop > r.start)
  for one, other in itertools.pairwise(sorted(found)):
    if one.split == other.split and other.start < one.stop:
      raise UserError(
        f'{_field(data, split)}={split!r} has the examples {other.start} to '
        f'{min(one.stop, other.stop) - 1} of {one.split!r} twice, which would '
        'count as others; name each once'
      )
  if not found:
    raise UserError(
      f'{_field(data, split)}={split!r} of config.data.name={data.name!r} '
      f'holds no examples; there are {_lengths_text(lengths)}'
    )
  return found


def seen_in_training(
  data: ConfigDict,
  split: str,
  trained: str,
  validation: float,
  lengths: Mapping[str, int],
) -> str:
  """A warning if examples of a split are of the one that was trained on.

  Args:
    data: `config.data`, for the errors.
    split: that is judged on.
    trained: that the model was trained on, of the same data set.
    validation: the share of it that was held out.
    lengths: the number of examples of each split there is.

  Returns:
    '' if there are none.

  Raises:
    UserError: one of the splits is not there.
  """
  judged, learned = (_numbers(data, s, lengths) for s in (split, trained))
  if validation:
    learned = learned[places(len(learned), validation)[0]]
  shared = np.isin(judged, learned).sum()
  if not shared:
    return ''
  return (
    f'{shared:,} of the {len(judged):,} examples of {split!r} are of '
    f'{trained!r}, on which the model is trained: accuracies are higher on '
    'these than on new images'
  )


def _numbers(data, split, lengths) -> Int[np.ndarray, 'examples']:
  """The examples of a split, numbered through all that there are."""
  ends = itertools.accumulate(lengths.values(), initial=0)
  first = dict(zip(lengths, ends, strict=False))  # there is one end more
  return np.concatenate(
    [
      np.arange(one.start, one.stop) + first[one.split]
      for one in ranges(data, split, lengths)
    ]
  )


def _parse(data, split, lengths) -> tuple[Range, ...]:
  import tensorflow_datasets as tfds  # takes a second

  infos = {
    name: tfds.core.SplitInfo(name=name, shard_lengths=[length], num_bytes=0)
    for name, length in lengths.items()
  }
  try:
    instructions = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (ValueError, NotImplementedError) as error:
    reason = str(error).strip().splitlines()[-1]
    raise UserError(
      f'{_field(data, split)}={split!r} of config.data.name={data.name!r} is '
      f'no split ({reason}); there are {_lengths_text(lengths)}, and '
      "slices such as 'train[:10%]'"
    ) from error
  return tuple(
    Range(
      i.splitname,
      i.from_ or 0,
      lengths[i.splitname] if i.to is None else i.to,
    )
    for i in instructions
  )


def _field(data: ConfigDict, split: str) -> str:
  name = 'split' if split == data.split else 'eval_split'
  return f'config.data.{name}'


def _lengths_text(lengths: Mapping[str, int]) -> str:
  return ', '.join(f'{name!r} ({n} examples)' for name, n in lengths.items())
