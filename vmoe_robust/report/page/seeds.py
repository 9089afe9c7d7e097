"""Runs that differ in nothing but their seed, together."""

import collections
import dataclasses
import re
from collections.abc import Sequence

from vmoe_robust.config import machine_fields
from vmoe_robust.report import statistics
from vmoe_robust.report.page.runs import Problems, Run
from vmoe_robust.report.page.shown import Shown, of_figure
from vmoe_robust.report.page.tables import rate, table
from vmoe_robust.report.verdicts import CLEAN

# By which attacks of several seeds may differ, besides the machine's fields.
_SEEDS = ('config.seed', 'config.checkpoint', 'config.study.')
# And a part of the path of the weights that an experiment's run starts from.
_START, _SEED = 'config.init_from', re.compile(r'_seed\d+(?=/checkpoints/)')


def seeds(runs: Sequence[Run], problems: Problems) -> list[Shown]:
  """Mean and interval over runs that differ in nothing but seed and weights.

  Args:
    runs: of which those are looked for.
    problems: gets a line for each that is left out as a copy of another one.
  """
  groups = collections.defaultdict(list)
  for run in runs:
    if run.is_attack and run.config:
      own = (*_SEEDS, *machine_fields(run.results['data']['name']))
      same = (
        f'{name}={_of_any_seed(name, value)!r}'
        for name, value in run.config.items()
        if not name.startswith(own)
      )
      data = tuple(
        run.results['data'][n] for n in ('name', 'split', 'examples')
      )
      # Two steps of one training are no two seeds.
      groups[(*same, data, run.results['weights']['step'])].append(run)
  out = []
  for found in groups.values():
    kept: dict[tuple[object, ...], Run] = {}
    for run in found:
      kept.setdefault(run.weights, run)
    group = list(kept.values())
    data = {run.results['data'].get('fingerprint') for run in group} - {None}
    # None is of older versions, and may be any.
    if len(group) < 2 or len(data) > 1:
      continue
    for run in found:
      if run is not kept[run.weights]:
        problems.add(
          f'{run.name} in the mean over seeds, for its weights are those of '
          f'{kept[run.weights].name}'
        )
    out.append(_over_seeds(group))
  return out


def _of_any_seed(name: str, value: object) -> object:
  if name == _START and isinstance(value, str):
    return _SEED.sub('_seed', value)
  return value


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
