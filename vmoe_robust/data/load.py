"""From an example's number to the pixels that the model sees."""

import dataclasses
from collections.abc import Iterable
from typing import NotRequired, TypedDict

import numpy as np
from absl import logging
from jaxtyping import Int
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.data import augment
from vmoe_robust.data.corruptions import Corruption
from vmoe_robust.data.decode import CorruptImage, decode_image
from vmoe_robust.data.source import NoClass, Source, check_label

_NAMED = 10  # so many skipped images are logged by name


class Row(TypedDict):
  """One row of a batch."""

  image: np.ndarray  # uint8 [image_size, image_size, channels]
  label: np.ndarray | np.int32  # int32, or float32 [classes]
  mask: np.ndarray | np.bool_  # bool; False: no image here, count nothing
  index: np.ndarray | np.int32  # int32; the number in the split, or -1
  variant: NotRequired[np.ndarray | np.int32]  # int32; of `Variants`


@dataclasses.dataclass(frozen=True)
class Loader:
  """Reads, decodes and crops one example; picklable, for worker processes."""

  source: Source
  data: ConfigDict
  train: bool

  def __call__(self, index: int, rng: np.random.Generator) -> Row:
    """The row of an example; beyond the last one, padding.

    The label of a row without an image is 0, or no label of several.

    Raises:
      UserError: the image is corrupt and config.data.on_corrupt='error', or
        its label is no class and config.data.on_unlabelled='error'.
    """
    if index >= len(self.source):
      return self._row(None, 0, index=-1)
    label = 0
    try:
      example = self._read(index)
      self._check_label(example['label'])
      label = example['label']
      image = decode_image(example['image'], self.source.channels)
    except NoClass as error:
      if self.data.on_unlabelled == 'error':
        raise UserError(
          f'{self.source.describe(index)} cannot be used: {error}; use a split '
          "that has labels, or set config.data.on_unlabelled='skip' to mask "
          'such images out and count them'
        ) from error
      return self._row(None, 0, index)
    except CorruptImage as error:
      if self.data.on_corrupt == 'error':
        raise UserError(
          f'{self.source.describe(index)} is corrupt: {error}; set '
          "config.data.on_corrupt='skip' to mask such images out and count them"
        ) from error
      return self._row(None, label, index)
    if self.train:
      image = augment.training_image(image, self.data, rng)
    else:
      image = augment.evaluation_image(image, self.data)
    return self._row(image, label, index)

  def _check_label(self, label):
    if not self.source.multi_label:
      check_label(label, self.source.num_classes)
    elif not self.train:
      check_some_label(label)

  def _read(self, index: int):
    try:
      return self.source[index]
    except NoClass:
      raise
    except OSError as error:
      raise UserError(
        f'{self.source.describe(index)} cannot be read: {error}; check the '
        'disk or the network'
      ) from error
    except (ValueError, RuntimeError) as error:  # a damaged ArrayRecord
      raise CorruptImage(str(error).strip().splitlines()[0]) from error

  def _row(self, image, label, index: int) -> Row:
    size = self.data.image_size
    if image is None:
      blank = np.zeros((size, size, self.source.channels), np.uint8)
    if self.source.multi_label:
      hot = np.broadcast_to(label, (self.source.num_classes,))
      label = hot.astype(np.float32)
    return dict(
      image=blank if image is None else image,
      label=label if self.source.multi_label else np.int32(label),
      mask=np.bool_(image is not None),
      index=np.int32(index),
    )


def require_images(split: str, images: int, skipped: int) -> None:
  """Refuses a split of which nothing could be read.

  Raises:
    UserError: it is such a split.
  """
  if not images:
    raise UserError(
      f'all {skipped} images of config.data.split={split!r} are corrupt or '
      'have a label that is no class; check config.data.dir'
    )


def nearly_black(images: np.ndarray) -> list[str]:
  """A warning of images that make no sense in [0, 1], if all of them are so.

  Args:
    images: uint8, or floats in [0, 1].
  """
  whole = 255 if images.dtype == np.uint8 else 1
  if not images.size or images.max() > whole / 255:
    return []
  return [
    f'all pixels are at most {images.max() / whole:.2g} of white, nearly '
    'black, so that a radius of 1/255 is as much as all they show: were they '
    'divided by 255 twice, or are they 0 and 1 in whole numbers?'
  ]


def check_some_label(label: int | np.ndarray) -> None:
  """Refuses to judge an image that has none of several possible labels.

  Such an image can teach a model, which learns that no class is there. It
  cannot be judged: whatever class has the highest logit is none of its labels,
  so it would always count as wrong.

  Raises:
    NoClass: the label is all 0.
  """
  if not np.any(label):
    raise NoClass('it has no label, so that no prediction of it can be right')


def describe_skipped(source: Source, index: int) -> str:
  """The name of an example that was skipped, and why if its label is why."""
  name = source.describe(index)
  try:
    label = source[index]['label']
    if source.multi_label:
      check_some_label(label)
    else:
      check_label(label, source.num_classes)
  except NoClass as error:
    return f'{name}: {error}'
  except Exception:  # a record that cannot be read is a corrupt one
    return name
  return name


class Skipped:
  """The images that were skipped, each named once, the first in the log."""

  def __init__(self, source: Source):
    """None yet, of the examples of `source`."""
    self._source, self._closed = source, False
    self._named: dict[str, None] = {}

  @property
  def named(self) -> list[str]:
    """The names of all."""
    return list(self._named)

  def names(self, indices: Int[np.ndarray, 'skipped']) -> list[str]:
    """The names of examples, by their numbers in the split."""
    return [describe_skipped(self._source, int(i)) for i in indices]

  def note(self, names: Iterable[str]) -> None:
    """Takes and logs names that are new."""
    for name in names:
      if name in self._named:
        continue
      self._named[name] = None
      if len(self._named) <= _NAMED:
        logging.warning(
          'skipped a corrupt or unlabelled image (%d so far): %s',
          len(self._named),
          name,
        )

  def close(self) -> None:
    """Logs how many there are, if not all were logged."""
    if len(self._named) > _NAMED and not self._closed:
      logging.warning(
        'skipped %d corrupt or unlabelled images in all', len(self._named)
      )
    self._closed = True


@dataclasses.dataclass(frozen=True)
class Variants:
  """All examples under the first corruption, then under the second, ..."""

  loader: Loader
  corruptions: tuple[Corruption, ...]

  def __call__(self, position: int, rng: np.random.Generator) -> Row:
    """The row at a position, with `variant`: which corruption, or padding."""
    examples = len(self.loader.source)
    variant, index = divmod(position, examples)
    is_padding = variant >= len(self.corruptions)
    row = self.loader(examples if is_padding else index, rng)
    if row['mask']:
      image = self.corruptions[variant](row['image'], index)
      row['image'] = np.ascontiguousarray(image)
    row['variant'] = np.int32(-1 if is_padding else variant)
    return row
