"""What an experiment found as Markdown, for a page of documentation."""

from collections.abc import Mapping, Sequence

import numpy as np

from vmoe_robust.experiment import comparing
from vmoe_robust.experiment.parts import Part
from vmoe_robust.experiment.states import FINISHED, State
from vmoe_robust.experiment.usage import Usage
from vmoe_robust.report.results import Results, read_results
from vmoe_robust.report.table import in_words, percent

MARKDOWN = 'results.md'  # in the experiment's folder
# Of a sweep of radii, how many a table has.
_MOST = 5


def markdown(
  about: Mapping[str, str],
  parts: Sequence[Part],
  states: Mapping[str, State],
  usage: Mapping[str, Usage],
  accuracies: Sequence[Mapping],
  comparisons: Sequence[Mapping],
) -> str:
  """Accuracies, comparisons and what they cost, as tables.

  Args:
    about: 'name' and 'command' of the experiment.
    parts: all of them.
    states: of all, by name.
    usage: what they took, by name of the part.
    accuracies: of `accuracies.accuracies`.
    comparisons: of `comparing.compare`.
  """
  results = _results(parts, states)
  sizes = {run: found['weights'] for run, found in results}
  headers, lines = comparing.cells(comparisons)
  sections = [
    f'# {about["name"]}\n\n    {about["command"]}',
    _where([found for _, found in results]),
    '## Accuracy',
    "Mean over seeds with 95% intervals (Student's t; of one seed Wilson's "
    'over images).',
    _accuracies(accuracies),
  ]
  if lines:
    sections += [
      '## Pairs of runs',
      'The same images, seed by seed; differences are in percentage points. '
      "Interval: over seeds, of one seed the bootstrap's over images. p: "
      "McNemar's exact test of each seed, not corrected for the number of "
      'lines.',
      _table(headers, lines),
    ]
  sections += [
    '## What it took',
    'Means over seeds, in CPU-seconds; memory is the most of any part, beside '
    'that of devices.',
    _usage(parts, usage, sizes),
  ]
  return '\n\n'.join(sections) + '\n'


def _results(parts, states) -> list[tuple[str, Results]]:
  """Of each attack that is finished its run and its results."""
  return [
    (part.run, read_results(part.folder))
    for part in parts
    if part.mode == 'attack' and states[part.name].name == FINISHED
  ]


def _where(results: Sequence[Results]) -> str:
  """Software and hardware, each value that any of them had."""
  said = []
  for group in ('software', 'hardware'):
    names = dict.fromkeys(n for r in results for n in r[group])
    for name in names:
      values = dict.fromkeys(str(r[group].get(name)) for r in results)
      said.append(f'{name} {" or ".join(values)}')
  return ', '.join(said) + '.' if said else 'Nothing is finished yet.'


def _accuracies(rows: Sequence[Mapping]) -> str:
  """A line a run, a column a condition."""
  columns: dict[tuple[str, str], str] = {}
  for attack in dict.fromkeys(row['attack'] for row in rows):
    own = dict.fromkeys(r['condition'] for r in rows if r['attack'] == attack)
    names = list(own)
    if len(names) - 1 > _MOST:  # a sweep: some, with its last
      names = names[::-1][:: len(names) // _MOST][:_MOST][::-1]
    for name in names:
      columns.setdefault((attack, name), in_words(name))
  cells = {(row['run'], row['attack'], row['condition']): row for row in rows}
  # The clean images of all attacks are the same column.
  shown = dict.fromkeys(columns.values())
  lines = []
  for run in dict.fromkeys(row['run'] for row in rows):
    line = []
    for text in shown:
      found = [
        cells[run, attack, name]
        for (attack, name), words in columns.items()
        if words == text and (run, attack, name) in cells
      ]
      line.append(_estimate(found[0]) if found else '')
    lines.append([run, *line])
  return _table(('run', *shown), lines)


def _estimate(row: Mapping) -> str:
  accuracy = row['accuracy']
  text = percent(accuracy['value'])
  if accuracy['interval']:
    low, high = accuracy['interval']
    text += f' ({100 * low:.1f} to {100 * high:.1f})'
  return f'{text}, n = {accuracy["n"]}' if accuracy['n'] > 1 else text


def _usage(parts, usage, sizes: Mapping[str, Mapping]) -> str:
  asked = dict.fromkeys(p.asked for p in parts if p.name in usage)
  lines = []
  for run in dict.fromkeys(part.run for part in parts):
    weights = sizes.get(run, {})
    line = [run]
    for name in ('parameters', 'flops_per_image'):
      value = weights.get(name)
      line.append('' if value is None else f'{value:,}')
    own = [part for part in parts if part.run == run and part.name in usage]
    for name in asked:
      each = [usage[p.name].cpu_seconds for p in own if p.asked == name]
      line.append(f'{np.mean(each):.0f}' if each else '')
    peak = max((usage[part.name].peak_bytes for part in own), default=0)
    line.append(f'{peak / 2**30:.2f} GiB' if peak else '')
    lines.append(line)
  names = [name or 'training' for name in asked]
  return _table(
    ('run', 'parameters', 'FLOPs an image', *names, 'memory'), lines
  )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  line = lambda cells: f'| {" | ".join(cells)} |'
  rule = '|---' + '|--:' * (len(headers) - 1) + '|'
  return '\n'.join([line(headers), rule, *map(line, rows)])
