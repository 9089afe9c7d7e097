"""The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from vmoe_robust.data import splits
from vmoe_robust.data.source import Example, Source, digest

_WHITE = 16  # the brightest value in the file
_TEST_EVERY = 5


@dataclasses.dataclass(frozen=True)
class _Digits:
  images: UInt8[np.ndarray, 'examples 8 8 1']
  labels: Int[np.ndarray, 'examples']
  names: tuple[str, ...]
  lengths: Mapping[str, int]
  num_classes: int = 10
  class_names: tuple[str, ...] = tuple('0123456789')
  multi_label: bool = False
  channels: int = 1

  @property
  def fingerprint(self) -> str:
    labels = np.asarray(self.labels, np.int64)
    return digest([self.images.tobytes(), labels.tobytes()])

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Example:
    return dict(image=self.images[index], label=int(self.labels[index]))

  def describe(self, index: int) -> str:
    return self.names[index]


def open_split(data: ConfigDict, split: str) -> Source:
  """Opens 'train' (1,437 digits), 'test' (360) or a part of them.

  The file comes without a split and ordered by writer. Every fifth digit
  of each class is for the test, so both splits hold all classes and writers.
  """
  from sklearn import datasets  # takes a second

  images, labels = datasets.load_digits(return_X_y=True)
  test = np.sort(np.argsort(labels, kind='stable')[::_TEST_EVERY])
  parts = {
    'train': np.setdiff1d(np.arange(len(labels)), test),
    'test': test,
  }
  lengths = {name: len(part) for name, part in parts.items()}
  found = splits.ranges(data, split, lengths)
  index = np.concatenate([parts[r.split][r.start : r.stop] for r in found])
  pixels = np.round(images[index] * 255 / _WHITE).astype(np.uint8)
  return _Digits(
    images=pixels.reshape(-1, 8, 8, 1),
    labels=labels[index],
    names=tuple(
      f'digits {r.split} example {i}'
      for r in found
      for i in range(r.start, r.stop)
    ),
    lengths=lengths,
  )
