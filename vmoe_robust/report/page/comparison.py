"""Runs beside each other: image by image, over seeds, field by field."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from vmoe_robust.config import UserError
from vmoe_robust.config.studies import ATTACKING
from vmoe_robust.report import statistics, verdicts
from vmoe_robust.report.page.runs import Problems, Run
from vmoe_robust.report.page.tables import (
  Table,
  cell,
  fields,
  points,
  table,
)
from vmoe_robust.report.verdicts import Judged

_MOST_PAIRS, _MOST_CONDITIONS = 10, 30
# Settings that do not change what is done under a condition.
_NOT_ATTACK = ('at_end', 'eps', 'every_steps', 'save_images')


def judged(run: Run) -> dict[str, Judged]:
  """The verdicts of a run by condition, clean images first.

  Raises:
    UserError: the records lack columns, or are not those that the numbers of
      `results.json` come from.
  """
  try:
    return verdicts.judged_of(run.results)
  except UserError as error:
    raise UserError(f'records.parquet of {run.name}: {error}') from error


def pairs(runs: Sequence[Run], problems: Problems) -> list[Table]:
  """Two runs at a time on the same images, a line a condition.

  Pairs that do not have the same images are a line of `problems`.
  """
  others = [
    (a, b) for a, b in itertools.combinations(runs, 2) if _is_comparable(a, b)
  ]
  asked = [(a, b) for a, b in others if _conditions(a) & _conditions(b)]
  if len(others) > len(asked):
    problems.add(
      f'{len(others) - len(asked)} of {len(others)} pairs of runs have no '
      'condition in both and are not compared; attack them alike'
    )
  if len(asked) > _MOST_PAIRS:
    problems.add(
      f'the first {_MOST_PAIRS} of {len(asked)} pairs of runs are compared; '
      'name fewer runs to see others'
    )
  verdicts: dict[str, dict[str, Judged] | None] = {}
  out = []
  for pair in asked[:_MOST_PAIRS]:
    for run in pair:
      if run.name not in verdicts:
        verdicts[run.name] = problems.guard(
          f'{run.name}, image by image,', functools.partial(judged, run)
        )
    first, second = (verdicts[run.name] for run in pair)
    if first is None or second is None:
      continue
    made = problems.guard(
      f'the comparison of {pair[0].name} with {pair[1].name}',
      functools.partial(_pair, *pair, first, second),
    )
    out += [made] if made else []
  return out


def differing(runs: Sequence[Run]) -> Table | None:
  """The fields of the configs in which runs differ; None if in none."""
  runs = [run for run in runs if run.config]
  names = dict.fromkeys(name for run in runs for name in run.config)
  lines = []
  for name in names:
    own = [run for run in runs if name in run.config]
    values = [run.config[name] for run in own]
    if len(own) < len(runs) or any(v != values[0] for v in values[1:]):
      cells = dict(zip([run.name for run in own], fields(values), strict=True))
      lines.append([name, *(cells.get(run.name, '-') for run in runs)])
  if not lines or len(runs) < 2:
    return None
  return table(
    'Fields of the configs that differ',
    ('field', *(run.name for run in runs)),
    lines,
  )


def _is_comparable(a: Run, b: Run) -> bool:
  """Whether two runs asked the same, of other weights."""
  if a.is_attack and b.is_attack:
    return a.model != b.model
  same = a.mode == b.mode
  name = [run.results['asked']['name'] for run in (a, b)]
  return same and not a.is_attack and name[0] == name[1] and a.model != b.model


def _conditions(run: Run) -> set[str]:
  return {row['condition'] for row in run.results['rows']}


def _pair(a: Run, b: Run, first, second) -> Table:
  """Counts of one pair.

  Raises:
    UserError: the images are not the same.
  """
  data = [run.results['data'] for run in (a, b)]
  places = [f'{d["name"]} {d["split"]}' for d in data]
  folders = [
    str(run.config.get('config.data.dir')) if d['name'] == 'folder' else ''
    for run, d in zip((a, b), data, strict=True)
  ]
  known = [d.get('fingerprint') for d in data]  # None of older versions
  for one, other in (places, folders if None in known else known):
    if one != other:
      raise UserError(f'other images, {one} and {other}')
  norms = [_settings(run).get('norm') for run in (a, b)]
  if norms[0] != norms[1]:
    raise UserError(f'attacked in other norms, {norms[0]} and {norms[1]}')
  shared = [name for name in first if name in second]
  if not shared:
    raise UserError('they have no images')
  lines = []
  for name in shared[:_MOST_CONDITIONS]:
    one, other = first[name], second[name]
    if not np.array_equal(one.index, other.index):
      raise UserError(
        f'other images, {len(one.index)} and {len(other.index)} under {name!r}'
      )
    if not np.array_equal(one.label, other.label):
      raise UserError('the same numbers of images have other labels')
    found = statistics.paired(one.right, other.right)
    lines.append(
      [name, len(one.index)]
      + [found[n] for n in ('both', 'only_first', 'only_second', 'neither')]
      + [points(found['difference']), cell(found['p'])]
    )
  return table(
    f'{a.name} (A) against {b.name} (B)',
    ('condition', 'images', 'both right', 'only A', 'only B', 'neither')
    + ('A - B, points', "McNemar's p"),
    lines,
    'The same images, counted in pairs. Interval: bootstrap over images; p: '
    "McNemar's exact test, not corrected for the number of lines."
    + _cut(len(shared))
    + _unlike(a, b),
  )


def _unlike(a: Run, b: Run) -> str:
  """In words, how the runs were not asked the same."""
  first, second = (
    _settings(run)
    | {n: run.results['asked'][n] for n in ('experts', 'seed')}
    | {'num_selected': run.selected}
    for run in (a, b)
  )
  alone = 'capacity' not in (first['experts'], second['experts'])
  unread = (*_NOT_ATTACK, 'batch_size') if alone else _NOT_ATTACK
  found = [
    name + ' ' + ' and '.join(c.text for c in fields([value, second[name]]))
    for name, value in first.items()
    if name in second and value != second[name] and name not in unread
  ]
  return f' Asked of A and B otherwise: {"; ".join(found)}.' if found else ''


def _settings(run: Run) -> dict[str, object]:
  """What was asked of a run, of a study with its attack."""
  asked, attack = run.results['asked'], {}
  if run.config and asked['name'] in ATTACKING:
    attack = asked['config'].get('attack') or {}
  return {**attack, **asked['settings']}


def _cut(count: int) -> str:
  if count <= _MOST_CONDITIONS:
    return ''
  return f' The first {_MOST_CONDITIONS} of {count} conditions.'
