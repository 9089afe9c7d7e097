"""What a mode or a study found: the one form that results are written from."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

# Columns that records of every kind have.
REQUIRED = ('index', 'condition', 'label', 'prediction_after')

Columns = dict[str, np.ndarray]


@runtime_checkable
class Figure(Protocol):
  """A picture, and the data that it shows."""

  @property
  def name(self) -> str:
    """Of the files, without an ending."""
    ...

  @property
  def title(self) -> str:
    """What is written above the picture."""
    ...

  @property
  def data_name(self) -> str:
    """Of the file that has the data."""
    ...

  def write_data(self, path: str | os.PathLike) -> None:
    """Writes the data."""

  def draw(self, path: str | os.PathLike) -> None:
    """Writes the picture as PNG."""


@dataclasses.dataclass(frozen=True)
class Findings:
  """Numbers, the records that they come from, and what shows them.

  Attributes:
    columns: a row an example and condition, for `records.parquet`. `condition`
      is text; `prediction_after` is the prediction under the condition, and
      `prediction_before`, where there is one, that of the clean image.
    skipped: indices of the examples that could not be read.
    rows: one a condition, or several; each says its `condition`, which is that
      of the records it was computed from, and then names its numbers.
    summary: numbers and facts about all conditions.
    figures: what is drawn.
    warnings: what makes the numbers hard to believe, a sentence each.
    speed: how fast it was, such as 'attacked_images_per_second'.
  """

  columns: Columns
  skipped: Sequence[int]
  rows: Sequence[Mapping[str, object]]
  summary: Mapping[str, object]
  figures: Sequence[Figure] = ()
  warnings: Sequence[str] = ()
  speed: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    missing = [name for name in REQUIRED if name not in self.columns]
    if missing:
      raise ValueError(f'records lack the columns {missing}')
