"""The accuracy of each run under each attack, over seeds."""

from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from vmoe_robust.config import UserError
from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import FINISHED, State
from vmoe_robust.report import statistics
from vmoe_robust.report.results import Results, read_results
from vmoe_robust.report.verdicts import CLEAN

# An attack that is finished, and what it found.
Attacked = tuple[Part, Results]


def attacked(
  parts: Sequence[Part],
  states: Mapping[str, State],
  say: Callable[[str], None],
) -> list[Attacked]:
  """The attacks that are finished, with their results.

  Args:
    parts: all of the experiment.
    states: of all, by name.
    say: told which results are damaged; these are left out.
  """
  found = []
  for part in parts:
    if part.mode != 'attack' or states[part.name].name != FINISHED:
      continue
    try:
      results = read_results(part.folder)
      _conditions(results)
    except (UserError, LookupError, TypeError) as error:
      say(f'{part.name} is left out: {error}')
      continue
    found.append((part, results))
  return found


def accuracies(config: ConfigDict, found: Sequence[Attacked]) -> list[dict]:
  """What attacks say, a row a run and condition.

  Args:
    config: the experiment, checked.
    found: of `attacked`.

  Returns:
    Rows with 'run', 'attack', 'condition', 'norm', 'eps' (0 without an attack),
    'seeds' (for each 'seed' and 'accuracy', the estimate over images) and
    'accuracy', the estimate over seeds (see `statistics.over_seeds`); in the
    order of the attacks, their conditions, and the runs.
  """
  rows: dict[tuple, dict] = {}
  for part, results in found:
    for condition, norm, eps, accuracy in _conditions(results):
      row = rows.setdefault(
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
  for row in rows.values():
    each = [one['accuracy'] for one in row['seeds']]
    row['accuracy'] = statistics.over_seeds(each, is_rate=True)
  runs = [run['name'] for run in config.runs]
  attacks = [attack['name'] for attack in config.attacks]
  order = lambda row: (
    attacks.index(row['attack']),
    row['eps'],
    runs.index(row['run']),
  )
  return sorted(rows.values(), key=order)


def clean(rows: Sequence[Mapping]) -> dict[str, Mapping]:
  """Of `accuracies`, each run's without an attack, on the most images."""
  size = lambda row: row['seeds'][0]['accuracy']['n']
  found: dict[str, Mapping] = {}
  for row in rows:
    run = row['run']
    if row['condition'] == CLEAN and (
      run not in found or size(row) > size(found[run])
    ):
      found[run] = row
  return found


def _conditions(results: Results) -> list[tuple[str, str, float, Mapping]]:
  summary = results['summary']
  rows = [(CLEAN, summary['norm'], 0.0, summary['clean_accuracy'])]
  rows += [
    (row['condition'], row['norm'], row['eps'], row['robust_accuracy'])
    for row in results['rows']
  ]
  return rows
