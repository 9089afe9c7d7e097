import json

import numpy as np
import pytest

from vmoe_robust.report.records import write_records
from vmoe_robust.report.results import FORMAT, VERSION
from vmoe_robust.report.statistics import rate

CONDITION = 'pgd linf 16/255'


def estimate(right):
  if len(right):
    return rate(np.array(right))
  return {'value': None, 'interval': None, 'n': 0}


def results(before, after, labels, **changes):
  """Of an attack on few images, of which `after` are still right."""
  clean, robust = (
    estimate([p == y for p, y in zip(found, labels, strict=True)])
    for found in (before, after)
  )
  row = {
    'condition': CONDITION,
    'attack': 'pgd',
    'norm': 'linf',
    'eps': 16 / 255,
    'robust_accuracy': robust,
    'loss_after': {'value': 0.123456789, 'interval': [0.1, 0.2], 'n': 4},
    'per_attack': {'pgd': {'robust_after': robust, 'seconds': 1.5}},
  }
  weights = {'checkpoint': 'runs/a', 'step': 7, 'checksum': 'c0ffee'}
  config = {'mode': 'attack', 'seed': 0, 'model': {'layers': 4, 'hidden': 64}}
  found = {
    'format': FORMAT,
    'format_version': VERSION,
    'asked': {'mode': 'attack', 'name': 'pgd', 'experts': 'dropless'}
    | {'settings': {}, 'seed': 0, 'config': config},
    'weights': weights | {'parameters': 12345, 'flops_per_image': 1},
    'data': {'name': 'digits', 'split': 'test', 'examples': len(labels)}
    | {'skipped': {'count': 0, 'names': []}},
    'software': {'python': '3', 'vmoe_robust': '0', 'jax': '0'},
    'hardware': {'devices': 1, 'kind': 'cpu', 'processes': 1},
    'intervals': {'level': 0.95, 'rates': 'Wilson', 'means': 'bootstrap'},
    'summary': {'attack': 'pgd', 'norm': 'linf', 'clean_accuracy': clean},
    'rows': [row],
    'warnings': [],
    'speed': {},
    'files': {'figures': []},
  }
  for path, value in changes.items():
    *groups, name = path.split('__')
    place = found
    for group in groups:
      place = place[group]
    place[name] = value
  return found


@pytest.fixture
def save_run(tmp_path):
  """Writes a run: its folder's name, predictions, and fields to change."""

  def save(name, after, before=None, labels=(0, 1, 2, 3), more=None, **changes):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    labels = list(labels)
    before = labels if before is None else before
    count = len(labels)
    columns = {
      'index': np.arange(count),
      'label': np.array(labels, np.int32),
      'condition': np.full(count, CONDITION),
      'prediction_before': np.array(before, np.int32),
      'prediction_after': np.array(after, np.int32),
    } | (more or {})
    write_records(folder / 'records.parquet', columns)
    found = results(before, after, labels, **changes)
    found['files']['records'] = {
      'name': 'records.parquet',
      'rows': count,
      'columns': list(columns),
    }
    (folder / 'results.json').write_text(json.dumps(found))
    return folder

  return save
