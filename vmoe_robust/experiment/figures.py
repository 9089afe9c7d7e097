"""The figures of an experiment: accuracies of runs, and their differences."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from vmoe_robust.experiment.accuracies import clean
from vmoe_robust.report.figures import Bar, BarPlot, Line, LinePlot
from vmoe_robust.report.table import radius_axis
from vmoe_robust.report.verdicts import CLEAN

# Conditions of an attack that have a figure each; more are a line a run.
_MOST_FIGURES = 3


def figures(
  accuracies: Sequence[Mapping],
  comparisons: Sequence[Mapping],
  measures: Sequence[Mapping] = (),
  relations: Sequence[Mapping] = (),
) -> list[BarPlot | LinePlot]:
  """Accuracies of runs, differences of pairs, and what studies say of seeds.

  Args:
    accuracies: of `accuracies`.
    comparisons: of `comparing.compare`.
    measures: of `measures.measures`.
    relations: of `measures.relations`.
  """
  by_attack = lambda row: row['attack']
  made: list[BarPlot | LinePlot] = []
  for attack, rows in itertools.groupby(accuracies, by_attack):
    made += _of_attack(attack, list(rows))
  if accuracies:
    made.append(_bars('accuracy_clean', CLEAN, [*clean(accuracies).values()]))
  compared = [row for row in comparisons if row['difference'] is not None]
  for attack in dict.fromkeys(map(by_attack, compared)):
    made.append(
      _differences(attack, [r for r in compared if r['attack'] == attack])
    )
  for name in dict.fromkeys(row['measure'] for row in measures):
    made.append(_measure([r for r in measures if r['measure'] == name]))
  return made + [_relation(row) for row in relations]


def _of_attack(
  attack: str, rows: Sequence[Mapping]
) -> Iterator[BarPlot | LinePlot]:
  conditions = dict.fromkeys(row['condition'] for row in rows)
  del conditions[CLEAN]
  if len(conditions) > _MOST_FIGURES:
    yield _sweep(attack, rows)
    return
  for condition in reversed(conditions):  # the largest radius first
    own = [row for row in rows if row['condition'] == condition]
    yield _bars(_name(attack, own[0]), _shown(attack, condition), own)


def _bars(name: str, shown: str, rows: Sequence[Mapping]) -> BarPlot:
  seeds, images = _counts(rows)
  return BarPlot(
    name=name,
    title=f'Accuracy, {shown}, {images} images, {seeds}',
    x_label='accuracy',
    bars=[
      Bar.of(
        row['run'],
        row['accuracy'],
        dots=_dots([one['accuracy'] for one in row['seeds']]),
      )
      for row in rows
    ],
  )


def _sweep(attack: str, rows: Sequence[Mapping]) -> LinePlot:
  times, x_label = radius_axis(rows[0]['norm'])
  seeds, images = _counts(rows)
  lines = []
  for run in dict.fromkeys(row['run'] for row in rows):
    own = [row for row in rows if row['run'] == run]
    at = [times * row['eps'] for row in own]
    lines.append(Line.of(run, at, [row['accuracy'] for row in own]))
  return LinePlot(
    name=f'accuracy_{attack}',
    title=f'Accuracy under {attack}, {images} images, {seeds}',
    x_label=x_label,
    y_label='accuracy',
    lines=lines,
  )


def _differences(attack: str, rows: Sequence[Mapping]) -> BarPlot:
  """Of each pair, at the last condition of the attack."""
  last = {(row['first'], row['second']): row for row in rows}
  condition = list(last.values())[-1]['condition']
  bars = [
    Bar.of(
      f'{first} - {second}',
      row['difference'],
      # Intervals of both kinds are not of one width.
      'one seed, over images' if len(row['seeds']) == 1 else 'over seeds',
      dots=_dots([one['difference'] for one in row['seeds']], 100),
      times=100,
    )
    for (first, second), row in last.items()
    if row['condition'] == condition
  ]
  return BarPlot(
    name=f'difference_{attack}',
    title=f'Difference of accuracies, {_shown(attack, condition)}',
    x_label='percentage points',
    bars=bars,
    unit='points',
  )


def _measure(rows: Sequence[Mapping]) -> BarPlot:
  """What a study says of each run, in the mean over seeds."""
  name, unit = rows[0]['measure'], rows[0]['unit']
  times = 100 if unit == 'points' else 1
  return BarPlot(
    name=f'measure_{name}',
    title=f'{name}, {_seeds(rows)}',
    x_label=name + (', percentage points' if unit == 'points' else ''),
    bars=[
      Bar.of(
        row['run'],
        row['mean'],
        dots=_dots([one['number'] for one in row['seeds']], times),
        times=times,
      )
      for row in rows
    ],
    unit=unit,
  )


def _relation(row: Mapping) -> LinePlot:
  """What a study measured against accuracy, each training a point."""
  name, unit = row['measure'], row['unit']
  times = 100 if unit else 1
  lines = []
  for run in dict.fromkeys(one['run'] for one in row['trainings']):
    own = [one for one in row['trainings'] if one['run'] == run]
    own.sort(key=lambda one: one['number'])
    unknown = [float('nan')] * len(own)
    lines.append(
      Line(
        run,
        [times * one['number'] for one in own],
        [100 * one['accuracy'] for one in own],
        unknown,
        unknown,
        joined=False,
      )
    )
  return LinePlot(
    name=f'relation_{name}',
    title=f'{name} and accuracy, {row["correlation"]["n"]} trainings',
    x_label=name + (f', {unit}' if unit else ''),
    y_label=f'accuracy under {row["condition"]} (%)',
    lines=lines,
    unit='',
    note="Each point is a training. Spearman's rank correlation: "
    f'{_spearman(row["correlation"])} of all, {_spearman(row["within"])} '
    'within runs.',
  )


def _spearman(correlation: Mapping) -> str:
  if correlation['value'] is None:
    return 'not known'
  return f'{correlation["value"]:.2f} (p {correlation["p"]:.2g})'


def _shown(attack: str, condition: str) -> str:
  """A condition, with the attack's name in the experiment where that differs.

  Two attacks may differ in their steps alone, and be called alike.
  """
  alike = attack == condition or condition.startswith(f'{attack} ')
  return condition + ('' if alike else f' ({attack})')


def _name(attack: str, row: Mapping) -> str:
  times, unit = (255, '_255') if row['norm'] == 'linf' else (1, '')
  radius = f'{times * row["eps"]:.4g}'.replace('.', 'p')
  return f'accuracy_{attack}_{row["norm"]}_{radius}{unit}'


def _dots(seeds: Sequence[Mapping], times: float = 1) -> list[float]:
  """Each of several seeds; one is the point itself."""
  known = [times * one['value'] for one in seeds if one['value'] is not None]
  return known if len(seeds) > 1 else []


def _counts(rows: Sequence[Mapping]) -> tuple[str, str]:
  """How many seeds and images, in words."""
  images = {one['accuracy']['n'] for row in rows for one in row['seeds']}
  shown = f'{min(images)}' if len(images) == 1 else f'{min(images)} or more'
  return _seeds(rows), shown


def _seeds(rows: Sequence[Mapping]) -> str:
  """How many each row has, in words."""
  seeds = {len(row['seeds']) for row in rows}
  most, least = max(seeds), min(seeds)
  counted = f'{most}' if most == least else f'{least} to {most}'
  return f'{counted} {"seed" if most == 1 else "seeds"}'
