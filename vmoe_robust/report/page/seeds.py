"""Runs that differ in nothing but their seed, together."""

import collections
import dataclasses
from collections.abc import Sequence

from vmoe_robust.config import machine_fields
from vmoe_robust.report import statistics
from vmoe_robust.report.page.runs import Run
from vmoe_robust.report.page.shown import Shown, of_figure
from vmoe_robust.report.page.tables import rate, table
from vmoe_robust.report.verdicts import CLEAN

# By which runs of several seeds may differ, besides the machine's.
_SEEDS = ('config.seed', 'config.checkpoint')


def seeds(runs: Sequence[Run]) -> list[Shown]:
  """Mean and interval over runs that differ in nothing but seed and weights."""
  groups = collections.defaultdict(list)
  for run in runs:
    if run.is_attack and run.config:
      own = (*_SEEDS, *machine_fields(run.results['data']['name']))
      same = (
        f'{name}={value!r}'
        for name, value in run.config.items()
        if not name.startswith(own)
      )
      data = tuple(
        run.results['data'][n] for n in ('name', 'split', 'examples')
      )
      # Two steps of one training are no two seeds.
      groups[(*same, data, run.results['weights']['step'])].append(run)
  out = []
  for group in groups.values():
    if len({run.weights for run in group}) < len(group) or len(group) < 2:
      continue
    data = {run.results['data'].get('fingerprint') for run in group} - {None}
    if len(data) > 1:  # None is of older versions, and may be any
      continue
    out.append(_over_seeds(group))
  return out


def _over_seeds(group: Sequence[Run]) -> Shown:
  names = {
    row['condition']: None for run in group for row in run.results['rows']
  }
  bars, lines = [], []
  for name in (CLEAN, *names):
    found = [_share(run, name) for run in group]
    known = [one for one in found if one and one['value'] is not None]
    if len(known) < 2:
      continue
    whole = statistics.over_seeds(known, statistics.SHARE)
    low, high = whole['interval'] or (None, None)  # all alike
    dots = [one['value'] for one in known]
    bars.append(
      {'label': name, 'value': whole['value'], 'low': low, 'high': high}
      | {'dots': dots}
    )
    lines.append([name, rate(whole), *map(rate, found)])
  caption = f'Over {len(group)} seeds, {group[0].name} and the like'
  shown = of_figure(
    {'title': caption, 'x_label': 'accuracy', 'bars': bars},
    caption,
    'Small dots are runs, one a seed; the large point is their mean with the '
    "95% interval of Student's t over seeds, which holds for other seeds. The "
    'interval of one run holds for other images.',
  )
  headers = ('condition', 'mean', *(run.name for run in group))
  return dataclasses.replace(shown, table=table(caption, headers, lines))


def _share(run: Run, condition: str):
  if condition == CLEAN:
    return run.results['summary'].get('clean_accuracy')
  for row in run.results['rows']:
    if row['condition'] == condition:
      return row['robust_accuracy']
  return None
