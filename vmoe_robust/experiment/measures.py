"""Numbers of studies over seeds, and whether they go with robustness."""

import numbers
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from vmoe_robust.experiment.accuracies import Found
from vmoe_robust.report import statistics
from vmoe_robust.report.results import Results
from vmoe_robust.report.verdicts import CLEAN

# Between which numbers they lie, by unit; shares are kept as they are.
_LIMITS = {
  '%': statistics.SHARE,
  'points': statistics.DIFFERENCE,
  '': (-float('inf'), float('inf')),
}
# Of one model, from so many trainings on.
_FEWEST = 4


def measures(
  config: ConfigDict, found: Sequence[Found], say: Callable[[str], None]
) -> list[dict]:
  """What `config.measures` names, a row a measure and run.

  Args:
    config: the experiment, checked.
    found: studies, of `accuracies.finished`.
    say: told which results have no such number; these are left out.

  Returns:
    Rows with 'measure', 'run', 'unit', 'seeds' (for each 'seed' and 'number',
    the study's estimate) and 'mean' (see `statistics.over_seeds`).
  """
  rows = []
  for asked in config.measures:
    own: dict[str, list] = {run['name']: [] for run in config.runs}
    for part, results in found:
      if part.asked != asked['study']:
        continue
      if asked['of'] and part.run not in asked['of']:
        continue
      try:
        number = _number(results, asked['condition'], asked['number'])
      except LookupError as error:
        say(f'{part.name} is left out of {asked["name"]}: {error.args[0]}')
        continue
      own[part.run].append({'seed': part.seed, 'number': number})
    rows += [
      {
        'measure': asked['name'],
        'run': run,
        'unit': asked['unit'],
        'seeds': seeds,
        'mean': statistics.over_seeds(
          [one['number'] for one in seeds], _LIMITS[asked['unit']]
        ),
      }
      for run, seeds in own.items()
      if seeds
    ]
  return rows


def relations(
  config: ConfigDict, measured: Sequence[Mapping], accuracies: Sequence[Mapping]
) -> list[dict]:
  """Whether a measure goes with accuracy under an attack, over trainings.

  Args:
    config: the experiment, checked.
    measured: of `measures`.
    accuracies: of `accuracies.accuracies`.

  Returns:
    A row a measure that has `against`: 'measure', 'unit', 'condition' (the
    attack's at its largest radius), 'trainings' (for each 'run', 'seed',
    'number' and 'accuracy'), 'missing' (trainings that were measured and not
    attacked, or whose number is not known), and three of
    `statistics.rank_correlation`: 'correlation', of all trainings as if they
    were of one model, 'within' models, and 'of_runs', of each model that has
    several trainings.
  """
  rows = []
  for asked in config.measures:
    attacked, condition = _under(asked['against'], accuracies)
    trainings, missing = [], []
    for row in measured:
      if row['measure'] != asked['name']:
        continue
      for one in row['seeds']:
        about = {'run': row['run'], 'seed': one['seed']}
        accuracy = attacked.get((row['run'], one['seed']))
        if accuracy is None or one['number']['value'] is None:
          missing.append(about)
          continue
        number = one['number']['value']
        trainings.append({**about, 'number': number, 'accuracy': accuracy})
    if not trainings:
      continue
    by_run: dict[str, list] = {}
    for one in trainings:
      by_run.setdefault(one['run'], []).append(one)
    rows.append(
      {
        'measure': asked['name'],
        'unit': asked['unit'],
        'condition': condition,
        'trainings': trainings,
        'missing': missing,
        'correlation': _correlation(trainings),
        'within': _correlation(trainings, [one['run'] for one in trainings]),
        'of_runs': {
          run: _correlation(own)
          for run, own in by_run.items()
          if len(own) >= _FEWEST
        },
      }
    )
  return rows


def _number(results: Results, condition: str, keys: Sequence[str]) -> dict:
  """The estimate in the summary, or in the row of a condition.

  Raises:
    LookupError: there is none; says what there is.
  """
  place, value = 'summary', results['summary']
  if condition:
    own = [row for row in results['rows'] if row['condition'] == condition]
    if len(own) != 1:
      names = dict.fromkeys(row['condition'] for row in results['rows'])
      raise LookupError(
        f'it has {len(own)} rows of {condition!r}; its conditions are '
        f'{", ".join(names)}'
      )
    place, value = f'the row {condition!r}', own[0]
  for key in keys:
    if not isinstance(value, Mapping) or key not in value:
      there = ', '.join(value) if isinstance(value, Mapping) else 'a number'
      raise LookupError(f'{place} has no {key!r}, but {there}')
    place, value = f'{place}, {key!r},', value[key]
  if value is None or isinstance(value, numbers.Real):
    return {'value': value, 'interval': None, 'n': 1}
  if isinstance(value, Mapping) and {'value', 'interval'} <= set(value):
    return dict(value)
  raise LookupError(f'{place} is no number, but has {", ".join(value)}')


def _under(attack: str, accuracies) -> tuple[dict[tuple[str, int], float], str]:
  """Accuracy by run and seed at the attack's largest radius, and its name."""
  own = [
    row
    for row in accuracies
    if row['attack'] == attack and row['condition'] != CLEAN
  ]
  if not own:
    return {}, ''
  largest = max(own, key=lambda row: row['eps'])
  found = {
    (row['run'], one['seed']): one['accuracy']['value']
    for row in own
    if row['condition'] == largest['condition']
    for one in row['seeds']
  }
  return found, largest['condition']


def _correlation(
  trainings: Sequence[Mapping], groups: Sequence[str] | None = None
) -> dict:
  return statistics.rank_correlation(
    [one['number'] for one in trainings],
    [one['accuracy'] for one in trainings],
    groups,
  )
