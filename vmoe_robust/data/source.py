"""What a data set looks like to the pipeline, whatever it is stored in."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Int


class Example(TypedDict):
  """One labelled image as it is stored."""

  image: bytes | np.ndarray  # encoded, or uint8 [height, width, channels]
  label: int | np.ndarray  # a class, or float32 [classes] of 0 and 1


class NoClass(ValueError):
  """An example's label is none of the classes of its data set."""


def check_label(label: int | np.integer | np.ndarray, num_classes: int) -> None:
  """Refuses a label that is none of the classes 0 to `num_classes` - 1.

  Args:
    label: a class, or the classes of an image that has several labels.
    num_classes: of the data set.

  Raises:
    NoClass: names the label. Unlabelled splits of TFDS have -1.
  """
  for one in np.atleast_1d(label).tolist():
    if not 0 <= one < num_classes:
      raise NoClass(
        f'its label {one} is none of the {num_classes} classes 0 to '
        f'{num_classes - 1}'
      )


def digest(parts: Iterable[str | bytes]) -> str:
  """A number of 64 bits, as text, that other parts would not have."""
  found = hashlib.blake2b(digest_size=8)
  for part in parts:
    part = (
      part.encode(errors='surrogateescape') if isinstance(part, str) else part
    )
    found.update(len(part).to_bytes(8, 'little') + part)
  return found.hexdigest()


@runtime_checkable
class Source(Protocol):
  """Random access to the examples of a split; safe to share by threads."""

  @property
  def num_classes(self) -> int:
    """How many classes there are."""
    ...

  @property
  def class_names(self) -> tuple[str, ...]:
    """The name of each class, in the order of their numbers."""
    ...

  @property
  def multi_label(self) -> bool:
    """Whether an image may have several classes."""
    ...

  @property
  def channels(self) -> int:
    """1 (grey) or 3 (RGB)."""
    ...

  @property
  def lengths(self) -> Mapping[str, int]:
    """The number of examples of each split that the data set has."""
    ...

  @property
  def fingerprint(self) -> str:
    """By which the same examples are known again, wherever they are.

    Another one if examples came, went, or changed their name, label or place.
    """
    ...

  def __len__(self) -> int:
    """The number of examples."""
    ...

  def __getitem__(self, index: int) -> Example:
    """The example, not decoded."""
    ...

  def describe(self, index: int) -> str:
    """A name by which a person finds the example."""
    ...


class Part:
  """Some examples of a source."""

  def __init__(self, source: Source, numbers: Int[np.ndarray, 'part']):
    """`numbers` are those of the examples in the source, in their order."""
    self._source, self._numbers = source, numbers
    self.num_classes, self.channels = source.num_classes, source.channels
    self.class_names, self.multi_label = source.class_names, source.multi_label
    self.lengths = source.lengths
    self.fingerprint = digest([source.fingerprint, numbers.tobytes()])

  def __len__(self) -> int:
    """The number of examples."""
    return len(self._numbers)

  def __getitem__(self, index: int) -> Example:
    """The example, not decoded."""
    return self._source[int(self._numbers[index])]

  def describe(self, index: int) -> str:
    """A name by which a person finds the example."""
    return self._source.describe(int(self._numbers[index]))
