"""An experiment of many runs: what it found, and the list of its parts."""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vmoe_robust import files
from vmoe_robust.config import UserError
from vmoe_robust.report import statistics
from vmoe_robust.report.page.runs import Problems, Run
from vmoe_robust.report.page.shown import Shown, of_figure
from vmoe_robust.report.page.tables import (
  Cell,
  Table,
  cell,
  points,
  rate,
  several,
  table,
)
from vmoe_robust.report.table import percent, seeds_of, written

# In the folder of an experiment.
SUMMARY, COMPARISONS = 'experiment.json', 'comparisons.json'
FORMAT, VERSION = 'vmoe_robust experiment', 1
_READING = (
  'Points are means over seeds with their 95% intervals (of one seed over '
  'images); small dots are seeds.'
)
_DIFFERENCE = (
  'The same images, seed by seed. Interval: over seeds, of one seed the '
  "bootstrap's over images. p: McNemar's exact test of each seed, not "
  'corrected for the number of lines.'
)


_MOST_SENTENCES = 2  # more pairs are a table


@dataclasses.dataclass(frozen=True)
class Difference:
  """A pair of runs under one condition."""

  first: str
  second: str
  condition: str
  accuracies: Sequence[Cell]
  points: Cell  # with its interval
  over: str  # what the interval is over


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What a page shows of an experiment."""

  folder: epath.Path
  folders: Sequence[str]  # of its parts, in that one
  name: str
  state: str  # such as '12 of 14 parts are finished'
  command: str
  sentences: Sequence[Difference]  # a pair each
  pairs: Table | None  # the same, of more pairs than a few
  figures: Sequence[Shown]
  comparisons: Table | None
  parts: Table

  def has(self, run: Run) -> bool:
    """Whether the run's folder is in that of the experiment."""
    return _is_in(run, self.folder)

  def leaves_out(self, run: Run) -> bool:
    """Whether it is in that folder and of no part, but of other models."""
    folders = [self.folder / name for name in self.folders]
    return self.has(run) and not any(_is_in(run, one) for one in folders)


def _is_in(run: Run, folder: epath.Path) -> bool:
  inner, outer = map(os.path.abspath, (run.results.folder, folder))
  return f'{inner}/'.startswith(f'{outer}/')


def experiments(
  paths: Sequence[str | os.PathLike], problems: Problems
) -> list[Experiment]:
  """Those of the paths that are folders of experiments."""
  found = []
  for path in paths:
    made = problems.guard(
      f'the experiment in {path}',
      functools.partial(_experiment, path, problems),
    )
    found += [made] if made else []
  return found


def _experiment(path: str | os.PathLike, problems: Problems):
  """What a folder says; None if it is none of an experiment."""
  folder = files.path(path, 'path')
  if not (folder / SUMMARY).exists():
    return None
  said = _read(folder / SUMMARY)
  if said.get('format') != FORMAT or said.get('format_version') != VERSION:
    raise UserError(
      f'{SUMMARY} has format {said.get("format")!r} of version '
      f'{said.get("format_version")!r}; {FORMAT!r} of version {VERSION} is read'
    )
  rows = problems.guard(
    f'the comparisons in {folder}', lambda: _read(folder / COMPARISONS)
  )
  rows = [row for row in rows or () if row['difference'] is not None]
  figures = [
    problems.guard(about['title'], functools.partial(_shown, folder, about))
    for about in said.get('figures', ())
  ]
  sentences = _sentences(rows)
  done = sum(part['state'] == 'finished' for part in said['parts'])
  return Experiment(
    folder=folder,
    folders=[part['folder'] for part in said['parts']],
    name=said['name'],
    state=f'{done} of {len(said["parts"])} parts are finished',
    command=said['command'],
    sentences=sentences,
    pairs=_pairs(sentences) if len(sentences) > _MOST_SENTENCES else None,
    figures=[figure for figure in figures if figure],
    comparisons=_comparisons(rows) if rows else None,
    parts=_parts(said['parts']),
  )


def _read(path: epath.Path) -> Any:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error


