import contextlib
import json
import logging
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from vmoe_robust import files
from vmoe_robust.config import UserError
from vmoe_robust.files import locked


def test_a_second_program_is_refused_and_a_killed_one_leaves_nothing(tmp_path):
  code = (
    'import sys, time\n'
    'from vmoe_robust.files import locked\n'
    'with locked(sys.argv[1]):\n'
    '  print("in", flush=True)\n'
    '  time.sleep(600)\n'
  )
  other = subprocess.Popen(
    [sys.executable, '-c', code, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert other.stdout.readline() == 'in\n'
  with pytest.raises(UserError, match=f'--workdir={tmp_path} is in use'):
    with locked(tmp_path):
      raise AssertionError
  other.kill()
  other.communicate()
  with locked(tmp_path):
    pass
  with locked(tmp_path / 'new', 'folder'):
    pass


def test_a_program_that_wrote_nothing_leaves_no_folder(tmp_path):
  def refused(folder, name=''):
    with pytest.raises(UserError), locked(folder):
      if name:
        (folder / name).touch()
      raise UserError('no')

  there = tmp_path / 'there'
  there.mkdir()
  for folder in (there, tmp_path / 'new'):
    refused(folder)
  assert list(tmp_path.iterdir()) == [there]
  refused(tmp_path / 'new', 'log')
  assert sorted(p.name for p in (tmp_path / 'new').iterdir()) == [
    *('.lock', 'log')
  ]


def test_json_comes_back(tmp_path):
  path = tmp_path / 'deep' / 'results.json'
  data = {
    'clean_accuracy': np.float32(0.5),
    'eps': (0.1, 0.2),
    'counts': np.arange(3),
    'flag': np.bool_(True),
    'per_eps': {0.1: {'robust_accuracy': 0.25}},
    'nothing': None,
    'text': 'a',
  }
  files.write_json(path, data)
  assert json.loads(path.read_text()) == {
    'clean_accuracy': 0.5,
    'eps': [0.1, 0.2],
    'counts': [0, 1, 2],
    'flag': True,
    'per_eps': {'0.1': {'robust_accuracy': 0.25}},
    'nothing': None,
    'text': 'a',
  }


def test_values_that_json_lacks_become_null():
  data = {'a': [float('nan'), np.float32('inf')], 'b': np.array([-np.inf, 1])}
  assert json.loads(files.to_json(data)) == {'a': [None] * 2, 'b': [None, 1]}


def test_a_failure_keeps_the_old_file(tmp_path):
  path = tmp_path / 'results.json'
  files.write_json(path, {'a': 1})
  with pytest.raises(TypeError):
    files.write_json(path, {'a': object()})
  with pytest.raises(RuntimeError), files.replacing(path) as draft:
    draft.write_text('half')
    raise RuntimeError
  assert json.loads(path.read_text()) == {'a': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['results.json']


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  for text in ('~/runs', '~'):
    assert str(files.path(text)) == text.replace('~', str(tmp_path))
    assert files.local_path(text, 'x') == pathlib.Path(files.path(text))
  assert str(files.path('a/~/b')) == 'a/~/b'
  assert str(files.path('gs://bucket/~/b')) == 'gs://bucket/~/b'
  with pytest.raises(UserError, match="--workdir='~no.such/x'.*unknown user"):
    files.path('~no.such/x', '--workdir')
  with files.locked('~/runs'):
    files.write_json('~/runs/a.json', {})
  files.require_writable('~/new')
  assert sorted(p.name for p in tmp_path.rglob('*')) == [
    *('.lock', 'a.json', 'new', 'runs')
  ]


def test_an_address_is_refused_where_a_folder_is_written_to(
  monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  for use in (
    lambda: files.require_writable('gs://bucket/run'),
    lambda: files.write_json('gs://bucket/run/a.json', {}),
    lambda: files.locked('gs://bucket/run').__enter__(),
  ):
    with pytest.raises(UserError, match="'gs://bucket/run.*is an address"):
      use()
  assert not list(tmp_path.iterdir())


def test_what_a_store_logs_of_a_failure_is_said_once(caplog):
  logger = logging.getLogger('gcsfs')
  with files.said_once(), contextlib.suppress(OSError):
    logger.error('out of retries')
    raise OSError
  assert not caplog.records
  logger.warning('later')
  assert len(caplog.records) == 1
