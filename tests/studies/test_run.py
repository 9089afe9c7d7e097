"""Both modes as `main` runs them, on one process and on several."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from vmoe_robust import checkpoint
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.config import UserError
from vmoe_robust.evaluate import corruptions, smoothing
from vmoe_robust.evaluate.kept import identity
from vmoe_robust.models import build, unbox
from vmoe_robust.report.records import read_records

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = {
  'corrupt': dict(names=('fog', 'shot_noise'), severities=(5,)),
  'certify': dict(n=20, n0=10, sigma=0.5),
}
RUN = {'corrupt': corruptions.run, 'certify': smoothing.run}
FILES = {'corrupt': 'corruptions', 'certify': 'certify'}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A tiny digits model as training leaves it."""
  workdir = tmp_path_factory.mktemp('runs') / 'digits'
  config = config_lib.default()
  config.data.threads = 2
  config.model.update(
    dict(hidden=16, layers=1, heads=2, mlp=16, num_classes=10, channels=1)
  )
  config.model.update(dict(experts=4, moe_every=1))
  model = build(config.model, (8, 8, 1), mesh_lib.create((2, 4, 1)))
  params = unbox(model.init(jax.random.key(0)))
  head = params['head']['kernel']
  params['head']['kernel'] = jax.random.normal(jax.random.key(1), head.shape)
  checkpoints = checkpoint.Checkpoints(workdir, config.save)
  checkpoints.save(1, {'params': params}, {'data': None})
  checkpoints.close()
  checkpoint.save_config(workdir, config)
  return workdir


def of_mode(mode, saved, **more):
  config = config_lib.default()
  config.mode, config.checkpoint = mode, str(saved)
  config.data.update(name='', split='test[:50]', threads=2)
  config[mode].update(FIELDS[mode])
  config[mode].update(more)
  return config


def test_of_a_folder_the_directory_is_the_data():
  config = config_lib.default()
  config.data.update(name='folder', dir='here')
  before = identity(config, 1, None)
  config.data.dir = 'there'
  assert identity(config, 1, None) != before
  config.data.name = 'cifar10'
  before = identity(config, 1, None)
  config.data.dir = 'here'
  assert identity(config, 1, None) == before


@pytest.mark.parametrize('mode', RUN)
def test_a_run_and_the_same_again(mode, saved, tmp_path, capsys):
  config = of_mode(mode, saved)
  RUN[mode](config, tmp_path)
  first = capsys.readouterr()
  assert 'written to' in first.out and f'{mode} ' in first.err
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['step'] == 1 and results['examples'] == 50
  assert results['versions']['jax'] and results['config']['mode'] == mode
  stamp = (tmp_path / 'results.json').stat().st_mtime_ns
  RUN[mode](config, tmp_path)
  again = capsys.readouterr().out
  assert 'is finished' in again and first.out.splitlines()[0] in again
  assert (tmp_path / 'results.json').stat().st_mtime_ns == stamp
  results['checkpoint_checksum'] = 'of other weights'
  (tmp_path / 'results.json').write_text(json.dumps(results))
  with pytest.raises(UserError, match='weights that changed since'):
    RUN[mode](config, tmp_path)
  config.seed = 1
  with pytest.raises(UserError, match=r'other results: config\.seed=1'):
    RUN[mode](config, tmp_path)


@pytest.mark.parametrize('mode', RUN)
def test_what_has_no_effect_is_refused(mode, saved, tmp_path):
  config = of_mode(mode, saved)
  config.attack.steps = 3
  words = rf'config\.attack\.steps=3 has no effect with .*{mode}'
  with pytest.raises(UserError, match=words):
    RUN[mode](config, tmp_path)


def test_missing_photographs_are_named_first(saved, tmp_path):
  config = of_mode('corrupt', saved, names=('frost',), frost_dir='nowhere')
  with pytest.raises(UserError, match='frost_dir.*nowhere'):
    corruptions.run(config, tmp_path)


@pytest.mark.parametrize('mode', RUN)
def test_two_processes_find_what_one_does(mode, saved, tmp_path):
  alone, pod = tmp_path / 'alone', tmp_path / 'pod'
  RUN[mode](of_mode(mode, saved), alone)
  flags = [f'--config.{mode}.{k}={v}' for k, v in FIELDS[mode].items()]
  finished = subprocess.run(
    [
      *(sys.executable, 'launch/local_pod.py', '-n', '2', '--devices', '2'),
      *('--logs', tmp_path / 'logs', '--'),
      f'--config=configs/{FILES[mode]}.py',
      *(f'--config.checkpoint={saved}', f'--workdir={pod}', *flags),
      '--config.data.split=test[:50]',
      f'--config.{mode}.batch_size=24',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert finished.returncode == 0, finished.stdout + finished.stderr
  here, there = (read_records(w / 'records.parquet') for w in (alone, pod))
  assert list(here) == list(there)
  for name in here:
    np.testing.assert_array_equal(here[name], there[name])
