"""What an attack did, as a page shows it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vmoe_robust.report.page import draw, verdict
from vmoe_robust.report.page.runs import Run
from vmoe_robust.report.page.shown import Shown, line_of, of_figure
from vmoe_robust.report.page.tables import (
  Cell,
  Table,
  cell,
  of_rows,
  rate,
  table,
)
from vmoe_robust.report.table import radius, radius_axis

_MOST_WATERFALLS = 4  # of a run
_MOST_LINES = 12  # of a figure; more runs are bars, at one radius
_LINES = (
  'Share of images that the model still gets right; eps 0 is clean. Bands are '
  '95% intervals. Runs that differ in attack or images are not comparable by '
  'eye: see the comparison.'
)
_BARS = (
  'Share of images that the model still gets right, with 95% intervals, at the '
  'radius that most of these runs have; the table has all. Runs that differ in '
  'attack or images are not comparable by eye: see the comparison.'
)


def accuracy(runs: Sequence[Run]) -> list[Shown]:
  """Accuracy against the radius, a figure a norm and a line a run.

  Of more runs than can be told apart, it is a bar a run, at one radius.
  """
  found = [run for run in runs if run.is_attack]
  norms = dict.fromkeys(run.results['summary']['norm'] for run in found)
  out = []
  for norm in norms:
    own = [run for run in found if run.results['summary']['norm'] == norm]
    attacks = {run.results['summary']['attack'] for run in own}
    alike = f', {attacks.pop()}' if len(attacks) == 1 else ''
    make = _accuracy_lines if len(own) <= _MOST_LINES else _accuracy_bars
    shown = make(own, norm, alike)
    out.append(dataclasses.replace(shown, table=_accuracy_table(own, norm)))
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


def routing(runs: Sequence[Run]) -> list[Shown]:
  """How an attack changed each block's routing, and the load of experts."""
  out = []
  for run in runs:
    rows = [row for row in run.results['rows'] if row.get('routing')]
    rows.sort(key=lambda row: row['eps'])
    if not run.is_attack or not rows:
      continue
    blocks = list(rows[0]['routing'])
    times, x_label = radius_axis(rows[0]['norm'])
    lines = [
      line_of(
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
          'x_label': x_label,
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


def _accuracy_lines(runs: Sequence[Run], norm: str, alike: str) -> Shown:
  _, x_label = radius_axis(norm)
  figure = {
    'title': 'Robust accuracy',
    'x_label': x_label,
    'y_label': 'accuracy',
    'lines': [_accuracy_line(run, norm, alike) for run in runs],
  }
  return of_figure(
    figure, f'Accuracy against the radius, {norm}{alike}', _LINES
  )


def _accuracy_bars(runs: Sequence[Run], norm: str, alike: str) -> Shown:
  at, bars = verdict.radii(runs)[norm], []
  for run in runs:
    for row in run.results['rows']:
      if radius(norm, row['eps']) != at:
        continue
      found = row['robust_accuracy']
      low, high = found['interval'] or (None, None)
      group = '' if alike else row['attack']
      bar = {'label': run.name, 'group': group, 'value': found['value']}
      bars.append(bar | {'low': low, 'high': high})
  figure = {'title': 'Robust accuracy', 'x_label': 'accuracy', 'bars': bars}
  return of_figure(figure, f'Accuracy at {norm} {at}{alike}', _BARS)


def _accuracy_line(run: Run, norm: str, alike: str) -> dict[str, Any]:
  summary, rows = run.results['summary'], run.results['rows']
  rows = sorted(rows, key=lambda row: row['eps'])
  times, _ = radius_axis(norm)
  return line_of(
    run.name if alike else f'{run.name} ({summary["attack"]})',
    [0, *(times * row['eps'] for row in rows)],
    [summary['clean_accuracy'], *(row['robust_accuracy'] for row in rows)],
  )


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
