"""The first screen: how each model was judged, a sentence or a row each."""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vmoe_robust.config import default
from vmoe_robust.report.page.runs import Problems, Run
from vmoe_robust.report.page.tables import Cell, Table, rate, table
from vmoe_robust.report.table import radius

# Attacks whose name does not say their length.
_STEPPED = ('pgd', 'mim', 'paper')
# Settings that make them other attacks; the others have no such settings.
_TOLD = ('target', 'restarts', 'random_start', 'step_size', 'momentum')
_TOLD += ('class_weight', 'auxiliary_weight')
_USUAL = ('linf', '8/255')  # the radius that is shown if runs share several
_MOST_SENTENCES = 2  # more models are a table


@dataclasses.dataclass(frozen=True)
class Attacked:
  """One number of the sentence."""

  accuracy: Cell  # with its interval
  attack: str
  images: str


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a page says of one model, at one radius of each norm."""

  model: str
  what: str
  parameters: int | None
  clean: Cell
  images: str  # how many were judged, and of which data
  at: str  # the norm and the radius
  attacked: Sequence[Attacked]


def verdicts(runs: Sequence[Run], problems: Problems) -> list[Verdict]:
  """A verdict a model and norm, of the runs that attacked it."""
  models = collections.defaultdict(list)
  for run in runs:
    if run.is_attack:
      models[run.model, run.results['summary']['norm']].append(run)
  chosen = radii(runs)
  out = []
  for (_, norm), own in models.items():
    made = problems.guard(
      f'the verdict on {own[0].name}',
      functools.partial(_verdict, own, norm, chosen[norm]),
    )
    out += [made] if made else []
  return out


def as_table(found: Sequence[Verdict]) -> Table | None:
  """The same as a row each, if there are more than a few; else None."""
  if len(found) <= _MOST_SENTENCES:
    return None
  names = list(dict.fromkeys(a.attack for v in found for a in v.attacked))
  headers, rows = ['model', *names, 'clean'], [_row(v, names) for v in found]
  caption = f'Accuracy of {len(found)} models'
  for what, values in (
    ('at', [v.at for v in found]),
    ('on', [v.images for v in found]),
  ):
    if len(set(values)) == 1:
      caption += f' {what} {values[0]}'
    else:
      headers.append(what)
      rows = [[*row, v] for row, v in zip(rows, values, strict=True)]
  headers.append('parameters')
  rows = [[*row, v.parameters] for row, v in zip(rows, found, strict=True)]
  return table(
    caption, headers, rows, 'In brackets: 95% intervals over images.'
  )


def _row(verdict: Verdict, names: Sequence[str]) -> list[object]:
  under = {a.attack: a for a in verdict.attacked}
  cells: list[object] = [verdict.model]
  for name in names:
    found = under.get(name)
    if found is None:
      cells.append(Cell(''))
    elif found.images == verdict.images:
      cells.append(found.accuracy)
    else:
      text = f'{found.accuracy.text} ({found.images})'
      cells.append(dataclasses.replace(found.accuracy, text=text))
  return [*cells, verdict.clean]


def describe(run: Run) -> str:
  """The model and its size, in words."""
  weights = run.results['weights']
  model = (run.results['asked']['config'] or {}).get('model') or {}
  parts = []
  if model.get('layers'):
    parts.append(
      f'{"V-MoE" if run.is_sparse else "ViT"} of {model["layers"]} layers, '
      f'{model.get("hidden")} wide'
    )
  if run.is_sparse:
    router = model.get('router') or {}
    each = experts_of(router, run.selected or router.get('selected'))
    parts.append(f'{model.get("experts")} experts, {each}')
    if run.results['asked']['experts'] == 'capacity':
      parts.append('their capacity limited')
  if weights['parameters'] is not None:
    parts.append(f'{weights["parameters"]:,} parameters')
  if weights['step'] is not None:
    parts.append(f'step {weights["step"]}')
  if weights['checkpoint']:
    parts.append(str(weights['checkpoint']))
  return ', '.join(parts) or 'a function without a checkpoint'


def experts_of(
  router: Mapping[str, Any] | ConfigDict, selected: int | None
) -> str:
  """Which experts process a token, in words.

  Args:
    router: `config.model.router`.
    selected: how many experts a token selects.
  """
  if router.get('name') == 'soft':
    slots = router.get('slots')
    return f'{slots} slot{"" if slots == 1 else "s"} each, mixed of all tokens'
  if router.get('name') == 'expert_choice':
    mean = (selected or 0) * router.get('capacity_factor', 1)
    return f'which choose their tokens, about {mean:.3g} a token'
  return f'{selected} a token'


def _verdict(runs: Sequence[Run], norm: str, at: str) -> Verdict:
  # Of the most images, the number of which is said with each.
  main = max(runs, key=lambda run: run.results['data']['examples'])
  # Of each attack the run of the most images; of several, the lowest accuracy.
  order = lambda pair: (
    -pair[0].results['data']['examples'],
    pair[1]['robust_accuracy']['value'] or 0,
  )
  there = [
    (run, row)
    for run in runs
    for row in run.results['rows']
    if radius(norm, row['eps']) == at
  ]
  found: dict[str, Attacked] = {}
  for run, row in sorted(there, key=order):
    found.setdefault(row['attack'], _attacked(run, row))
  attacked = list(found.values())
  if not attacked:  # not attacked at the radius of the others
    row = max(main.results['rows'], key=lambda row: row['eps'])
    at = radius(norm, row['eps'])
    attacked = [_attacked(main, row)]
  return Verdict(
    main.name,
    describe(main),
    main.results['weights']['parameters'],
    rate(main.results['summary']['clean_accuracy']),
    images(main.results),
    f'{norm} {at}',
    attacked,
  )


def _attacked(run: Run, row: Mapping[str, Any]) -> Attacked:
  shown = rate(row['robust_accuracy'])
  return Attacked(shown, attack_name(run, row), images(run.results))


def attack_name(run: Run, row: Mapping[str, Any]) -> str:
  """The attack of a row, and the settings that its name does not say."""
  name, settings = row['attack'], run.results['asked']['settings']
  plain, told = default().attack, ['compute_dtype']
  if name in _STEPPED:
    told += _TOLD
    steps = settings.get('steps', settings.get('iterations'))
    name += f' of {steps} step{"" if steps == 1 else "s"}' if steps else ''
  for field in told:
    if field in settings and settings[field] != plain[field]:
      name += f', {field.replace("_", " ")} {settings[field]}'
  return name


def images(results: Mapping[str, Any]) -> str:
  """How many images of which data."""
  data = results['data']
  return (
    f'{data["examples"]:,} images of {data["name"]} {data["split"]}'.strip()
  )


def radii(runs: Sequence[Run]) -> dict[str, str]:
  """Of each norm, the radius that most runs have; the middle one of several."""
  counts = collections.defaultdict(dict)
  for run in runs:
    if not run.is_attack:
      continue
    norm = run.results['summary']['norm']
    for row in run.results['rows']:
      counts[norm].setdefault(row['eps'], set()).add(run.name)
  out = {}
  for norm, found in counts.items():
    by_text = collections.Counter()
    for eps in sorted(found):
      by_text[radius(norm, eps)] += len(found[eps])
    most = max(by_text.values())
    best = [text for text, count in by_text.items() if count == most]
    is_usual = norm == _USUAL[0] and _USUAL[1] in best
    out[norm] = _USUAL[1] if is_usual else best[len(best) // 2]
  return out
