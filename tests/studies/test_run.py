"""Studies as `main` runs them, on one process and on several."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import vmoe_robust
from tests.slow import all_slow_but
from vmoe_robust import checkpoint
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.config import UserError
from vmoe_robust.data import open_source
from vmoe_robust.evaluate import job
from vmoe_robust.evaluate.classifier import restore
from vmoe_robust.evaluate.identity import identity
from vmoe_robust.models import build, unbox
from vmoe_robust.report.records import read_records
from vmoe_robust.robustness.resume import Unfinished
from vmoe_robust.studies import STUDIES, run

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = {
  'corruptions': dict(names=('fog', 'shot_noise'), severities=(5,)),
  'misrouting': dict(names=('fog', 'shot_noise'), severities=(5,)),
  'certificates': dict(n=20, n0=10, sigma=0.5),
  'jacobian': dict(iterations=3),
  'routing_attacks': dict(left_by='apgd_ce', lambdas=(0.1, 1.0)),
}
# Of studies that attack.
ATTACK = dict(steps=2, eps=(0.1, 0.3))
# Studies of a checkpoint; test_theory.py runs the one that needs none.
OF_A_CHECKPOINT = [name for name in STUDIES if name != 'theory']
# Two that pass over the examples in their own way, and two that share x_adv, of
# which the second counts use in a pass of its own.
ON_PODS = ('certificates', 'misrouting', 'routing_change', 'pruning')


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
  params = unbox(jax.jit(model.init)(jax.random.key(0)))
  head = params['head']['kernel']
  params['head']['kernel'] = jax.random.normal(jax.random.key(1), head.shape)
  checkpoints = checkpoint.Checkpoints(workdir, config.save)
  checkpoints.save(1, {'params': params}, {'data': None})
  checkpoints.close()
  checkpoint.save_config(workdir, config)
  return workdir


def of_study(name, saved, **more):
  config = config_lib.default()
  config.mode, config.study.name = 'study', name
  config.checkpoint = str(saved)
  config.data.update(name='', split='test[:50]', threads=2)
  config.study[name].update(FIELDS.get(name, {}))
  if name == 'transfer':
    more['others'] = (str(saved),)
  config.study[name].update(more)
  if config_lib.attacks(config):
    config.attack.update(ATTACK)
  if name == 'norm_union':
    config.attack.eps = config_lib.default().attack.eps
  return config


def test_of_a_folder_the_directory_is_the_data():
  config = config_lib.default()
  source = open_source(config.data, 'test')
  config.data.update(name='folder', dir='here')
  before = identity(config, 1, None, source)
  config.data.dir = 'there'
  assert identity(config, 1, None, source) != before
  config.data.name = 'cifar10'
  before = identity(config, 1, None, source)
  config.data.dir = 'here'
  assert identity(config, 1, None, source) == before
  part = open_source(config_lib.default().data, 'test[1:]')
  assert identity(config, 1, None, part) != before


def test_examples_that_changed_are_noticed(
  saved, tmp_path, capsys, monkeypatch
):
  config = of_study('corruptions', saved)
  put = Unfinished.put

  def stop(self, name, arrays):
    put(self, name, arrays)
    self.wait()
    raise KeyboardInterrupt

  monkeypatch.setattr(Unfinished, 'put', stop)
  with pytest.raises(KeyboardInterrupt):
    run.run(config, tmp_path)
  monkeypatch.undo()
  other = lambda data, split: open_source(data, 'test[1:51]')
  monkeypatch.setattr(job, 'open_source', other)
  with pytest.raises(UserError, match='the fingerprint of the examples is '):
    run.run(config, tmp_path)
  monkeypatch.undo()
  run.run(config, tmp_path)
  monkeypatch.setattr(job, 'open_source', other)
  with pytest.raises(UserError, match="examples of 'digits' that changed"):
    run.run(config, tmp_path)

  def gone(data, split):
    raise UserError('no such directory')

  monkeypatch.setattr(job, 'open_source', gone)
  capsys.readouterr()
  run.run(config, tmp_path)
  assert 'is finished' in capsys.readouterr().out


def test_every_study_has_its_fields():
  fields = set(config_lib.studies(config_lib.default().study))
  assert fields == set(STUDIES)


@pytest.mark.parametrize('name', all_slow_but(['corruptions'], OF_A_CHECKPOINT))
def test_a_run_and_the_same_again(name, saved, tmp_path, capsys, check_form):
  config = of_study(name, saved)
  run.run(config, tmp_path)
  first = capsys.readouterr()
  assert 'written to' in first.out
  results = check_form(tmp_path)
  assert results['weights']['step'] == 1 and results['data']['examples'] == 50
  asked = results['asked']
  assert (asked['mode'], asked['name']) == ('study', name)
  assert FIELDS.get(name, {}).items() <= config.study[name].to_dict().items()
  assert asked['settings'] == results['asked']['config']['study'][name]
  assert results['files']['figures']
  for figure in results['files']['figures']:
    for part in ('data', 'picture'):
      assert (tmp_path / figure[part]).stat().st_size > 200
  read = vmoe_robust.read_results(tmp_path)
  assert read == results
  assert read.records.num_rows == results['files']['records']['rows']
  stamp = (tmp_path / 'results.json').stat().st_mtime_ns
  run.run(config, tmp_path)
  again = capsys.readouterr().out
  assert 'is finished' in again and first.out.splitlines()[0] in again
  assert (tmp_path / 'results.json').stat().st_mtime_ns == stamp
  results['weights']['checksum'] = 'of other weights'
  (tmp_path / 'results.json').write_text(json.dumps(results))
  with pytest.raises(UserError, match='weights that changed since'):
    run.run(config, tmp_path)
  config.seed = 1
  with pytest.raises(UserError, match=r'other results: config\.seed=1'):
    run.run(config, tmp_path)


@pytest.mark.slow
def test_several_in_one_start(saved, tmp_path, capsys, monkeypatch):
  reads = []
  monkeypatch.setattr(
    run, 'restore', lambda *args: reads.append(1) or restore(*args)
  )
  config = of_study('certificates', saved, **FIELDS['certificates'])
  config.study.names = ('certificates', 'transfer', 'jacobian')
  config.study.jacobian.update(FIELDS['jacobian'])
  config.attack.update(ATTACK)
  with pytest.raises(UserError, match='names.*: transfer; the first'):
    run.run(config, tmp_path)
  assert len(reads) == 1
  assert 'transfer: config.study.transfer.others' in capsys.readouterr().out
  for name in ('certificates', 'jacobian'):
    found = vmoe_robust.read_results(tmp_path / name)
    assert found['asked']['name'] == name
  alone = of_study('jacobian', saved)
  run.run(alone, tmp_path / 'alone')
  assert (
    vmoe_robust.read_results(tmp_path / 'alone')['rows']
    == vmoe_robust.read_results(tmp_path / 'jacobian')['rows']
  )


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'study.names': ('jacobian', 'jacobian')}, 'has one twice'),
    ({'study.names': ('nothing',)}, "study.names='nothing'.*jacobian"),
    (
      {'study.names': ('jacobian',), 'attack.steps': 3},
      'attack.steps=3 has no effect with config.study.names',
    ),
    (
      {'study.names': ('jacobian',), 'study.losses.batch_size': 3},
      'losses.batch_size=3 has no effect with config.study.names',
    ),
    (
      {'study.names': ('norm_union',), 'attack.norm': 'l2'},
      "attack.norm='l2' has no effect with config.study.names",
    ),
  ],
)
def test_names_that_make_no_sense(change, match, saved, tmp_path):
  config = of_study('jacobian', saved)
  config.update_from_flattened_dict(change)
  with pytest.raises(UserError, match=match):
    run.run(config, tmp_path)


@pytest.mark.slow
def test_another_checkpoint_that_changed_is_noticed(saved, tmp_path):
  other = tmp_path / 'other'
  shutil.copytree(saved, other)
  config = of_study('transfer', saved)
  config.study.transfer.others = (str(other),)
  run.run(config, tmp_path / 'found')
  weights = checkpoint.Checkpoints(other, config.save)
  kernel = np.zeros(4, np.float32)
  weights.save(2, {'params': {'kernel': kernel}}, {'data': None})
  weights.close()
  with pytest.raises(
    UserError, match='other results: .*transfer.found=.*step 2'
  ):
    run.run(config, tmp_path / 'found')


@pytest.mark.slow
def test_a_finished_run_is_shown_from_a_disk_that_cannot_be_written(
  saved, tmp_path, capsys, monkeypatch
):
  config = of_study('corruptions', saved)
  run.run(config, tmp_path)
  table = capsys.readouterr().out

  def refuse(workdir):
    raise UserError(f'--workdir={workdir} is not writable')

  monkeypatch.setattr(job, 'require_writable', refuse)
  monkeypatch.setattr(job, 'locked', refuse)
  run.run(config, tmp_path)
  assert table in capsys.readouterr().out
  (tmp_path / 'results.json').unlink()
  with pytest.raises(UserError, match='is not writable'):
    run.run(config, tmp_path)


@pytest.mark.parametrize('name', OF_A_CHECKPOINT)
def test_what_has_no_effect_is_refused(name, saved, tmp_path):
  config = of_study(name, saved)
  if not config_lib.attacks(config):
    config.attack.steps = 3
    words = r'config\.attack\.steps=3 has no effect with .*study'
    with pytest.raises(UserError, match=words):
      run.run(config, tmp_path)
  config = of_study(name, saved)
  other = min(set(STUDIES) - {name})
  config.study[other].batch_size = 8
  words = rf'config\.study\.{other}\.batch_size=8 has no effect'
  with pytest.raises(UserError, match=words):
    run.run(config, tmp_path)
  config = of_study(name, saved)
  if config_lib.attacks(config) and name != 'routing_attacks':
    config.attack.batch_size = 8
    words = rf'batch_size=8 has no .* set config\.study\.{name}\.batch_size'
    with pytest.raises(UserError, match=words):
      run.run(config, tmp_path)


def test_missing_photographs_are_named_first(saved, tmp_path):
  config = of_study('corruptions', saved, names=('frost',), frost_dir='nowhere')
  with pytest.raises(UserError, match='frost_dir.*nowhere'):
    run.run(config, tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


@pytest.mark.slow
def test_two_processes_find_what_one_does(saved, tmp_path):
  alone, pod = tmp_path / 'alone', tmp_path / 'pod'
  config = of_study(ON_PODS[0], saved)
  config.study.names = ON_PODS
  flags = [f'--config.study.names={ON_PODS}']
  for name in ON_PODS:
    fields = FIELDS.get(name, {}) | {'batch_size': 24}
    config.study[name].update(fields)
    flags += [f'--config.study.{name}.{k}={v}' for k, v in fields.items()]
  config.attack.update(ATTACK)
  flags += [f'--config.attack.{k}={v}' for k, v in ATTACK.items()]
  run.run(config, alone)
  finished = subprocess.run(
    [
      *(sys.executable, 'launch/local_pod.py', '-n', '2', '--devices', '4'),
      *('--logs', tmp_path / 'logs', '--', '--config=configs/study.py'),
      *(f'--config.checkpoint={saved}', f'--workdir={pod}', *flags),
      *('--config.data.split=test[:50]', '--config.data.threads=2'),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert finished.returncode == 0, finished.stdout + finished.stderr
  for name in ON_PODS:
    here, there = (
      read_records(workdir / name / 'records.parquet')
      for workdir in (alone, pod)
    )
    assert list(here) == list(there)
    for field in here:
      # Collectives of other devices may round unlike each other.
      if here[field].dtype.kind == 'f':
        np.testing.assert_allclose(here[field], there[field], atol=1e-4)
      else:
        np.testing.assert_array_equal(here[field], there[field])
