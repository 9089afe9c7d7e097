"""What an experiment found as Markdown, for a page of documentation."""

import collections
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from vmoe_robust.experiment import comparing
from vmoe_robust.experiment.accuracies import Found, clean, images
from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import FINISHED, State
from vmoe_robust.experiment.usage import Usage
from vmoe_robust.report.results import Results
from vmoe_robust.report.table import percent, seeds_of, some_of, written
from vmoe_robust.report.verdicts import CLEAN

MARKDOWN = 'results.md'  # in the experiment's folder
# Of a sweep of radii, how many a table has.
_MOST = 5


def markdown(
  about: Mapping[str, str],
  parts: Sequence[Part],
  states: Mapping[str, State],
  found: Sequence[Found],
  usage: Mapping[str, Usage],
  accuracies: Sequence[Mapping],
  comparisons: Sequence[Mapping],
  measures: Sequence[Mapping] = (),
  relations: Sequence[Mapping] = (),
) -> str:
  """Accuracies, comparisons, studies and what they cost, as tables.

  Args:
    about: 'name' and 'command' of the experiment.
    parts: all of them.
    states: of all, by name.
    found: of `accuracies.attacked`.
    usage: what they took, by name of the part.
    accuracies: of `accuracies.accuracies`.
    comparisons: of `comparing.compare`.
    measures: of `measures.measures`.
    relations: of `measures.relations`.
  """
  done = [part for part in parts if states[part.name].name == FINISHED]
  headers, lines = comparing.cells(comparisons)
  sections = [
    f'# {about["name"]}\n\n    {about["command"]}',
    _where([results for _, results in found]),
    '## Accuracy',
    "Mean over seeds with 95% intervals (Student's t; of one seed Wilson's "
    f'over images).{_images(accuracies)}',
    _accuracies(accuracies),
  ]
  if accuracies:
    sections += ['## Accuracy of each seed', _of_seeds(accuracies)]
  used = {part.name for part, _ in found}
  lost = [p.name for p in done if p.mode == 'attack' and p.name not in used]
  if lost:
    sections.append(
      'Left out, for their files are damaged, or of other examples than those '
      f'of other seeds: {", ".join(lost)}.'
    )
  if warnings := [(part, w) for part, r in found for w in r['warnings']]:
    sections += [
      '## Warnings',
      '\n'.join(f'- {part.name}: {text}' for part, text in warnings),
    ]
  if lines:
    sections += [
      '## Pairs of runs',
      'The same images, seed by seed; differences are in percentage points. '
      "Interval: over seeds, of one seed the bootstrap's over images. p: "
      "McNemar's exact test of each seed, not corrected for the number of "
      'lines.',
      _table(headers, lines),
    ]
  if notes := comparing.left_out(comparisons):
    sections += [
      'Not compared:' if lines else '## Pairs of runs\n\nNot compared:',
      '\n'.join(f'- {note}' for note in notes),
    ]
  if measures:
    sections += [
      '## Studies',
      "Mean over seeds with Student's 95% intervals; of one seed the study's "
      'own, over images.',
      _measures(measures),
    ]
  if relations:
    sections += [
      '## Do they go with robustness?',
      "Spearman's rank correlation with the accuracy, over trainings: of all "
      'runs as if they were one, within runs (ranked in their run; without '
      'runs in which either is the same in all), and of each run of several '
      'trainings. Interval: by Bonett and Wright (2000). p: of pairings drawn '
      'anew, not corrected for the number of lines.',
      _relations(relations),
    ]
    sections += [
      f'Left out of {row["measure"]}, for they were not attacked, or the '
      f'number is not known: {lost}.'
      for row in relations
      if (
        lost := ', '.join(f'{m["run"]}_seed{m["seed"]}' for m in row['missing'])
      )
    ]
  sections += [
    '## What it took',
    'Means over seeds, in CPU-seconds; memory is the most of any part, beside '
    'that of devices. Parts that are not finished are left out.',
    _usage(done, usage, _sizes(found)),
  ]
  return '\n\n'.join(sections) + '\n'


def _where(results: Sequence[Results]) -> str:
  """Software and hardware; where results differ, how many have each value."""
  alike, others = [], []
  for group in ('software', 'hardware'):
    for name in dict.fromkeys(name for r in results for name in r[group]):
      values = [str(r[group].get(name, 'not known')) for r in results]
      counts = collections.Counter(values)
      if len(counts) == 1:
        alike.append(f'{name} {values[0]}')
      else:
        each = ', '.join(f'{v} in {n}' for v, n in counts.most_common())
        others.append(f'- {name}: {each} of {len(values)} results')
  said = [f'{", ".join(alike)}.'] if alike else []
  said += ['\n'.join(others)] if others else []
  return '\n\n'.join(said) or 'Nothing is finished yet.'


def _images(rows: Sequence[Mapping]) -> str:
  """On how many images the rows are; '' if on different numbers."""
  numbers = {images(row) for row in rows}
  return f' On {numbers.pop():,} images.' if len(numbers) == 1 else ''


