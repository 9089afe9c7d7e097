"""Tables as plain text."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

_T = TypeVar('_T')


def table(
  headers: Sequence[str],
  rows: Sequence[Sequence[object]],
) -> str:
  """Lines of aligned columns, those of numbers to the right.

  Args:
    headers: one a column.
    rows: cells, shown as `str` shows them; give floats as formatted text.
      '97.2%', '-' and '' count as numbers too.
  """
  cells = [[str(cell) for cell in row] for row in rows]
  right = [all(map(_is_number, column)) for column in zip(*cells, strict=True)]
  right = right if cells else [False] * len(headers)
  lines = [list(headers), *cells]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

  def pad(line):
    columns = zip(line, widths, right, strict=True)
    return [c.rjust(w) if r else c.ljust(w) for c, w, r in columns]

  shown = [pad(headers), ['-' * width for width in widths], *map(pad, cells)]
  return '\n'.join('  '.join(line).rstrip() for line in shown)


def percent(share: float | None) -> str:
  """A share as '97.2%', '-' where there is none.

  A share that only rounds to none or all has three digits, such as '99.998%'
  for 49,999 of 50,000.
  """
  if share is None:
    return '-'
  value = round(float(100 * share), 1) + 0.0  # 0.0 and not -0.0
  fine = round(float(100 * share), 3) + 0.0
  if value in (0.0, 100.0) and fine != value:
    return f'{fine:g}%'
  return f'{value:.1f}%'


def written(value: float, unit: str, digits: int) -> str:
  """A number of a figure: '97.2%', '+2.8' of points, else so many digits.

  Points that only round to none have three digits, such as '-0.013': an end of
  an interval keeps its side of 0.
  """
  if unit == '%':
    return percent(value)
  if unit == 'points':
    short, fine = (round(float(value), n) + 0.0 for n in (1, 3))  # never -0.0
    return f'{fine:+g}' if fine and not short else f'{short:+.1f}'
  return f'{value:.{digits}g}'


def points(difference: dict) -> str:
  """A difference of shares as '+2.8 (+1.2 to +4.4)', in percentage points.

  Args:
    difference: its 'value', and its 'interval', which may be None.
  """
  if difference['value'] is None:
    return '-'
  ends = difference['interval'] or ()
  value, *ends = (
    written(100 * x, 'points', 0) for x in (difference['value'], *ends)
  )
  return f'{value} ({" to ".join(ends)})' if ends else value


def radius(norm: str, eps: float) -> str:
  """A radius as people write it: '8/255' in linf."""
  if norm == 'linf':
    return f'{255 * eps:.5g}/255'
  return f'{eps:.5g}'


def radius_axis(norm: str) -> tuple[int, str]:
  """An axis of radii: what they are multiplied by, and its label."""
  return (255, 'eps (1/255)') if norm == 'linf' else (1, f'eps ({norm})')


def some_of(items: Sequence[_T], most: int) -> list[_T]:
  """At most so many of them, at equal steps, the last among them."""
  step = -(-len(items) // most) or 1
  return list(items)[::-1][::step][::-1]


def seeds_of(row: Mapping[str, Any]) -> str:
  """Of which seeds, in this order, a row of an experiment has numbers."""
  return ', '.join(str(one['seed']) for one in row['seeds'])


def _is_number(cell):
  text = cell.removesuffix('%').replace(',', '')
  try:
    float(text)
  except ValueError:
    return cell in ('', '-')
  return True
