"""A figure as a page shows it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vmoe_robust.report.page import draw
from vmoe_robust.report.page.tables import Table

USUAL = 'Points are values; bands and bars are their 95% intervals.'


@dataclasses.dataclass(frozen=True)
class Shown:
  """A figure as a page shows it."""

  title: str
  pictures: Sequence[Markup]
  legend: Sequence[tuple[Markup, str]]
  table: Table
  reading: str = ''


def of_figure(
  figure: Mapping[str, Any], caption: str, reading: str = USUAL
) -> Shown:
  """A figure of the form of its data file.

  Raises:
    LookupError: it has another form.
  """
  return Shown(
    caption,
    draw.pictures(figure),
    draw.legend(figure),
    draw.numbers(figure, caption),
    reading + (' ' + figure['note'] if figure.get('note') else ''),
  )


def line_of(
  label: str, x: Sequence[float], estimates: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """A line of a figure, through estimates with their intervals."""
  ends = [one['interval'] or (None, None) for one in estimates]
  return {
    'label': label,
    'x': x,
    'y': [one['value'] for one in estimates],
    'low': [low for low, _ in ends],
    'high': [high for _, high in ends],
  }
