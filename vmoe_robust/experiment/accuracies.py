"""What is finished, and the accuracy of each run under each attack."""

from collections.abc import Collection, Mapping, Sequence

from ml_collections import ConfigDict

from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import FINISHED, State
from vmoe_robust.report import statistics
from vmoe_robust.report.results import DAMAGE, Results, read_results
from vmoe_robust.report.verdicts import CLEAN, require_agreement

# An attack or a study that is finished, and what it found.
Found = tuple[Part, Results]
# Names of those that are finished and do not count, and why.
LeftOut = dict[str, str]


def attacked(
  parts: Sequence[Part], states: Mapping[str, State]
) -> tuple[list[Found], LeftOut]:
  """The attacks that are finished, with their results.

  Left out are those whose results are damaged, contradicted by their records,
  or of other examples than those of the run's first seed.

  Args:
    parts: all of the experiment.
    states: of all, by name.
  """
  own = [part for part in parts if part.mode == 'attack']
  return _finished(own, states, _conditions)


def studied(
  parts: Sequence[Part], states: Mapping[str, State], names: Collection[str]
) -> tuple[list[Found], LeftOut]:
  """The same of studies with these names."""
  own = [p for p in parts if p.mode == 'study' and p.asked in names]
  return _finished(own, states, lambda results: results['summary'])


def _finished(parts, states, check) -> tuple[list[Found], LeftOut]:
  """Those whose results are whole, of which `check` raises nothing.

  Seeds of a run are asked alike on the same examples, those of the first whose
  examples are known.
  """
  found, left_out, examples = [], {}, {}
  for part in parts:
    if states[part.name].name != FINISHED:
      continue
    try:
      results = read_results(part.folder)
      check(results)
      require_agreement(results)
    except DAMAGE as error:
      left_out[part.name] = str(error)
      continue
    own = results['data'].get('fingerprint')  # older versions wrote none
    if own is not None:
      first, of = examples.setdefault((part.run, part.asked), (part.name, own))
      if own != of:
        left_out[part.name] = f'its examples are not those of {first}'
        continue
    found.append((part, results))
  return found, left_out


def accuracies(config: ConfigDict, found: Sequence[Found]) -> list[dict]:
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
    row['accuracy'] = statistics.over_seeds(each, statistics.SHARE)
  runs = [run['name'] for run in config.runs]
  attacks = [attack['name'] for attack in config.attacks]
  order = lambda row: (
    attacks.index(row['attack']),
    row['eps'],
    runs.index(row['run']),
  )
  return sorted(rows.values(), key=order)


def clean(rows: Sequence[Mapping]) -> dict[str, Mapping]:
  """Of `accuracies`, each run's without an attack.

  They are on the images of one attack, so that runs can be compared: of those
  that were asked of all runs the one of the most images. Where there is none,
  each run's are on its most images.
  """
  by_attack: dict[str, dict[str, Mapping]] = {}
  for row in rows:
    if row['condition'] == CLEAN:
      by_attack.setdefault(row['attack'], {})[row['run']] = row
  every = {run for own in by_attack.values() for run in own}
  whole = [own for own in by_attack.values() if len(own) == len(every)]
  found: dict[str, Mapping] = {}
  for own in whole or by_attack.values():
    for run, row in own.items():
      if run not in found or images(row) > images(found[run]):
        found[run] = row
  return found


def images(row: Mapping) -> int:
  """On how many images a row of `accuracies` is, of each seed."""
  return row['seeds'][0]['accuracy']['n']


def _conditions(results: Results) -> list[tuple[str, str, float, Mapping]]:
  summary = results['summary']
  rows = [(CLEAN, summary['norm'], 0.0, summary['clean_accuracy'])]
  rows += [
    (row['condition'], row['norm'], row['eps'], row['robust_accuracy'])
    for row in results['rows']
  ]
  return rows
