"""The accuracy of each run under each attack, over seeds."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import FINISHED, State
from vmoe_robust.report import statistics
from vmoe_robust.report.results import Results, read_results
from vmoe_robust.report.verdicts import CLEAN


def accuracies(
  config: ConfigDict, parts: Sequence[Part], states: Mapping[str, State]
) -> list[dict]:
  """What the attacks that are finished say, a row a run and condition.

  Args:
    config: the experiment, checked.
    parts: all of them.
    states: of all, by name.

  Returns:
    Rows with 'run', 'attack', 'condition', 'norm', 'eps' (0 without an attack),
    'seeds' (for each 'seed' and 'accuracy', the estimate over images) and
    'accuracy', the estimate over seeds (see `statistics.over_seeds`); in the
    order of the attacks, their conditions, and the runs.
  """
  found: dict[tuple, dict] = {}
  for part in parts:
    if part.mode != 'attack' or states[part.name].name != FINISHED:
      continue
    for condition, norm, eps, accuracy in _conditions(part):
      row = found.setdefault(
        (part.asked, condition, part.run),
        {
          'run': part.run,
          'attack': part.asked,
          'condition': condition,
          'norm': norm,
          'eps': eps,
          'seeds': [],
        },
      )
      row['seeds'].append({'seed': part.seed, 'accuracy': accuracy})
  for row in found.values():
    each = [one['accuracy'] for one in row['seeds']]
    row['accuracy'] = statistics.over_seeds(each, is_rate=True)
  runs = [run['name'] for run in config.runs]
  attacks = [attack['name'] for attack in config.attacks]
  order = lambda row: (
    attacks.index(row['attack']),
    row['eps'],
    runs.index(row['run']),
  )
  return sorted(found.values(), key=order)


def _conditions(part: Part) -> list[tuple[str, str, float, Mapping]]:
  try:
    results = read_results(part.folder)
    return _read(results)
  except (UserError, LookupError, TypeError) as error:
    raise UserError(f'{part.name}: {error}') from error


def _read(results: Results) -> list[tuple[str, str, float, Mapping]]:
  summary = results['summary']
  rows = [(CLEAN, summary['norm'], 0.0, summary['clean_accuracy'])]
  rows += [
    (row['condition'], row['norm'], row['eps'], row['robust_accuracy'])
    for row in results['rows']
  ]
  return rows
