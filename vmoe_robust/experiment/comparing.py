"""Pairs of runs, compared image by image, and over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.experiment.accuracies import LeftOut
from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import FINISHED, State
from vmoe_robust.report import statistics, verdicts
from vmoe_robust.report.results import DAMAGE, read_results
from vmoe_robust.report.table import percent, seeds_of, some_of, table, written
from vmoe_robust.report.verdicts import CLEAN, Judged, judged_of

# Of a sweep of radii, how many the table on the terminal has.
_SHOWN = 4
# What is not compared, and why: lines on the terminal.
_MOST_NOTES = 8


def compare(
  config: ConfigDict,
  parts: Sequence[Part],
  states: Mapping[str, State],
  left_out: LeftOut,
) -> list[dict]:
  """What the attacks of each pair of runs say, a row a condition.

  In a union of attacks an image is right if it is under all their conditions,
  and without an attack.

  Args:
    config: the experiment, checked.
    parts: all of them.
    states: of all, by name.
    left_out: of `accuracies.attacked`: what a run's accuracy is not of, its
      pairs are not of either.

  Returns:
    Rows with 'first' and 'second' (runs), 'attack', 'condition', 'seeds' (for
    each: the two shares and `statistics.paired`), 'difference' (see
    `statistics.over_seeds`), and 'missing', a line for each seed that is not
    compared.
  """
  attacks = {
    (part.run, part.asked, part.seed): part
    for part in parts
    if part.mode == 'attack'
  }
  asked = [(one['name'], [one['name']], '') for one in config.attacks]
  asked += [(one['name'], one['of'], one['name']) for one in config.unions]
  return [
    row
    for pair in config.comparisons
    for name, of, union in asked
    for row in _of_pair(
      {'first': pair[0], 'second': pair[1], 'attack': name},
      [  # a seed, and the attacks of both
        (seed, [[attacks.get((run, n, seed)) for n in of] for run in pair])
        for seed in config.seeds
      ],
      union,
      states,
      left_out,
    )
  ]


def _of_pair(
  about: Mapping, seeds: Sequence, union: str, states, left_out: LeftOut
) -> list[dict]:
  """A row a condition that a pair of runs has; see `compare`."""
  found: dict[str, list[dict]] = {}
  missing = []
  for seed, (first, second) in seeds:
    if None in (*first, *second):
      continue  # not asked of both
    try:
      _require([*first, *second], states, left_out)
      for condition, numbers in _paired(first, second, union):
        found.setdefault(condition, []).append({'seed': seed} | numbers)
    except UserError as error:
      missing.append(f'seed {seed}: {error}')
  rows = [
    {
      **about,
      'condition': condition,
      'seeds': each,
      'difference': statistics.over_seeds(
        [one['difference'] for one in each], statistics.DIFFERENCE
      ),
      'missing': missing,
    }
    for condition, each in found.items()
  ]
  if missing and not found:
    empty = {'condition': None, 'seeds': [], 'difference': None}
    rows.append({**about, **empty, 'missing': missing})
  return rows


def left_out(rows: Sequence[Mapping]) -> list[str]:
  """Which pairs and seeds are not compared, and why; the first few."""
  notes = list(
    dict.fromkeys(
      f'{row["first"]} - {row["second"]}, {row["attack"]}, {text}'
      for row in rows
      for text in row['missing']
    )
  )
  if len(notes) > _MOST_NOTES:
    more = len(notes) - _MOST_NOTES
    notes[_MOST_NOTES:] = [f'{more} more: "missing" of comparisons.json']
  return notes


def show(rows: Sequence[Mapping]) -> str:
  """The comparisons as a table for the terminal; '' if there are none."""
  notes = left_out(rows)
  headers, lines = cells(rows)
  if not lines:
    return '\n'.join(notes)
  foot = (
    'Accuracies, and their differences in points. The interval is over seeds, '
    'or over images where there is one seed; p is of each seed.'
  )
  return '\n'.join([table(headers, lines), foot, *notes])


def cells(rows: Sequence[Mapping]) -> tuple[Sequence[str], list[list[str]]]:
  """The comparisons as headers and lines of a table.

  Of a sweep of radii there are a few, the last with them, and clean images are
  of the first attack alone.
  """
  headers = ('first', 'second', 'attack', 'condition', 'of first', 'of second')
  headers += ('difference', '95% interval', 'seeds', 'each seed')
  headers += ("McNemar's p",)
  known = [row for row in rows if row['difference'] is not None]
  return headers, [_line(row) for row in _few(known)]


def _line(row: Mapping) -> list[str]:
  seeds, difference = row['seeds'], row['difference']
  shares = [
    percent(np.mean([one[which]['value'] for one in seeds]))
    for which in ('accuracy_first', 'accuracy_second')
  ]
  interval = '-'
  if difference['interval']:
    interval = ' to '.join(map(_points, difference['interval']))
  return [
    *(row[name] for name in ('first', 'second', 'attack')),
    row['condition'],
    *shares,
    _points(difference['value']),
    interval,
    seeds_of(row),
    ', '.join(_points(one['difference']['value']) for one in seeds),
    ', '.join(f'{one["p"]:.2g}' for one in seeds),
  ]


def _points(share: float) -> str:
  return written(100 * share, 'points', 0)


def _few(rows: Sequence[Mapping]) -> list[Mapping]:
  """All rows, but of a sweep every so manieth, counted from its end."""
  groups: dict[tuple, list] = {}
  for row in rows:
    key = tuple(row[name] for name in ('first', 'second', 'attack'))
    groups.setdefault(key, []).append(row)
  few: dict[tuple, list] = {}  # by pair
  for (first, second, _), group in groups.items():
    clean = [row for row in group if row['condition'] == CLEAN]
    others = [row for row in group if row['condition'] != CLEAN]
    before = few.setdefault((first, second), [])
    before += [] if before else clean
    before += some_of(others, _SHOWN)
  return [row for group in few.values() for row in group]


def _require(pair: Sequence[Part], states: Mapping[str, State], left_out):
  for part in pair:
    if states[part.name].name != FINISHED:
      raise UserError(f'{part.name} is {states[part.name].name}')
    if part.name in left_out:
      raise UserError(f'{part.name} is left out: {left_out[part.name]}')


def _paired(
  first: Sequence[Part], second: Sequence[Part], union: str
) -> list[tuple[str, dict]]:
  """Of each condition, and of the clean images, the numbers of one seed.

  Args:
    first: the attacks of one run, one or those of a union.
    second: the same of the other.
    union: its name; '' for one attack.
  """
  sides = [_judged(parts, union) for parts in (first, second)]
  about = f'{first[0].name} and {second[0].name}'
  if list(sides[0]) != list(sides[1]):
    raise UserError(f'{about} have other conditions; ask the same of both')
  found = []
  for condition, one in sides[0].items():
    other = sides[1][condition]
    if not one.is_of_same_images(other):
      raise UserError(f'{about} were not judged on the same images')
    shares = {
      'accuracy_first': statistics.rate(one.right),
      'accuracy_second': statistics.rate(other.right),
    }
    found.append(
      (condition, shares | statistics.paired(one.right, other.right))
    )
  return found


def _judged(parts: Sequence[Part], union: str) -> dict[str, Judged]:
  found = []
  for part in parts:
    try:
      found.append(judged_of(read_results(part.folder)))
    except DAMAGE as error:
      raise UserError(f'{part.name}: {error}') from error
  if not union:
    return found[0]
  return {union: verdicts.union([one for f in found for one in f.values()])}
