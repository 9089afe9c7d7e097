"""Pairs of runs, compared image by image, and over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy import special

from vmoe_robust.config import UserError
from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import FINISHED, State
from vmoe_robust.report import statistics
from vmoe_robust.report.records import to_numpy
from vmoe_robust.report.results import read_results
from vmoe_robust.report.table import percent, table
from vmoe_robust.robustness.measure import is_right

CLEAN = 'clean'
_PREDICTIONS = ('prediction_before', 'prediction_after')
# Of a sweep of radii, how many the table on the terminal has.
_SHOWN = 4


def compare(
  config: ConfigDict, parts: Sequence[Part], states: Mapping[str, State]
) -> list[dict]:
  """What the attacks of each pair of runs say, a row a condition.

  Args:
    config: the experiment, checked.
    parts: all of them.
    states: of all, by name.

  Returns:
    Rows with 'first' and 'second' (runs), 'attack', 'condition', 'seeds' (for
    each: the two shares and `statistics.paired`), 'difference' (see
    `over_seeds`), and 'missing', a line for each seed that is not compared.
  """
  attacks = {
    (part.run, part.asked, part.seed): part
    for part in parts
    if part.mode == 'attack'
  }
  rows = []
  for first, second in config.comparisons:
    for attack in config.attacks:
      name, found, missing = attack['name'], {}, []
      for seed in config.seeds:
        pair = [attacks.get((run, name, seed)) for run in (first, second)]
        if None in pair:
          continue  # not asked of both
        try:
          _require_finished(pair, states)
          for condition, numbers in _paired(*pair):
            found.setdefault(condition, []).append({'seed': seed} | numbers)
        except UserError as error:
          missing.append(f'seed {seed}: {error}')
      about = {'first': first, 'second': second, 'attack': name}
      for condition, seeds in found.items():
        rows.append(
          about
          | {
            'condition': condition,
            'seeds': seeds,
            'difference': over_seeds([one['difference'] for one in seeds]),
            'missing': missing,
          }
        )
      if missing and not found:
        empty = {'condition': None, 'seeds': [], 'difference': None}
        rows.append(about | empty | {'missing': missing})
  return rows


def over_seeds(differences: Sequence[statistics.Estimate]) -> dict:
  """The mean of a difference over seeds, with its 95% interval.

  Of several seeds it is Student's interval of the seeds' means: what another
  seed would do. Of one it is the bootstrap's over images, and 'over' says so.

  Returns:
    'value', 'interval', 'n' (seeds), 'over': 'seeds' or 'images'.
  """
  values = np.array([one['value'] for one in differences], np.float64)
  if len(values) == 1:
    interval = differences[0]['interval']
    return {
      'value': float(values[0]),
      'interval': interval,
      'n': 1,
      'over': 'images',
    }
  level = (1 + statistics.LEVEL) / 2
  half = special.stdtrit(len(values) - 1, level)
  half *= values.std(ddof=1) / len(values) ** 0.5
  value = float(values.mean())
  return {
    'value': value,
    'interval': [value - float(half), value + float(half)],
    'n': len(values),
    'over': 'seeds',
  }


def show(rows: Sequence[Mapping]) -> str:
  """The comparisons as a table; of a sweep of radii a few, the last with them.

  '' if there are none.
  """
  lines, notes = [], []
  for row in _few(rows):
    for text in row['missing']:
      note = f'{row["first"]} - {row["second"]}, {row["attack"]}, {text}'
      notes += [note] if note not in notes else []
    if row['difference'] is not None:
      lines.append(_line(row))
  if not lines:
    return '\n'.join(notes)
  headers = ('first', 'second', 'attack', 'condition', 'of first', 'of second')
  headers += ('difference', '95% interval', 'each seed', "McNemar's p")
  foot = (
    'Accuracies, and their differences in points. The interval is over seeds, '
    'or over images where there is one seed; p is of each seed.'
  )
  return '\n'.join([table(headers, lines), foot, *notes])


def _line(row: Mapping) -> list[str]:
  seeds, difference = row['seeds'], row['difference']
  shares = [
    percent(np.mean([one[which]['value'] for one in seeds]))
    for which in ('accuracy_first', 'accuracy_second')
  ]
  low, high = difference['interval']
  return [
    *(row[name] for name in ('first', 'second', 'attack', 'condition')),
    *shares,
    f'{100 * difference["value"]:+.1f}',
    f'{100 * low:+.1f} to {100 * high:+.1f}',
    ', '.join(f'{100 * one["difference"]["value"]:+.1f}' for one in seeds),
    ', '.join(f'{one["p"]:.2g}' for one in seeds),
  ]


def _few(rows: Sequence[Mapping]) -> list[Mapping]:
  """All rows, but of a sweep every so manieth, counted from its end."""
  groups: dict[tuple, list] = {}
  for row in rows:
    key = tuple(row[name] for name in ('first', 'second', 'attack'))
    groups.setdefault(key, []).append(row)
  few = []
  for group in groups.values():
    clean = [row for row in group if row['condition'] == CLEAN]
    others = [row for row in group if row['condition'] != CLEAN]
    step = max(len(others) // _SHOWN, 1)
    few += clean + others[::-1][::step][:_SHOWN][::-1]
  return few


def _require_finished(pair: Sequence[Part], states: Mapping[str, State]):
  for part in pair:
    if states[part.name].name != FINISHED:
      raise UserError(f'{part.name} is {states[part.name].name}')


def _paired(first: Part, second: Part) -> list[tuple[str, dict]]:
  """Of each condition, and of the clean images, the numbers of one seed."""
  sides = [_columns(part) for part in (first, second)]
  names = list(dict.fromkeys(sides[0]['condition']))
  if names != list(dict.fromkeys(sides[1]['condition'])):
    raise UserError(
      f'{first.name} and {second.name} have other conditions; ask the same of '
      'both'
    )
  found = []
  for condition in (CLEAN, *names):
    clean = condition == CLEAN
    when = _PREDICTIONS[0 if clean else 1]
    right, known = [], []
    for columns in sides:
      rows = columns['condition'] == (names[0] if clean else condition)
      order = np.argsort(columns['index'][rows], kind='stable')
      index, label, predicted = (
        columns[name][rows][order] for name in ('index', 'label', when)
      )
      right.append(np.asarray(is_right(predicted, label)))
      known.append((index, label))
    if not all(map(np.array_equal, *known)):
      raise UserError(
        f'{first.name} and {second.name} were not judged on the same images'
      )
    shares = {
      'accuracy_first': statistics.rate(right[0]),
      'accuracy_second': statistics.rate(right[1]),
    }
    found.append((condition, shares | statistics.paired(*right)))
  return found


def _columns(part: Part) -> dict[str, np.ndarray]:
  records = read_results(part.folder).records
  names = ('condition', 'index', 'label', *_PREDICTIONS)
  return {name: to_numpy(records[name]) for name in names}
