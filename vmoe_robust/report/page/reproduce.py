"""What it takes to get the same numbers again, and an entry of RobustBench."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

from vmoe_robust.report.page.runs import Run
from vmoe_robust.report.page.tables import Table, of_values
from vmoe_robust.report.table import radius


@dataclasses.dataclass(frozen=True)
class _Bench:
  """What RobustBench asks of a data set."""

  name: str
  split: str
  images: int
  size: int  # pixels a side; 0: any, as models take them
  radii: Mapping[str, str]  # by norm


_BENCHES = {
  'cifar10': _Bench(
    'cifar10', 'test', 10_000, 32, {'linf': '8/255', 'l2': '0.5'}
  ),
  'cifar100': _Bench('cifar100', 'test', 10_000, 32, {'linf': '8/255'}),
  'imagenet2012': _Bench('imagenet', 'validation', 5_000, 0, {'linf': '4/255'}),
}
# Fields of a row: how many x_adv are no valid ones.
_OUTSIDE = ('outside_ball', 'outside_range')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What one run was."""

  run: Run
  facts: Table
  config: str  # as JSON
  command: str | None
  entry: str | None  # of RobustBench, as JSON


def recipes(runs: Sequence[Run]) -> list[Recipe]:
  """Of each run its weights, data, software and configuration."""
  out = []
  for run in runs:
    results = run.results
    facts = {
      name: results.get(name) or {}
      for name in ('weights', 'data', 'software', 'hardware', 'intervals')
    }
    facts['asked'] = {
      name: results['asked'].get(name)
      for name in ('mode', 'name', 'experts', 'seed')
    }
    facts['speed'] = results.get('speed') or {}
    config = json.dumps(results['asked']['config'], indent=1)
    table = of_values(f'Facts of {run.name}', facts)
    command = results.get('command')
    out.append(Recipe(run, table, config, command, robustbench(run)))
  return out


def robustbench(run: Run) -> str | None:
  """An entry of RobustBench's model_info; None if the run does not qualify.

  It has to be the authors' AutoAttack at full length and precision, at the
  benchmark's radius and on as many images of its split and size as it asks for,
  each judged alone by the model as it was trained, and no x_adv may have left
  the ball or the range of pixels.
  """
  results, data = run.results, run.results['data']
  bench = _BENCHES.get(data['name'])
  if bench is None or not run.is_attack:
    return None
  config = results['asked']['config'] or {}
  size = (config.get('data') or {}).get('image_size')
  dtype = results['asked']['settings'].get('compute_dtype') or (
    config.get('model') or {}
  ).get('compute_dtype', 'float32')
  if (
    data['examples'] < bench.images
    or data['split'].split('[')[0] != bench.split
    or bench.size not in (0, size)
    or results['summary']['attack'] != 'autoattack'
    or dtype != 'float32'
    or any(row.get(n) for row in results['rows'] for n in _OUTSIDE)
    or results['asked']['experts'] == 'capacity'
    or run.selected
  ):
    return None
  for row in results['rows']:
    at = radius(row['norm'], row['eps'])
    if at == bench.radii.get(row['norm']):
      entry = _entry(run, row, bench.name, at)
      return json.dumps(entry, indent=2)
  return None


def _entry(run: Run, row: Mapping, name: str, at: str) -> dict:
  results = run.results
  accuracy = 100 * row['robust_accuracy']['value']
  clean = 100 * results['summary']['clean_accuracy']['value']
  return {
    'link': None,
    'name': None,
    'authors': None,
    'additional_data': None,
    'number_forward_passes': 1,
    'dataset': name,
    'venue': None,
    'architecture': _architecture(run),
    'eps': at,
    'clean_acc': f'{clean:.2f}',
    'reported': f'{accuracy:.2f}',
    'autoattack_acc': f'{accuracy:.2f}',
  }


def _architecture(run: Run) -> str:
  model = (run.results['asked']['config'] or {}).get('model') or {}
  kind = 'V-MoE' if run.is_sparse else 'ViT'
  return f'{kind}-{model.get("layers")}-{model.get("hidden")}'
