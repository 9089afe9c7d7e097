import importlib.machinery
import json
import sys
import types

import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.report.records import write_records
from vmoe_robust.report.results import (
  FORMAT,
  VERSION,
  environment,
  read_results,
)


def saved(folder, **changes):
  write_records(folder / 'records.parquet', dict(index=np.arange(3)))
  parts = ('asked', 'weights', 'data', 'summary', 'files')
  found = {'format': FORMAT, 'format_version': VERSION}
  found |= {name: {} for name in parts}
  found |= dict(rows=[], warnings=[])
  found['files'] = {'records': {'name': 'records.parquet', 'rows': 3}}
  (folder / 'results.json').write_text(json.dumps(found | changes))
  return folder


def test_folder_and_file_are_read(tmp_path):
  for path in (saved(tmp_path), tmp_path / 'results.json'):
    found = read_results(path)
    assert found['format_version'] == VERSION
    assert found.records['index'].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(format='x'), "no format='vmoe_robust results'"),
    (dict(format_version=2), 'format_version=2; this program reads 1'),
  ],
)
def test_what_is_of_others_is_refused(tmp_path, changes, words):
  with pytest.raises(UserError, match=words):
    read_results(saved(tmp_path, **changes))


def test_what_is_missing_or_damaged_is_refused(tmp_path):
  with pytest.raises(UserError, match='results.json cannot be read .No such'):
    read_results(tmp_path)
  path = saved(tmp_path) / 'results.json'
  text = path.read_text()
  path.write_text(text[:-9])
  with pytest.raises(UserError, match='is damaged: it is no JSON'):
    read_results(tmp_path)
  path.write_text(text.replace('"weights"', '"heights"'))
  with pytest.raises(UserError, match="damaged: 'weights' is no object"):
    read_results(tmp_path)
  for rows, words in (
    ({}, "'rows' is no list"),
    ([3], "one of 'rows' has no 'condition'"),
    ([{'condition': 'clean'}, {}], "one of 'rows' has no 'condition'"),
  ):
    with pytest.raises(UserError, match=f'damaged: {words}'):
      read_results(saved(tmp_path, rows=rows))


def test_records_that_are_not_those_of_the_results(tmp_path):
  found, path = read_results(saved(tmp_path)), tmp_path / 'records.parquet'
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(UserError, match='records.parquet is damaged'):
    found.records  # noqa: B018
  write_records(path, dict(index=np.arange(4)))
  with pytest.raises(UserError, match='has 4 rows and results.json says 3'):
    found.records  # noqa: B018
  path.unlink()
  with pytest.raises(UserError, match='is missing; copy the whole folder'):
    found.records  # noqa: B018


@pytest.mark.parametrize(
  ('module', 'command'),
  [
    ('vmoe_robust.main', "python -m vmoe_robust.main '--config=a b'"),
    ('ipykernel_launcher', None),
  ],
)
def test_the_command_is_recorded(monkeypatch, module, command):
  main = types.ModuleType('__main__')
  main.__spec__ = importlib.machinery.ModuleSpec(module, None)
  monkeypatch.setitem(sys.modules, '__main__', main)
  monkeypatch.setattr(sys, 'argv', ['x.py', '--config=a b'])
  assert environment()['command'] == command
