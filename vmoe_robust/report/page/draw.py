"""Figures of a page as SVG, from the same numbers as `report/figures.py`.

Drawn by hand: some kilobytes a figure, colours that follow light and dark mode,
and text that stays text. A figure is a dictionary of the form of its data file.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vmoe_robust.report.page.scales import Scale, scale
from vmoe_robust.report.page.tables import Cell, Table, table
from vmoe_robust.report.table import percent

_WIDTH, _HEIGHT = 420, 270  # in units of the drawing, which fits its column
_LEFT, _TOP, _BOTTOM = 40, 18, 38
_ROW = 34  # of a plot of bars
_LONGEST = 20  # letters of a label beside its line
_LETTER = 6.5  # about, wide
_MOST_MARKERS = 30  # of a line; of more they would hide it
_LINE = 12  # of text, high
# Told apart without colours: one a line, again after seven.
_MARKERS = (
  'M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0',
  'M-3.6 -3.6h7.2v7.2h-7.2z',
  'M0 -5L5 0L0 5L-5 0z',
  'M0 -4.6L4.6 3.6H-4.6z',
  'M0 4.6L4.6 -3.6H-4.6z',
  'M-1.6 -4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z',
  'M-4.4 -4.4L4.4 -4.4L0 0L4.4 4.4H-4.4L0 0z',
)
_COLOURS = 6  # classes c0 to c5 of the style sheet


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
    headers = ('name', *(['group'] if _groups(figure) != [''] else []), 'value')
    return table(
      caption,
      headers,
      (
        [bar['label'], bar.get('group', ''), _of_bar(bar)]
        if len(headers) == 3
        else [bar['label'], _of_bar(bar)]
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
      ).format(_marker(number, 0, 0)),
      name,
    )
    for number, name in enumerate(names)
  ]


def waterfall(title: str, steps: Sequence[tuple[str, float, float]]) -> Markup:
  """What each of several attacks broke: names, shares before and after it."""
  axis = scale([0, 1], 8, _WIDTH - 18, is_rate=True)
  parts = [_x_axis(axis, _TOP, _TOP + _ROW * len(steps), '')]
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
  return _svg(_TOP + _ROW * len(steps) + 30, f'{title}. {words}', parts)


def _panel(figure, panel) -> Markup:
  lines = [li for li in figure['lines'] if li.get('panel', '') == panel]
  is_rate = figure.get('is_rate', True)
  names = [_short(line['label']) for line in lines]
  right = _WIDTH - 20 - _LETTER * max(map(len, names))
  bottom = max(_HEIGHT - _BOTTOM, _TOP + _LINE * len(lines))
  values = [v for li in lines for n in ('y', 'low', 'high') for v in li[n]]
  if is_rate:  # from 0, and to 1 unless all are much smaller
    known = [v for v in values if _known(v)]
    values = [0, 1 if max(known, default=1) > 0.5 else max(known)]
  y = scale(values, bottom, _TOP, is_rate=is_rate)
  at = [v for line in lines for v in line['x']]
  is_radius = figure['x_label'].startswith('eps')
  x = scale([0, *at] if is_radius else at, _LEFT, right)
  parts = [
    _x_axis(x, _TOP, bottom, figure['x_label']),
    _y_axis(y, _LEFT, right),
  ]
  ends = []
  for number, line in enumerate(lines):
    parts.append(_line(figure, line, number, x, y))
    known = [v for v in line['y'] if _known(v)]
    ends.append(y(known[-1]) if known else bottom)
  for number, at in enumerate(_apart(ends, _TOP + 4, bottom)):
    parts.append(
      _marker(number, right + 9, at)
      + Markup('<text x="{:.1f}" y="{:.1f}">{}</text>').format(
        right + 17, at + 4, names[number]
      )
    )
  if panel:
    name = '<text class="panel" x="{}" y="{:.1f}">{}</text>'
    parts.append(Markup(name).format(_LEFT, _TOP - 6, panel))
  title = ', '.join(part for part in (figure['title'], panel) if part)
  words = '; '.join(_in_words(line, is_rate) for line in lines)
  axes = f'{figure["y_label"]} against {figure["x_label"]}'
  return _svg(bottom + _BOTTOM, f'{title}: {axes}. {words}', parts)


def _line(figure, line, number, x: Scale, y: Scale) -> Markup:
  """Points, the line that joins them, and the band of their intervals."""
  count = len(line['x'])
  parts, run = [], []
  for i in range(count + 1):
    if i < count and _known(line['x'][i]) and _known(line['y'][i]):
      run.append(i)
      continue
    if run:
      parts.append(_band(line, number, run, x, y))
      path = 'M' + 'L'.join(
        f'{x(line["x"][j]):.1f} {y(line["y"][j]):.1f}' for j in run
      )
      dashed = ' dashed' if line.get('dashed') else ''
      parts.append(
        Markup('<path class="c{} line{}" d="{}"/>').format(
          number % _COLOURS, dashed, path
        )
      )
    run = []
  if count <= _MOST_MARKERS:
    for i in range(count):
      if not (_known(line['x'][i]) and _known(line['y'][i])):
        continue
      tip = f'{line["label"]}, {figure["x_label"]} {line["x"][i]:.4g}: '
      tip += _text(line, i, figure.get('is_rate', True))
      parts.append(_marker(number, x(line['x'][i]), y(line['y'][i]), tip))
  return Markup('').join(parts)


def _band(line, number, run, x: Scale, y: Scale) -> Markup:
  colour = number % _COLOURS
  run = [i for i in run if _known(line['low'][i]) and _known(line['high'][i])]
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
  bars, is_rate = figure['bars'], figure.get('is_rate', True)
  groups = _groups(figure)
  values = [b[n] for b in bars for n in ('value', 'low', 'high')]
  values += [v for bar in bars for v in bar.get('dots', ())]
  axis = scale(values, 14, _WIDTH - 18, is_rate=is_rate)
  end = _TOP + _ROW * len(bars)
  parts = [_x_axis(axis, _TOP, end, figure['x_label'])]
  for place, bar in enumerate(bars):
    number = groups.index(bar.get('group', ''))
    y = _TOP + _ROW * place + 24
    name = ', '.join(n for n in (bar['label'], bar.get('group')) if n)
    shown = f'{name}: {_text_of_bar(bar, is_rate)}'
    parts.append(Markup('<text x="10" y="{}">{}</text>').format(y - 12, shown))
    for dot in bar.get('dots', ()):
      if _known(dot):
        parts.append(
          Markup('<circle class="dot" cx="{:.1f}" cy="{}" r="3"/>').format(
            axis(dot), y
          )
        )
    if _known(bar['low']) and _known(bar['high']):
      parts.append(
        Markup('<path class="c{} whisker" d="M{:.1f} {y}H{:.1f}"/>').format(
          number % _COLOURS, axis(bar['low']), axis(bar['high']), y=y
        )
      )
    if _known(bar['value']):
      parts.append(_marker(number, axis(bar['value']), y, shown))
  words = '; '.join(f'{b["label"]} {_text_of_bar(b, is_rate)}' for b in bars)
  title = f'{figure["title"]}: {figure["x_label"]}. {words}'
  return _svg(end + 34, title, parts)


def _matrix(figure, caption) -> Table:
  return table(
    caption,
    (f'{figure["y_label"]} / {figure["x_label"]}', *figure['columns']),
    (
      [name, *(Cell(percent(v), v, swatch=v) for v in values)]
      for name, values in zip(figure['rows'], figure['values'], strict=True)
    ),
  )


def _svg(height: float, words: str, parts: Sequence[Markup]) -> Markup:
  return Markup(
    '<svg class="plot" role="img" aria-label="{}" viewBox="0 0 {} {:.0f}">{}'
    '</svg>'
  ).format(words, _WIDTH, height, Markup('').join(parts))


def _x_axis(x: Scale, top: float, bottom: float, name: str) -> Markup:
  parts = [
    Markup(
      '<path class="grid" d="M{at:.1f} {top:.1f}V{bottom:.1f}"/><text '
      'class="middle" x="{at:.1f}" y="{below:.1f}">{text}</text>'
    ).format(at=x(v), top=top, bottom=bottom, below=bottom + 14, text=text)
    for v, text in x.ticks
  ]
  parts.append(
    Markup('<text class="middle" x="{:.1f}" y="{:.1f}">{}</text>').format(
      (x.begin + x.end) / 2, bottom + 29, name
    )
  )
  return Markup('').join(parts)


def _y_axis(y: Scale, left: float, right: float) -> Markup:
  return Markup('').join(
    Markup(
      '<path class="grid" d="M{left:.1f} {at:.1f}H{right:.1f}"/><text '
      'class="end" x="{text_at:.1f}" y="{text_y:.1f}">{text}</text>'
    ).format(
      left=left,
      right=right,
      at=y(v),
      text_at=left - 5,
      text_y=y(v) + 4,
      text=text,
    )  # fmt: skip
    for v, text in y.ticks
  )


def _marker(number: int, x: float, y: float, tip: str = '') -> Markup:
  more = Markup(' data-tip="{}"').format(tip) if tip else ''
  return Markup(
    '<path class="c{} marker" transform="translate({:.1f} {:.1f})" d="{}"{}/>'
  ).format(number % _COLOURS, x, y, _MARKERS[number % len(_MARKERS)], more)


def _apart(places: list[float], low: float, high: float) -> list[float]:
  """Places at least a line of text apart, as near as can be to those given."""
  order = sorted(range(len(places)), key=places.__getitem__)
  out, last = list(places), low - _LINE
  for i in order:
    out[i] = last = max(places[i], last + _LINE)
  above = high + _LINE
  for i in reversed(order):
    out[i] = above = min(out[i], above - _LINE)
  return out


def _groups(figure) -> list[str]:
  return list(dict.fromkeys(bar.get('group', '') for bar in figure['bars']))


def _of_bar(bar) -> Cell:
  return Cell(_text_of_bar(bar, False), bar['value'], bar['low'], bar['high'])


def _point(line, i) -> Cell:
  text = _text(line, i, False)
  return Cell(text, line['y'][i], line['low'][i], line['high'][i])


def _text_of_bar(bar, is_rate) -> str:
  return _estimate(bar['value'], bar['low'], bar['high'], is_rate)


def _text(line, i, is_rate) -> str:
  return _estimate(line['y'][i], line['low'][i], line['high'][i], is_rate)


def _estimate(value, low, high, is_rate) -> str:
  if not _known(value):
    return '-'
  times, unit = (100, '%') if is_rate else (1, '')
  shown = f'{value * times:.4g}{unit}'
  if not (_known(low) and _known(high)) or low == high == value:
    return shown
  return f'{shown} [{low * times:.4g}, {high * times:.4g}]'


def _in_words(line, is_rate) -> str:
  known = [i for i, value in enumerate(line['y']) if _known(value)]
  if not known:
    return f'{line["label"]}: not known'
  ends = dict.fromkeys((known[0], known[-1]))
  points = (f'{_text(line, i, is_rate)} at {line["x"][i]:.4g}' for i in ends)
  return f'{line["label"]}: {", then ".join(points)}'


def _short(label: str) -> str:
  return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + '…'


def _known(value) -> bool:
  return value is not None and math.isfinite(value)
