"""What the sections of a page show: figures, the tables behind them, words."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vmoe_robust.report.page import draw
from vmoe_robust.report.page.reading import READING, USUAL
from vmoe_robust.report.page.runs import Problems, Run
from vmoe_robust.report.page.tables import (
  Cell,
  Table,
  cell,
  of_rows,
  of_values,
  radius,
  rate,
  table,
)

_MOST_POINTS = 200  # of a training curve
_MOST_WATERFALLS = 4  # of a run
# Metrics of training by panel: name, label, whether of the batch of a step.
_CURVES = {
  'accuracy': (
    ('accuracy', 'batch', True),
    ('eval_accuracy', 'held out', False),
    ('adversarial_accuracy', 'batch, attacked', True),
  ),
  'cross entropy': (
    ('cross_entropy', 'batch', True),
    ('eval_loss', 'held out', False),
    ('adversarial_cross_entropy', 'batch, attacked', True),
  ),
}
_MONITOR = 'robust_accuracy/'  # a metric's name, before the radius


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


def accuracy(runs: Sequence[Run]) -> list[Shown]:
  """Accuracy against the radius, a figure a norm and a line a run."""
  found = [run for run in runs if run.is_attack]
  norms = dict.fromkeys(run.results['summary']['norm'] for run in found)
  out = []
  for norm in norms:
    own = [run for run in found if run.results['summary']['norm'] == norm]
    out.append(
      dataclasses.replace(
        of_figure(
          {
            'title': 'Robust accuracy',
            'x_label': 'eps (1/255)' if norm == 'linf' else f'eps ({norm})',
            'y_label': 'accuracy',
            'lines': [_accuracy_line(run, norm) for run in own],
          },
          f'Accuracy against the radius, {norm}',
          'Share of images that the model still gets right; eps 0 is clean. '
          'Bands are 95% intervals. Runs that differ in attack or images are '
          'not comparable by eye: see the comparison.',
        ),
        table=_accuracy_table(own, norm),
      )
    )
  return out


def all_numbers(runs: Sequence[Run]) -> list[Table]:
  """Every number of the runs that attack."""
  return [
    of_rows(f'All numbers of {run.name}', run.results['rows'])
    for run in runs
    if run.is_attack
  ]


def waterfalls(runs: Sequence[Run]) -> list[Shown]:
  """What each attack of an ensemble broke."""
  out = []
  for run in runs:
    rows = [r for r in run.results['rows'] if len(r.get('per_attack', {})) > 1]
    for row in rows[:_MOST_WATERFALLS]:
      at = radius(row['norm'], row['eps'])
      caption = f'What broke the images: {run.name}, {at} {row["norm"]}'
      shares = [run.results['summary']['clean_accuracy']]
      shares += [one['robust_after'] for one in row['per_attack'].values()]
      values = [share['value'] for share in shares]
      if None in values:
        continue
      steps = list(zip(row['per_attack'], values, values[1:], strict=False))
      out.append(
        Shown(
          caption,
          [draw.waterfall(caption, steps)],
          [],
          _stages(caption, row),
          'Attacks run in this order on what still stands, so that a later '
          'one may be as strong as an earlier one and yet break little. '
          'Light: what stands after it; dark: what it broke.',
        )
      )
  return out


def training(runs: Sequence[Run]) -> list[Shown]:
  """Accuracy and loss over the steps of training."""
  out = []
  for run in runs:
    lines = [
      line
      for panel, curves in _CURVES.items()
      for line in _curves(run.metrics, panel, curves)
    ]
    if not lines:
      continue
    out.append(
      of_figure(
        {
          'title': run.name,
          'x_label': 'step',
          'y_label': 'value',
          'lines': lines,
          'is_rate': False,
        },
        f'Training of {run.name}',
        'Dashed lines are of the batch of one step, before it is learned from; '
        'solid ones of held-out images. A robust accuracy that falls while the '
        'clean one rises is catastrophic overfitting. At most '
        f'{_MOST_POINTS} points a line; metrics.jsonl has all.',
      )
    )
  return out


def routing(runs: Sequence[Run]) -> list[Shown]:
  """How an attack changed each block's routing, and the load of experts."""
  out = []
  for run in runs:
    rows = [row for row in run.results['rows'] if row.get('routing')]
    if not run.is_attack or not rows:
      continue
    blocks = list(rows[0]['routing'])
    norm = rows[0]['norm']
    times = 255 if norm == 'linf' else 1
    lines = [
      _line_of(
        _block(block),
        [times * row['eps'] for row in rows],
        [row['routing'][block]['change'] for row in rows],
      )
      for block in blocks
    ]
    out.append(
      of_figure(
        {
          'title': f'Routing of {run.name}',
          'x_label': 'eps (1/255)' if norm == 'linf' else f'eps ({norm})',
          'y_label': 'changed',
          'lines': lines,
        },
        f'Routing change under attack, {run.name}',
        '1 - IoU of the experts that a token selects, clean and attacked, mean '
        'over tokens and images. It does not say whether the change did harm.',
      )
    )
    out.append(_load(run, rows))
  return out


