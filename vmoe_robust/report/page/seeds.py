"""Runs that differ in nothing but their seed, together."""

import collections
import dataclasses
from collections.abc import Sequence

from vmoe_robust.config import MACHINE_FIELDS
from vmoe_robust.report import statistics
from vmoe_robust.report.page.runs import Run
from vmoe_robust.report.page.shown import Shown, of_figure
from vmoe_robust.report.page.tables import rate, table
from vmoe_robust.report.verdicts import CLEAN

# By which runs of several seeds may differ.
_SEEDS = ('config.seed', 'config.checkpoint', *MACHINE_FIELDS)


def seeds(runs: Sequence[Run]) -> list[Shown]:
  """Mean and interval over runs that differ in nothing but seed and weights."""
  groups = collections.defaultdict(list)
  for run in runs:
    if run.is_attack and run.config:
      same = (f'{k}={v!r}' for k, v in run.config.items() if not _is_seed(k))
      data = tuple(
        run.results['data'][n] for n in ('name', 'split', 'examples')
      )
      groups[(*same, data)].append(run)
  out = []
  for group in groups.values():
    if len({run.model for run in group}) < len(group) or len(group) < 2:
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
    whole = statistics.over_seeds(known, is_rate=True)
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


def _is_seed(name: str) -> bool:
  groups = tuple(field for field in _SEEDS if field.endswith('.'))
  return name in _SEEDS or name.startswith(groups)
