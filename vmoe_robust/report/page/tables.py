"""Tables of a page: what is shown, and the exact numbers behind it."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vmoe_robust.files import to_json
from vmoe_robust.report.page.runs import flat
from vmoe_robust.report.table import percent, written

_MOST_ROWS = 500


@dataclasses.dataclass(frozen=True)
class Cell:
  """What a cell shows, and the number that it rounds."""

  text: str
  value: float | int | None = None
  low: float | None = None
  high: float | None = None
  n: int | None = None
  swatch: float | None = None  # how dark a cell of a matrix is, 0 to 1
  whole: str | None = None  # of several values, as JSON

  @property
  def exact(self) -> str | None:
    """What `text` rounds, in its unit or as a share; None without a number."""
    if self.whole is not None:
      return self.whole
    if self.value is None or not math.isfinite(self.value):
      return None
    return json.dumps(self.value)


@dataclasses.dataclass(frozen=True)
class Table:
  """A table that can be sorted, filtered and saved."""

  caption: str
  headers: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  note: str = ''

  @property
  def id(self) -> str:
    """Of letters that a file's name may have."""
    return re.sub(r'[^a-z0-9]+', '-', self.caption.lower()).strip('-')[:60]

  @property
  def with_numbers(self) -> list[bool]:
    """Which columns have numbers, which stand to the right."""
    return [
      any(row[i].value is not None for row in self.rows)
      for i in range(len(self.headers))
    ]


def table(
  caption: str,
  headers: Sequence[str],
  rows: Iterable[Sequence[object]],
  note: str = '',
) -> Table:
  """A table of cells, or of what `cell` makes cells of."""
  made = [
    [one if isinstance(one, Cell) else cell(one) for one in row] for row in rows
  ]
  return Table(caption, headers, made, note)


def cell(value: Any) -> Cell:
  """A value of `results.json`; of an estimate also its interval."""
  if isinstance(value, Mapping) and 'interval' in value:
    low, high = value['interval'] or (None, None)
    text = _number(value['value'])
    if low is not None:
      text += f' [{_number(low)}, {_number(high)}]'
    return Cell(text, value['value'], low, high, value['n'])
  if isinstance(value, bool):
    return Cell('yes' if value else 'no')
  if value is None or isinstance(value, int | float):
    return Cell(_number(value), value)
  if isinstance(value, list | tuple):
    return several(value, lambda one: cell(one).text)
  return Cell(str(value))


def several(values: Sequence[Any], show: Callable[[Any], str]) -> Cell:
  """Values in one cell; a single number is a number."""
  if len(values) == 1 and isinstance(values[0], float):
    return Cell(show(values[0]), values[0])
  return Cell(', '.join(map(show, values)), whole=to_json(values))


def rate(estimate: Mapping[str, Any] | None) -> Cell:
  """A share of images in percent, with its interval."""
  if estimate is None:
    return Cell('-')
  value, interval = estimate['value'], estimate['interval']
  low, high = interval or (None, None)
  text = percent(value)
  if low is not None:
    text += f' [{100 * low:.1f}, {100 * high:.1f}]'
  return Cell(text, value, low, high, estimate['n'])


def points(difference: Mapping[str, Any]) -> Cell:
  """A difference of shares in percentage points, with its interval."""
  if difference['value'] is None:
    return Cell('-')
  numbers = [
    100 * x for x in (difference['value'], *(difference['interval'] or ()))
  ]
  text, *ends = (written(number, 'points', 0) for number in numbers)
  text += f' [{", ".join(ends)}]' if ends else ''
  value, low, high = (*numbers, None, None)[:3]
  return Cell(text, value, low, high, difference['n'])


def of_rows(caption: str, rows: Sequence[Mapping[str, object]]) -> Table:
  """All rows of `results.json`, a column a number."""
  flattened = [flat(row) for row in rows[:_MOST_ROWS]]
  headers = list(dict.fromkeys(name for row in flattened for name in row))
  note = ''
  if len(rows) > _MOST_ROWS:
    note = f'The first {_MOST_ROWS} of {len(rows):,}; results.json has all.'
  return table(
    caption, headers, ([row.get(n, '') for n in headers] for row in flattened),
    note,
  )  # fmt: skip


def of_values(caption: str, found: Mapping[str, object]) -> Table:
  """Names and values, one below the other."""
  return table(caption, ('name', 'value'), flat(found).items())


def fields(values: Sequence[object]) -> list[Cell]:
  """Values of a field of configs as Python has them, with the exact numbers.

  Floats have six digits, and all where other values would look the same.
  """
  texts, whole = list(map(_short, values)), list(map(repr, values))
  if len(set(texts)) < len(set(whole)):
    texts = whole
  return [_field(*both) for both in zip(texts, values, strict=True)]


def _field(text: str, value: object) -> Cell:
  if isinstance(value, list | tuple):
    return Cell(text, whole=to_json(value))
  return Cell(text, value if isinstance(value, float) else None)


def _short(value: object) -> str:
  if isinstance(value, list | tuple):
    return f'[{", ".join(map(_short, value))}]'
  return f'{value:.6g}' if isinstance(value, float) else repr(value)


def _number(value: float | int | None) -> str:
  if value is None:
    return '-'
  if isinstance(value, int):
    return f'{value:,}' if abs(value) > 9999 else str(value)
  return f'{value:.4g}'