def studies(
  runs: Sequence[Run], problems: Problems
) -> list[tuple[Run, list[Shown], list[Table]]]:
  """Of each study: its figures and its numbers."""
  out = []
  for run in runs:
    if run.mode != 'study':
      continue
    shown = [
      problems.guard(
        f'figure {about.get("name")!r} of {run.name}',
        functools.partial(_of_file, run, about),
      )
      for about in run.results['files'].get('figures', ())
      if not str(about.get('data', '')).endswith('.npz')
    ]
    tables = [of_rows(f'All numbers of {run.name}', run.results['rows'])]
    if run.results['summary']:
      caption = f'Summary of {run.name}'
      tables.insert(0, of_values(caption, run.results['summary']))
    out.append((run, [one for one in shown if one is not None], tables))
  return out


def _of_file(run: Run, about: Mapping[str, str]) -> Shown:
  """A figure of a study, from its data file."""
  reading = READING.get(run.results['asked']['name'], USUAL)
  return of_figure(run.figure(about), f'{run.name}: {about["title"]}', reading)


def _accuracy_line(run: Run, norm: str) -> dict[str, Any]:
  summary, rows = run.results['summary'], run.results['rows']
  rows = sorted(rows, key=lambda row: row['eps'])
  times = 255 if norm == 'linf' else 1
  return _line_of(
    f'{run.name} ({summary["attack"]})',
    [0, *(times * row['eps'] for row in rows)],
    [summary['clean_accuracy'], *(row['robust_accuracy'] for row in rows)],
  )


def _line_of(label, x, estimates) -> dict[str, Any]:
  ends = [one['interval'] or (None, None) for one in estimates]
  return {
    'label': label,
    'x': x,
    'y': [one['value'] for one in estimates],
    'low': [low for low, _ in ends],
    'high': [high for _, high in ends],
  }


def _accuracy_table(runs: Sequence[Run], norm: str) -> Table:
  rows = []
  for run in runs:
    summary = run.results['summary']
    clean = summary['clean_accuracy']
    start = [run.name, summary['attack']]
    rows.append(
      [*start, Cell('clean', 0), clean['n'], rate(clean)]
      + [cell(summary.get('clean_loss', '')), Cell('-')]
    )
    for row in run.results['rows']:
      rows.append(
        [*start, Cell(radius(norm, row['eps']), row['eps'])]
        + [row['robust_accuracy']['n'], rate(row['robust_accuracy'])]
        + [cell(row.get('loss_after', '')), rate(row.get('prediction_changes'))]
      )
  headers = ('run', 'attack', 'eps', 'images', 'accuracy', 'loss')
  return table(f'Robust accuracy, {norm}', (*headers, 'changed class'), rows)


def _stages(caption: str, row: Mapping[str, Any]) -> Table:
  return table(
    caption,
    ('attack', 'accuracy after it', 'seconds'),
    (
      [name, rate(stage['robust_after']), stage.get('seconds')]
      for name, stage in row['per_attack'].items()
    ),
  )


def _curves(metrics, panel: str, curves) -> list[dict[str, Any]]:
  if panel == 'accuracy':
    found = (name for line in metrics for name in line)
    curves = [
      *curves,
      *(
        (name, f'held out, eps {float(name.removeprefix(_MONITOR)):.3g}', False)
        for name in dict.fromkeys(found)
        if name.startswith(_MONITOR)
      ),
    ]
  lines = []
  for name, label, of_batch in curves:
    points = [(m['step'], m[name]) for m in metrics if name in m]
    every = -(-len(points) // _MOST_POINTS) or 1
    points = points[::-1][::every][::-1]  # the last one is among them
    if points:
      x, y = zip(*points, strict=True)
      lines.append(
        {'label': label, 'x': x, 'y': y, 'low': y, 'high': y}
        | {'panel': panel, 'dashed': of_batch}
      )
  return lines


def _load(run: Run, rows) -> Shown:
  """Tokens of each expert, before and after: shades of a table."""
  lines, most = [], 0
  rows = [rows[i] for i in sorted({0, len(rows) // 2, len(rows) - 1})]
  for row in rows:
    at = radius(row['norm'], row['eps'])
    for block, found in row['routing'].items():
      for when in ('before', 'after'):
        load = found[f'load_{when}']
        if when == 'before' and row is not rows[0]:
          continue  # the same at each radius
        most = max(most, len(load))
        peak = max(load, default=0) or 1
        cells = [Cell(f'{v:,}', v, swatch=v / peak) for v in load]
        lines.append(
          [_block(block), 'clean' if when == 'before' else at, *cells]
        )
  lines = [line + ['-'] * (most + 2 - len(line)) for line in lines]
  caption = f'Load of experts, {run.name}'
  headers = ('block', 'eps', *(f'expert {i}' for i in range(most)))
  return Shown(
    caption,
    [],
    [],
    table(caption, headers, lines),
    'Tokens that each expert serves, all images together; darker is more, '
    'within a line. Of many radii the first, the middle and the last.',
  )


def _block(name: str) -> str:
  return name.replace('encoderblock_', 'block ')
