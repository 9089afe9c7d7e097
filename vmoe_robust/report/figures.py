"""Figures: the data that they show, and the picture of it."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from vmoe_robust.files import write_json
from vmoe_robust.report.canvas import figure_of, plain, save
from vmoe_robust.report.labels import apart
from vmoe_robust.report.statistics import Estimate
from vmoe_robust.report.table import written

# Told apart by the colour-blind too (Okabe and Ito 2008), and by their markers.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#000000', '#E69F00')
_MARKERS = 'osD^vPX'
_LINE = 10  # points, of a line of text beside a panel


@dataclasses.dataclass(frozen=True)
class _Numbers:
  """A figure whose fields are the numbers that it shows."""

  name: str  # of the files, without an ending
  title: str  # what is written above the picture

  @property
  def data_name(self) -> str:
    """Of the file that has the numbers."""
    return f'{self.name}.json'

  def write_data(self, path: str | os.PathLike) -> None:
    """Writes the numbers as JSON."""
    write_json(path, dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Line:
  """Points with their 95% intervals; None is a point that is not known."""

  label: str
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float]
  high: Sequence[float]
  panel: str = ''  # lines of a panel are drawn together
  dashed: bool = False
  joined: bool = True  # or points alone

  @classmethod
  def of(
    cls,
    label: str,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    panel: str = '',
    dashed: bool = False,
    times: float = 1,
  ) -> 'Line':
    """Estimates with their intervals, times a number, by ascending x."""
    order = sorted(range(len(x)), key=lambda i: x[i])
    x = [x[i] for i in order]
    ends = [_ends(estimates[i], times) for i in order]
    y, low, high = ([one[i] for one in ends] for i in range(3))
    return cls(label, x, y, low, high, panel, dashed)


@dataclasses.dataclass(frozen=True)
class Bar:
  """One number with its 95% interval."""

  label: str
  value: float
  low: float
  high: float
  group: str = ''  # bars of a group have one colour and one marker
  dots: Sequence[float] = ()  # what it is the mean of, such as seeds

  @classmethod
  def of(
    cls,
    label: str,
    estimate: Estimate,
    group: str = '',
    times: float = 1,
    dots: Sequence[float] = (),
  ) -> 'Bar':
    """An estimate with its interval, times a number; dots are as they are."""
    return cls(label, *_ends(estimate, times), group, dots)


def _ends(estimate: Estimate, times: float) -> tuple[float, float, float]:
  """The value and its interval; not a number where they are not known.

  A value that is known without an interval has none: one of no width would say
  that it is exact.
  """
  parts = (estimate['value'], *(estimate['interval'] or (None, None)))
  value, low, high = (np.nan if p is None else times * float(p) for p in parts)
  return value, low, high


@dataclasses.dataclass(frozen=True)
class BarPlot(_Numbers):
  """Numbers one below the other, each with its name, as points with intervals.

  Points need no zero to stand on, so that small differences can be seen.
  """

  x_label: str
  bars: Sequence[Bar]
  unit: str = '%'  # of shares, between 0 and 1; 'points', times 100; or ''

  def draw(self, path: str | os.PathLike) -> None:
    """Writes the picture as PNG, and as SVG beside it."""
    figure, axis = figure_of(6.8, 1.7 + 0.28 * len(self.bars))
    groups = list(dict.fromkeys(bar.group for bar in self.bars))
    times = 100 if self.unit == '%' else 1
    for number, group in enumerate(groups):
      own = [i for i, bar in enumerate(self.bars) if bar.group == group]
      found = [self.bars[i] for i in own]
      value, low, high = (
        times * np.array([getattr(bar, name) for bar in found], float)
        for name in ('value', 'low', 'high')
      )
      axis.errorbar(
        value,
        own,
        xerr=np.maximum([value - low, high - value], 0),
        fmt=_MARKERS[number % len(_MARKERS)],
        color=_COLOURS[number % len(_COLOURS)],
        markersize=5,
        elinewidth=1.2,
        capsize=2.5,
        label=plain(group),
      )
      for place, bar in zip(own, found, strict=True):
        dots = times * np.array(bar.dots, float)
        at = np.full(len(dots), place)
        axis.plot(dots, at, 'o', color='0.45', markersize=2.5, zorder=3)
      for place, x in zip(own, value, strict=True):
        axis.annotate(
          written(x / times, self.unit, 3),
          (x, place),
          (0, 4),
          textcoords='offset points',
          ha='center',
          fontsize=7,
        )
    axis.set_yticks(range(len(self.bars)))
    axis.set_yticklabels([plain(bar.label) for bar in self.bars], fontsize=8)
    axis.set_ylim(len(self.bars) - 0.5, -0.7)  # the first one on top
    axis.set_xlabel(plain(self.x_label) + (' (%)' if self.unit == '%' else ''))
    axis.grid(alpha=0.25, linewidth=0.5, axis='x')
    if groups != ['']:
      figure.legend(  # beside the points, of which it would hide some
        loc='outside lower center',
        ncols=len(groups),
        fontsize=7.5,
        title='bar: 95% interval',
        title_fontsize=7.5,
      )
    figure.suptitle(plain(self.title), fontsize=11)
    save(figure, path)


@dataclasses.dataclass(frozen=True)
class Matrix(_Numbers):
  """A table of rates as shades, each with its number."""

  x_label: str
  y_label: str
  columns: Sequence[str]
  rows: Sequence[str]
  values: Sequence[Sequence[float]]  # [rows][columns], between 0 and 1

  def draw(self, path: str | os.PathLike) -> None:
    """Writes the picture as PNG, and as SVG beside it."""
    width = 2.4 + 0.7 * len(self.columns)
    figure, axis = figure_of(width, 1.8 + 0.45 * len(self.rows))
    values = 100 * np.array(self.values, float)
    axis.imshow(values, cmap='cividis', vmin=0, vmax=100, aspect='auto')
    for row, line in enumerate(values):
      for column, value in enumerate(line):
        colour = 'white' if value < 50 else 'black'
        shown = f'{value:.1f}'
        axis.text(
          column, row, shown, ha='center', va='center', color=colour, fontsize=8
        )
    axis.set_xticks(range(len(self.columns)), map(plain, self.columns))
    axis.set_yticks(range(len(self.rows)), map(plain, self.rows))
    axis.tick_params(axis='x', labelrotation=30)
    axis.set_xlabel(plain(self.x_label))
    axis.set_ylabel(plain(self.y_label))
    figure.suptitle(plain(self.title), fontsize=11)
    save(figure, path)


@dataclasses.dataclass(frozen=True)
class LinePlot(_Numbers):
  """Numbers against something, in one panel or several."""

  x_label: str
  y_label: str
  lines: Sequence[Line]
  unit: str = '%'  # of shares, between 0 and 1; 'points', times 100; or ''
  note: str = ''  # written below: what the picture does not say

  def draw(self, path: str | os.PathLike) -> None:
    """Writes the picture as PNG, and as SVG beside it."""
    panels = list(dict.fromkeys(line.panel for line in self.lines)) or ['']
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    width, height = (7.6, 4.2) if len(panels) == 1 else (6.0, 3.4)
    figure, axes = figure_of(width * columns, height * rows, rows, columns)
    for place, axis in enumerate(np.asarray(axes).reshape(-1)):
      if place >= len(panels):
        axis.set_axis_off()
        continue
      _draw_panel(axis, self, panels[place])
    figure.suptitle(plain(self.title), fontsize=11)
    known = any(
      np.isfinite(np.array(line.low, float)).any() for line in self.lines
    )
    band = 'Bands: 95% intervals.' if known else ''
    below = '\n'.join(text for text in (self.note, band) if text)
    figure.supxlabel(plain(below), fontsize=7.5)
    save(figure, path)


def _draw_panel(axis, plot: LinePlot, panel: str):
  lines = [line for line in plot.lines if line.panel == panel]
  times = 100 if plot.unit == '%' else 1
  for number, line in enumerate(lines):
    colour = _COLOURS[number % len(_COLOURS)]
    y, low, high = (
      times * np.array(v, float) for v in (line.y, line.low, line.high)
    )
    axis.plot(
      line.x,
      y,
      color=colour,
      marker=_MARKERS[number % len(_MARKERS)],
      markersize=4.5,
      linewidth=1.4,
      linestyle=_style(line),
      label=plain(line.label),
    )
    axis.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)
    if len(line.x) == 1:  # a band needs two points
      axis.vlines(line.x, low, high, color=colour)
  axis.set_xlabel(plain(plot.x_label))
  axis.set_ylabel(plain(plot.y_label) + (' (%)' if plot.unit == '%' else ''))
  if plot.unit == '%':
    axis.set_ylim(-2, 102)
  axis.grid(alpha=0.25, linewidth=0.5)
  if panel:
    axis.set_title(plain(panel), fontsize=10)
  if all(line.joined for line in lines):
    _name_lines(axis, lines, times)
  else:  # a name at the end of a line needs one
    axis.legend(loc='upper left', bbox_to_anchor=(1.01, 1), fontsize=7.5)


def _style(line: Line) -> str:
  if not line.joined:
    return 'none'
  return '--' if line.dashed else '-'


def _name_lines(axis, lines: Sequence[Line], times: float):
  """Writes each line's name to the right of the panel, where the line ends."""
  axis.margins(x=0.02)
  axis.autoscale_view()  # else the limits change when the picture is drawn
  ends = [_end(line, times, axis) for line in lines]
  height = axis.get_window_extent().height * 72 / axis.figure.dpi  # in points
  places = apart([y for _, y in ends], 0, 1, _LINE / height)
  for number, line in enumerate(lines):
    axis.annotate(
      plain(line.label),
      ends[number],
      (1.06, places[number]),
      xycoords='axes fraction',
      textcoords='axes fraction',
      va='center',
      fontsize=7.5,
      arrowprops=dict(
        arrowstyle='-',
        color=_COLOURS[number % len(_COLOURS)],
        linewidth=0.9,
        shrinkA=1,
        shrinkB=4,
        relpos=(0, 0.5),
      ),
    )


def _end(line: Line, times: float, axis) -> tuple[float, float]:
  """Where a line ends, in shares of the panel's width and height."""
  known = np.flatnonzero(np.isfinite(np.array(line.y, float)))
  if not len(known):
    return 0, 0
  end = line.x[known[-1]], times * line.y[known[-1]]
  in_axes = axis.transData - axis.transAxes
  return tuple(np.clip(in_axes.transform(end), 0, 1))
