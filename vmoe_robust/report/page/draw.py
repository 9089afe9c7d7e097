"""Figures of a page as SVG, from the same numbers as `report/figures.py`.

Drawn by hand: some kilobytes a figure, colours that follow light and dark mode,
and text that stays text. A figure is a dictionary of the form of its data file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vmoe_robust.report.labels import apart
from vmoe_robust.report.page.scales import Scale, scale
from vmoe_robust.report.page.svg import (
  COLOURS,
  LINE,
  WIDTH,
  drawing,
  is_known,
  marker,
  x_axis,
  y_axis,
)
from vmoe_robust.report.page.tables import Cell, Table, rate, table
from vmoe_robust.report.table import percent, written

_HEIGHT = 270  # in units of the drawing
_LEFT, _TOP, _BOTTOM = 40, 18, 38
_ROW = 34  # of a plot of bars
_LONGEST = 20  # letters of a label beside its line
_LETTER = 7  # about, wide
_WIDEST = (WIDTH - 28) // 6  # letters of a line of text, which is less wide
_MOST_MARKERS = 30  # of a line; of more they would hide it


def pictures(figure: Mapping[str, Any]) -> list[Markup]:
  """A figure as SVG, one a panel; none of a matrix, which is a table."""
  if 'bars' in figure:
    return [_bars(figure)]
  lines = figure.get('lines', ())
  panels = dict.fromkeys(line.get('panel', '') for line in lines)
  return [_panel(figure, panel) for panel in panels]


def numbers(figure: Mapping[str, Any], caption: str = '') -> Table:
  """The table behind a figure.

  Raises:
    LookupError: it is of no form that is known.
  """
  caption = caption or figure['title']
  if 'bars' in figure:
    return table(
      caption,
      ('name', 'group', 'value'),
      (
        [bar['label'], bar.get('group', ''), _of_bar(bar)]
        for bar in figure['bars']
      ),
    )
  if 'values' in figure:
    return _matrix(figure, caption)
  return table(
    caption,
    ('panel', 'line', figure['x_label'], figure['y_label']),
    (
      [line.get('panel', ''), line['label'], x, _point(line, i)]
      for line in figure['lines']
      for i, x in enumerate(line['x'])
    ),
  )


def legend(figure: Mapping[str, Any]) -> list[tuple[Markup, str]]:
  """Markers and names, where those in the picture are cut or missing."""
  if 'bars' in figure:
    found = _groups(figure)
    names = [] if found == [''] else found
  else:
    names = list(dict.fromkeys(li['label'] for li in figure.get('lines', ())))
    if all(len(name) <= _LONGEST for name in names):
      names = []
  return [
    (
      Markup(
        '<svg viewBox="-6 -6 12 12" width="14" height="14" aria-hidden="true">'
        '{}</svg>'
      ).format(marker(number, 0, 0)),
      name,
    )
    for number, name in enumerate(names)
  ]


def waterfall(title: str, steps: Sequence[tuple[str, float, float]]) -> Markup:
  """What each of several attacks broke: names, shares before and after it."""
  axis = scale([0, 1], 8, WIDTH - 18, is_rate=True)
  parts = [x_axis(axis, _TOP, _TOP + _ROW * len(steps), '')]
  for number, (name, before, after) in enumerate(steps):
    y = _TOP + _ROW * number
    words = f'{name}: {percent(before)} to {percent(after)}'
    parts.append(
      Markup(
        '<rect class="stands" x="{x:.1f}" y="{y}" width="{stands:.1f}" '
        'height="12"/><rect class="broken" x="{edge:.1f}" y="{y}" '
        'width="{broken:.1f}" height="12" data-tip="{words}"/>'
        '<text x="{x:.1f}" y="{text}">{words}</text>'
      ).format(
        x=axis(0),
        y=y + 15,
        stands=axis(after) - axis(0),
        edge=axis(after),
        broken=max(axis(before) - axis(after), 0),
        text=y + 11,
        words=words,
      )
    )
  words = '; '.join(f'{n} {percent(b)} to {percent(a)}' for n, b, a in steps)
  return drawing(_TOP + _ROW * len(steps) + 30, f'{title}. {words}', parts)


def _panel(figure, panel) -> Markup:
  lines = [li for li in figure['lines'] if li.get('panel', '') == panel]
  unit = _unit(figure)
  names = [_short(line['label']) for line in lines]
  right = WIDTH - 20 - _LETTER * max(map(len, names))
  bottom = max(_HEIGHT - _BOTTOM, _TOP + LINE * len(lines))
  values = [v for li in lines for n in ('y', 'low', 'high') for v in li[n]]
  if unit == '%':  # from 0, and to 1 unless all are much smaller
    known = [v for v in values if is_known(v)]
    values = [0, 1 if max(known, default=1) > 0.5 else max(known)]
  y = scale(values, bottom, _TOP, is_rate=unit == '%')
  at = [v for line in lines for v in line['x']]
  is_radius = figure['x_label'].startswith('eps')
  x = scale([0, *at] if is_radius else at, _LEFT, right)
  parts = [
    x_axis(x, _TOP, bottom, figure['x_label']),
    y_axis(y, _LEFT, right),
  ]
  ends = []
  for number, line in enumerate(lines):
    parts.append(_line(figure, line, number, x, y))
    known = [v for v in line['y'] if is_known(v)]
    ends.append(y(known[-1]) if known else bottom)
  for number, at in enumerate(apart(ends, _TOP + 4, bottom, LINE)):
    parts.append(
      marker(number, right + 9, at)
      + Markup('<text x="{:.1f}" y="{:.1f}">{}</text>').format(
        right + 17, at + 4, names[number]
      )
    )
  if panel:
    name = '<text class="panel" x="{}" y="{:.1f}">{}</text>'
    parts.append(Markup(name).format(_LEFT, _TOP - 6, panel))
  title = ', '.join(part for part in (figure['title'], panel) if part)
  words = '; '.join(_in_words(line, unit) for line in lines)
  axes = f'{figure["y_label"]} against {figure["x_label"]}'
  return drawing(bottom + _BOTTOM, f'{title}: {axes}. {words}', parts)


def _line(figure, line, number, x: Scale, y: Scale) -> Markup:
  """Points, the line that joins them, and the band of their intervals."""
  count = len(line['x'])
  parts, run = [], []
  for i in range(count + 1):
    if i < count and is_known(line['x'][i]) and is_known(line['y'][i]):
      run.append(i)
      continue
    if run and line.get('joined', True):
      parts.append(_band(line, number, run, x, y))
      path = 'M' + 'L'.join(
        f'{x(line["x"][j]):.1f} {y(line["y"][j]):.1f}' for j in run
      )
      dashed = ' dashed' if line.get('dashed') else ''
      parts.append(
        Markup('<path class="c{} line{}" d="{}"/>').format(
          number % COLOURS, dashed, path
        )
      )
    run = []
  if count <= _MOST_MARKERS or not line.get('joined', True):
    for i in range(count):
      if not (is_known(line['x'][i]) and is_known(line['y'][i])):
        continue
      tip = f'{line["label"]}, {figure["x_label"]} {line["x"][i]:.4g}: '
      tip += _text(line, i, _unit(figure))
      parts.append(marker(number, x(line['x'][i]), y(line['y'][i]), tip))
  return Markup('').join(parts)


def _band(line, number, run, x: Scale, y: Scale) -> Markup:
  colour = number % COLOURS
  run = [
    i for i in run if is_known(line['low'][i]) and is_known(line['high'][i])
  ]
  if all(line['low'][i] == line['high'][i] for i in run):
    return Markup()
  if len(run) == 1:  # a band needs two points
    at, i = x(line['x'][run[0]]), run[0]
    whisker = '<path class="c{} whisker" d="M{:.1f} {:.1f}V{:.1f}"/>'
    return Markup(whisker).format(
      colour, at, y(line['low'][i]), y(line['high'][i])
    )
  around = [(i, 'low') for i in run] + [(i, 'high') for i in reversed(run)]
  points = ' '.join(
    f'{x(line["x"][i]):.1f},{y(line[end][i]):.1f}' for i, end in around
  )
  return Markup('<polygon class="c{} band" points="{}"/>').format(
    colour, points
  )


def _bars(figure) -> Markup:
  bars, unit = figure['bars'], _unit(figure)
  groups = _groups(figure)
  values = [b[n] for b in bars for n in ('value', 'low', 'high')]
  values += [v for bar in bars for v in bar.get('dots', ())]
  axis = scale(values, 14, WIDTH - 18, is_rate=unit == '%')
  end = _TOP + _ROW * len(bars)
  parts = [x_axis(axis, _TOP, end, figure['x_label'])]
  texts = [_text_of_bar(bar, unit) for bar in bars]
  whole = [
    ', '.join(n for n in (b['label'], b.get('group')) if n) for b in bars
  ]
  fits = max(map(len, whole), default=0) <= _WIDEST // 2
  for place, (bar, name, text) in enumerate(
    zip(bars, whole, texts, strict=True)
  ):
    number = groups.index(bar.get('group', ''))
    y = _TOP + _ROW * place + 24
    # Where groups do not fit, the legend has them.
    short = _short(name if fits else bar['label'], _WIDEST - len(text) - 2)
    parts.append(
      Markup('<text x="10" y="{}">{}: {}</text>').format(y - 12, short, text)
    )
    for dot in bar.get('dots', ()):
      if is_known(dot):
        parts.append(
          Markup('<circle class="dot" cx="{:.1f}" cy="{}" r="3"/>').format(
            axis(dot), y
          )
        )
    if is_known(bar['low']) and is_known(bar['high']):
      parts.append(
        Markup('<path class="c{} whisker" d="M{:.1f} {y}H{:.1f}"/>').format(
          number % COLOURS, axis(bar['low']), axis(bar['high']), y=y
        )
      )
    if is_known(bar['value']):
      parts.append(marker(number, axis(bar['value']), y, f'{name}: {text}'))
  words = '; '.join(map(' '.join, zip(whole, texts, strict=True)))
  title = f'{figure["title"]}: {figure["x_label"]}. {words}'
  return drawing(end + 34, title, parts)


def _matrix(figure, caption) -> Table:
  return table(
    caption,
    (f'{figure["y_label"]} / {figure["x_label"]}', *figure['columns']),
    (
      [name, *(Cell(percent(v), v, swatch=v) for v in values)]
      for name, values in zip(figure['rows'], figure['values'], strict=True)
    ),
  )


def _groups(figure) -> list[str]:
  return list(dict.fromkeys(bar.get('group', '') for bar in figure['bars']))


def _of_bar(bar) -> Cell:
  return Cell(_text_of_bar(bar, ''), bar['value'], bar['low'], bar['high'])


def _point(line, i) -> Cell:
  text = _text(line, i, '')
  return Cell(text, line['y'][i], line['low'][i], line['high'][i])


def _text_of_bar(bar, unit) -> str:
  return _estimate(bar['value'], bar['low'], bar['high'], unit)


def _text(line, i, unit) -> str:
  return _estimate(line['y'][i], line['low'][i], line['high'][i], unit)


def _estimate(value, low, high, unit) -> str:
  if not is_known(value):
    return '-'
  interval = (low, high) if is_known(low) and is_known(high) else None
  if unit == '%':
    return rate({'value': value, 'interval': interval, 'n': None}).text
  shown, *ends = (written(v, unit, 4) for v in (value, *(interval or ())))
  return f'{shown} [{", ".join(ends)}]' if interval else shown


def _unit(figure) -> str:
  """Of its numbers; results before this field said only whether it was '%'."""
  return figure.get('unit', '%' if figure.get('is_rate', True) else '')


def _in_words(line, unit) -> str:
  known = [i for i, value in enumerate(line['y']) if is_known(value)]
  if not known:
    return f'{line["label"]}: not known'
  ends = dict.fromkeys((known[0], known[-1]))
  points = (f'{_text(line, i, unit)} at {line["x"][i]:.4g}' for i in ends)
  return f'{line["label"]}: {", then ".join(points)}'


def _short(label: str, longest: int = _LONGEST) -> str:
  return label if len(label) <= longest else label[: longest - 1] + '…'