def _accuracies(rows: Sequence[Mapping]) -> str:
  """A line a run, a column a condition."""
  unattacked = clean(rows)
  cells = {(row['run'], row['attack'], row['condition']): row for row in rows}
  columns = _columns(rows)
  names = [condition for _, condition in columns]
  headers = [  # of two attacks that are called alike, which one it is
    f'{name} ({attack})' if names.count(name) > 1 else name
    for name, (attack, _) in zip(names, columns, strict=True)
  ]
  alike, lines = bool(_images(rows)), []
  for run in dict.fromkeys(row['run'] for row in rows):
    found = [unattacked.get(run)]
    found += [cells.get((run, *column)) for column in columns]
    lines.append(
      [run, *(_estimate(row, alike) if row else '' for row in found)]
    )
  return _table(('run', CLEAN, *headers), lines)


def _of_seeds(rows: Sequence[Mapping]) -> str:
  """A line a run and condition, those that `_accuracies` has."""
  unattacked, columns = clean(rows), _columns(rows)
  lines = []
  for run in dict.fromkeys(row['run'] for row in rows):
    own = {(r['attack'], r['condition']): r for r in rows if r['run'] == run}
    found = [unattacked.get(run), *(own.get(column) for column in columns)]
    lines += [
      [run, row['attack'], row['condition'], seeds_of(row)]
      + [', '.join(percent(s['accuracy']['value']) for s in row['seeds'])]
      for row in found
      if row
    ]
  headers = ('run', 'attack', 'condition', 'seeds', 'accuracy of each')
  return _table(headers, lines)


def _columns(rows: Sequence[Mapping]) -> list[tuple[str, str]]:
  """Attacks and conditions; of a sweep some, with its last."""
  columns = []
  for attack in dict.fromkeys(row['attack'] for row in rows):
    own = [row['condition'] for row in rows if row['attack'] == attack]
    names = [name for name in dict.fromkeys(own) if name != CLEAN]
    columns += [(attack, name) for name in some_of(names, _MOST)]
  return columns


def _estimate(row: Mapping, alike: bool) -> str:
  accuracy = row['accuracy']
  text = percent(accuracy['value'])
  if accuracy['interval']:
    low, high = accuracy['interval']
    text += f' ({100 * low:.1f} to {100 * high:.1f})'
  text += f', {accuracy["n"]} seeds' if accuracy['n'] > 1 else ''
  return text if alike else f'{text}, {images(row):,} images'


def _measures(rows: Sequence[Mapping]) -> str:
  lines = []
  for row in rows:
    shown = functools.partial(_number, unit=row['unit'])
    mean = row['mean']
    interval = ' to '.join(map(shown, mean['interval'] or ())) or '-'
    each = ', '.join(shown(one['number']['value']) for one in row['seeds'])
    lines.append(
      [row['measure'], row['run'], shown(mean['value']), interval]
      + [seeds_of(row), each]
    )
  headers = ('measure', 'run', 'mean', '95% interval', 'seeds', 'each seed')
  return _table(headers, lines)


def _number(value: float | None, unit: str) -> str:
  if value is None:
    return '-'
  return written(100 * value if unit == 'points' else value, unit, 4)


def _relations(rows: Sequence[Mapping]) -> str:
  lines = []
  for row in rows:
    each = {'all': row['correlation'], 'within runs': row['within']}
    each |= row['of_runs']
    for run, found in each.items():
      shown = [
        f'{v:.2f}'
        for v in (found['value'], *(found['interval'] or ()))
        if v is not None
      ]
      lines.append(
        [row['measure'], row['condition'], run, str(found['n'])]
        + [shown[0] if shown else '-', ' to '.join(shown[1:]) or '-']
        + ['-' if found['p'] is None else f'{found["p"]:.2g}']
      )
  headers = ('measure', 'accuracy under', 'runs', 'trainings', 'correlation')
  return _table((*headers, '95% interval', 'p'), lines)


def _sizes(found: Sequence[Found]) -> dict[str, list[str]]:
  """Parameters and FLOPs of each run, all values that its results have."""
  sizes = {}
  for run in dict.fromkeys(part.run for part, _ in found):
    own = [results['weights'] for part, results in found if part.run == run]
    sizes[run] = [
      ' or '.join(
        dict.fromkeys(f'{w[name]:,.0f}' for w in own if w.get(name) is not None)
      )
      for name in ('parameters', 'flops_per_image')
    ]
  return sizes


def _usage(parts, usage, sizes: Mapping[str, Sequence[str]]) -> str:
  # An attack and a study may have one name.
  asked = dict.fromkeys((p.mode, p.asked) for p in parts if p.name in usage)
  lines = []
  for run in dict.fromkeys(part.run for part in parts):
    line = [run, *sizes.get(run, ('', ''))]
    own = [part for part in parts if part.run == run and part.name in usage]
    for key in asked:
      mine = [part for part in own if (part.mode, part.asked) == key]
      each = [usage[part.name].cpu_seconds for part in mine]
      line.append(f'{np.mean(each):.0f}' if each else '')
    peak = max((usage[part.name].peak_bytes for part in own), default=0)
    line.append(f'{peak / 2**30:.2f} GiB' if peak else '')
    lines.append(line)
  names = [name or 'training' for _, name in asked]
  names = [
    f'{name} ({mode})' if names.count(name) > 1 else name
    for name, (mode, _) in zip(names, asked, strict=True)
  ]
  return _table(
    ('run', 'parameters', 'FLOPs an image', *names, 'memory'), lines
  )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  line = lambda cells: f'| {" | ".join(cells)} |'
  rule = '|---' + '|--:' * (len(headers) - 1) + '|'
  return '\n'.join([line(headers), rule, *map(line, rows)])
