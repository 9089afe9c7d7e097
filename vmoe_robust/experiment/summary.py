"""What is said of an experiment as a whole: its list, and experiment.json."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from vmoe_robust.experiment import cost
from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import State
from vmoe_robust.experiment.usage import Usage
from vmoe_robust.report.page.experiment import FORMAT, SUMMARY, VERSION
from vmoe_robust.report.table import table

_FOUND = ('accuracies', 'measures', 'relations', 'figures')


def listing(every: Sequence[Part], found: Mapping[str, State]) -> str:
  """The parts as a table, and which of them can run at the same time."""
  lines = [
    [part.number, part.name, found[part.name].name, price]
    for part, price in zip(every, cost.costs(every), strict=True)
  ]
  headers = ('part', 'name', 'state', 'cost at most')
  stages = collections.defaultdict(list)
  for part in every:
    stages[part.stage].append(part.number)
  ranges = [f'{min(s)}-{max(s)}' for s in stages.values()]
  return '\n'.join(
    [
      table(headers, lines),
      *details(every, found),
      'parts that can run at the same time, one group after the other: '
      + ', '.join(ranges),
    ]
  )


def details(every: Sequence[Part], found: Mapping[str, State]) -> list[str]:
  """A line for each part of which there is more to say than its state."""
  return [
    f'{part.number} {part.name}: {found[part.name].name}: '
    f'{found[part.name].detail}'
    for part in every
    if found[part.name].detail
  ]


def earlier(folder: Path, config: ConfigDict, name: str) -> dict[str, list]:
  """What an earlier command found of the same experiment; else nothing.

  Args:
    folder: of the experiment, which others may share.
    config: the experiment, checked.
    name: of the experiment.
  """
  try:
    found = json.loads((folder / SUMMARY).read_text())
    if (found['name'], found['description']) != (name, _description(config)):
      return {}
    return {of: list(found[of]) for of in _FOUND}
  except (OSError, ValueError, LookupError, TypeError):
    return {}


def _description(config: ConfigDict) -> str:
  """A checksum of all that an experiment asks."""
  text = json.dumps(config.to_dict(), sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def summary(
  config: ConfigDict,
  every: Sequence[Part],
  found: Mapping[str, State],
  used: Mapping[str, Usage],
  accuracies: Sequence[Mapping] = (),
  measures: Sequence[Mapping] = (),
  relations: Sequence[Mapping] = (),
  figures: Sequence[Mapping] = (),
) -> dict:
  """What experiment.json says.

  Args:
    config: the experiment, checked.
    every: its parts.
    found: their states, by name.
    used: what they took so far, by name.
    accuracies: of `accuracies.accuracies`.
    measures: of `measures.measures`.
    relations: of `measures.relations`.
    figures: of `report.writing.draw`.
  """
  said = [
    {
      'number': part.number,
      'name': part.name,
      'mode': part.mode,
      'run': part.run,
      'asked': part.asked,
      'seed': part.seed,
      'folder': part.name,  # in this one's
      'needs': part.needs,
      'state': found[part.name].name,
      'detail': found[part.name].detail,
      'command': part.shown(),
      'usage': dataclasses.asdict(used[part.name])
      if part.name in used
      else None,
    }
    for part in every
  ]
  return {
    'format': FORMAT,
    'format_version': VERSION,
    'description': _description(config),
    'runs': [run['name'] for run in config.runs],
    'seeds': list(config.seeds),
    'comparisons': [list(pair) for pair in config.comparisons],
    'parts': said,
    'accuracies': list(accuracies),
    'measures': list(measures),
    'relations': list(relations),
    'figures': list(figures),
  }