def _shown(folder: epath.Path, about: Mapping[str, str]) -> Shown:
  name = about['data']
  if os.path.isabs(name) or '..' in name.split('/'):
    raise UserError(f'{name!r} is outside {folder}')
  figure = _read(folder / name)
  means = all(line.get('joined', True) for line in figure.get('lines', ()))
  return of_figure(figure, about['title'], _READING if means else '')


def _sentences(rows: Sequence[Mapping]) -> list[Difference]:
  """Of each pair under its first attack that is known, at the last condition.

  Where pairs have other attacks, the condition tells which.
  """
  pair = lambda row: (row['first'], row['second'])
  attacks: dict[tuple[str, str], str] = {}
  for row in rows:
    attacks.setdefault(pair(row), row['attack'])
  last = {pair(r): r for r in rows if r['attack'] == attacks[pair(r)]}
  told = len(set(attacks.values())) > 1
  return [
    Difference(
      first=row['first'],
      second=row['second'],
      condition=row['condition'] + (f' ({row["attack"]})' if told else ''),
      accuracies=[
        Cell(percent(mean['value']), mean['value']) for mean in _accuracies(row)
      ],
      points=points(row['difference']),
      over=_over(row['difference']),
    )
    for row in last.values()
  ]


def _over(difference: Mapping) -> str:
  if difference['over'] == 'seeds':
    return f'over {difference["n"]} seeds'
  return 'one seed, over its images'


def _pairs(found: Sequence[Difference]) -> Table:
  conditions = dict.fromkeys(one.condition for one in found)
  headers = ['A - B', 'points', 'of A', 'of B']
  lines = [[f'{d.first} - {d.second}', d.points, *d.accuracies] for d in found]
  caption = f'{len(found)} pairs: accuracy'
  if len(conditions) == 1:
    caption += f' under {found[0].condition}'
  else:
    headers.append('condition')
    lines = [[*li, d.condition] for li, d in zip(lines, found, strict=True)]
  note = 'In brackets: 95% intervals, '
  over = dict.fromkeys(one.over for one in found)
  if len(over) == 1:
    note += f'{found[0].over}.'
  else:
    headers.append('intervals')
    lines = [[*li, d.over] for li, d in zip(lines, found, strict=True)]
    note += 'of what the last column says.'
  return table(caption, headers, lines, note)


def _comparisons(rows: Sequence[Mapping]) -> Table:
  lines = []
  for row in rows:
    each = [100 * one['difference']['value'] for one in row['seeds']]
    ps = [one['p'] for one in row['seeds']]
    lines.append(
      [row[name] for name in ('first', 'second', 'attack')]
      + [row['condition']]
      + [rate(mean) for mean in _accuracies(row)]
      + [points(row['difference']), seeds_of(row)]
      + [several(each, lambda value: written(value, 'points', 0))]
      + [several(ps, lambda p: f'{p:.2g}')]
    )
  headers = ('A', 'B', 'attack', 'condition', 'accuracy of A', 'of B')
  headers += ('A - B, points', 'seeds', 'each seed, points', "McNemar's p")
  return table('Pairs of runs', headers, lines, _DIFFERENCE)


def _accuracies(row: Mapping) -> list[Mapping]:
  """Both runs' estimates over seeds."""
  return [
    statistics.over_seeds([one[name] for one in row['seeds']], statistics.SHARE)
    for name in ('accuracy_first', 'accuracy_second')
  ]


def _parts(parts: Sequence[Mapping]) -> Table:
  names = ('seconds', 'cpu_seconds', 'peak_bytes', 'joules')
  lines = []
  for part in parts:
    usage = part['usage'] or dict.fromkeys(names)
    start = [part[name] for name in ('number', 'name', 'state')]
    lines.append([*start, *(cell(usage[name]) for name in names)])
  return table(
    'Parts',
    ('part', 'name', 'state', 'seconds', 'CPU seconds')
    + ('peak memory, bytes', 'joules'),
    lines,
    'Each is a folder beside this page, with a report.html of its own. Seconds '
    'are by the clock, all attempts together; joules are those of the whole '
    'machine, where it tells them and one part ran at a time.',
  )
