"""Damage of every kind: never a wrong value, never a lost good step."""

import pathlib
import random
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.environment import child
from vmoe_robust import checkpoint as checkpoint_lib
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import integrity
from vmoe_robust.checkpoint import verify as verify_lib
from vmoe_robust.config import UserError

ROOT = pathlib.Path(__file__).parents[2]


def trees(step):
  kernel = jnp.arange(4096.0).reshape(64, 64) + step
  params = {'layer': {'kernel': kernel, 'bias': jnp.full(3, float(step))}}
  return {'params': params, 'rest': {'step': jnp.int32(step)}}


def a_config():
  config = config_lib.default()
  config.model.update(dict(hidden=32, moe_blocks=(1, 3)))
  return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  checkpoint_lib.save_config(workdir, a_config())
  checkpoints = checkpoint_lib.Checkpoints(workdir, config_lib.default().save)
  for step in (1, 2):
    checkpoints.save(step, trees(step), {'data': step}, {'eval_loss': 0.5})
  checkpoints.close()
  return workdir


def files(workdir):
  newest = workdir / 'checkpoints' / '2'
  return sorted(path for path in newest.rglob('*') if path.is_file())


def kind(path):
  """Names without hashes, so that each kind of file is met."""
  return re.sub(r'[0-9a-f]{32}', 'HASH', path.as_posix())


def restored(workdir, step):
  checkpoints = checkpoint_lib.Checkpoints(workdir)
  found, extra = checkpoints.restore(step, abstract(step))
  return found['params'], extra


def abstract(step):
  whole = mesh_lib.replicated(mesh_lib.create((8, 1, 1)))
  params = trees(step)['params']
  places = {'layer': {'kernel': whole, 'bias': whole}}
  return {'params': checkpoint_lib.abstract(params, places)}


def assert_as_saved(workdir, step):
  params, extra = restored(workdir, step)
  for name, value in trees(step)['params']['layer'].items():
    np.testing.assert_array_equal(params['layer'][name], value)
  assert extra == {'data': step}


def assert_falls_back(workdir, path):
  """To the step before, and says which file was damaged."""
  checkpoints = checkpoint_lib.Checkpoints(workdir)
  name = path.relative_to(workdir / 'checkpoints' / '2').as_posix()
  assert name in checkpoints.damage(2)
  assert checkpoints.newest_whole() == 1


@pytest.mark.slow
def test_two_hundred_flipped_bits(workdir):
  rng, kinds = random.Random(0), {}
  for path in files(workdir):
    kinds.setdefault(kind(path), []).append(path)
  of_our_own = {'CHECKSUMS.json', 'config.json', '_METADATA', 'manifest.ocdbt'}
  assert of_our_own <= {pathlib.Path(name).name for name in kinds}
  assert any('/d/HASH' in name for name in kinds)
  for flip in range(200):
    names = sorted(kinds)
    path = rng.choice(kinds[names[flip % len(names)]])
    before = path.read_bytes()
    data = bytearray(before)
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    assert_falls_back(workdir, path)
    if flip % 20 == 0:
      assert_as_saved(workdir, 1)
    path.write_bytes(before)
  assert checkpoint_lib.Checkpoints(workdir).newest_whole() == 2
  assert_as_saved(workdir, 2)


def test_files_that_are_short_gone_or_new(workdir):
  for path in files(workdir):
    before = path.read_bytes()
    for size in {0, len(before) // 2, len(before) - 1}:
      path.write_bytes(before[:size])
      assert_falls_back(workdir, path)
    path.unlink()
    assert_falls_back(workdir, path)
    path.write_bytes(before)
  new = workdir / 'checkpoints' / '2' / 'params' / 'new'
  new.write_bytes(b'')
  assert_falls_back(workdir, new)
  new.unlink()
  assert_as_saved(workdir, checkpoint_lib.Checkpoints(workdir).newest_whole())


@pytest.mark.slow
def test_a_flipped_bit_never_changes_the_configuration(workdir, caplog):
  path = workdir / 'config.json'
  before = path.read_bytes()
  rng = random.Random(0)
  for _ in range(100):
    data = bytearray(before)
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    found = checkpoint_lib.read_config(workdir)
    assert not config_lib.differences(found, a_config())
  assert 'damaged; ' in caplog.text
  path.unlink()
  assert checkpoint_lib.locate(workdir) == (str(workdir), 2)
  path.write_bytes(before)
  assert 'lost; ' in caplog.text
  assert 'checkpoints/2/config.json is taken instead' in caplog.text


def test_a_configuration_without_a_copy_is_refused(tmp_path):
  checkpoint_lib.save_config(tmp_path, a_config())
  path = tmp_path / 'config.json'
  path.write_text(path.read_text().replace('"hidden": 32', '"hidden": 64'))
  with pytest.raises(UserError, match='not as it was written'):
    checkpoint_lib.read_config(tmp_path)


def test_processes_share_the_checksums(tmp_path):
  """Each takes the files it wrote; what none took, the first one does."""
  step = epath.Path(tmp_path / '3')
  step.mkdir()
  for name in ('ocdbt.process_0/d', 'ocdbt.process_1/d', 'ocdbt.process_11/d'):
    (step / name).parent.mkdir()
    (step / name).write_text(name)
  (step / 'other').write_text('')
  integrity.measure(step, 1)
  share = (step / 'CHECKSUMS.json.1').read_text()
  assert 'process_1/d' in share
  assert 'process_0' not in share and 'process_11' not in share
  about = integrity.About(3, 'a checksum', {}, unmeasured=False)
  integrity.seal(step, about, processes=12)
  assert not integrity.damage(step)
  assert len(integrity.read_seal(step)['files']) == 4
  (step / 'ocdbt.process_11/d').write_text('-')
  found = [integrity.damage(step, part, 3) for part in range(3)]
  assert sorted(map(len, found)) == [0, 0, 1]  # they share reading, too


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing(tmp_path):
  found = subprocess.run(
    [
      sys.executable,
      '-W',
      'ignore',
      __file__.replace('test_integrity', 'killed'),
      tmp_path,
    ],
    cwd=ROOT,
    env=child(PYTHONPATH=str(ROOT)),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert found.returncode == 0, found.stderr
  saved, cut_short = re.findall(r'^(\d+) saved, (\d+) of 20', found.stdout)[0]
  assert int(saved) > 5 and int(cut_short) > 2


def verify(path):
  found = subprocess.run(
    [sys.executable, '-m', 'vmoe_robust.checkpoint', 'verify', path],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  return found.returncode, found.stdout + found.stderr


@pytest.mark.slow
def test_verify_tells_good_from_damaged(workdir):
  (workdir / 'checkpoints' / '3.unsealed').mkdir()
  path = next(p for p in files(workdir) if 'ocdbt.process_0/d' in str(p))
  before = path.read_bytes()
  path.write_bytes(before[:-1])
  code, output = verify(workdir)
  lines = [line.split(maxsplit=3) for line in output.splitlines()]
  assert code == 1
  assert [line[:2] for line in lines[1:]] == [
    ['config.json', 'good'],
    ['1', 'good'],
    ['2', 'damaged'],
    ['3.unsealed', 'unfinished'],
  ]
  assert (
    lines[3][3] == f'{path.relative_to(workdir)} has changed'.split('/', 2)[2]
  )
  path.write_bytes(before)
  assert verify(workdir / 'checkpoints' / '2')[0] == 0
  empty = workdir.parent / 'empty'
  (empty / 'checkpoints').mkdir(parents=True)
  code, output = verify(empty)
  assert code == 1 and 'is empty: the run ended before it saved' in output
  code, output = verify(workdir / 'nowhere')
  assert code == 1
  assert output.startswith('error: ') and 'has no checkpoints/' in output
  (workdir / 'checkpoints' / '3.unsealed').rmdir()


def test_verify_leaves_out_what_a_run_removes_meanwhile(workdir, monkeypatch):
  aside, damage = workdir / 'aside', integrity.damage

  def removed(path):
    if path.name == '1':
      path.rename(aside)
    return damage(path)

  monkeypatch.setattr(integrity, 'damage', removed)
  try:
    found = verify_lib.verify(workdir)
  finally:
    aside.rename(workdir / 'checkpoints' / '1')
  assert [(one.name, one.state) for one in found] == [
    ('config.json', 'good'),
    ('2', 'good'),
  ]


def test_a_copy_under_another_name_is_another_step_s(workdir, tmp_path):
  """Its steps, and the learning rate that follows, are not those it says."""
  shutil.copytree(workdir, tmp_path / 'run')
  folder = tmp_path / 'run' / 'checkpoints'
  shutil.copytree(folder / '2', folder / '40')
  checkpoints = checkpoint_lib.Checkpoints(tmp_path / 'run')
  assert 'copy of step 2, under another name' in checkpoints.damage(40)
  assert checkpoints.newest_whole() == 2
  seal = folder / '40' / integrity.SEAL
  values = integrity.from_json(seal.read_text())
  del values['step']  # as older versions sealed
  seal.write_text(integrity.to_json(values))
  assert not checkpoints.damage(40)


def test_what_is_measured_later_changes_no_checksum(tmp_path):
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, config_lib.default().save)
  checkpoints.save(3, trees(3), {'data': 3}, {}, now=True, unmeasured=True)
  step = tmp_path / 'checkpoints' / '3'
  before = integrity.fingerprint(epath.Path(step))
  assert checkpoints.is_unmeasured(3) and checkpoints.best('eval_loss') is None
  (step / 'CHECKSUMS.json.draft').write_text('{')  # of a run that was killed
  assert not checkpoints.damage(3)
  checkpoints.add_metrics(3, {'eval_loss': 0.5}, {'seen': 7})
  _, extra = checkpoints.restore(3, {})
  assert extra == {'data': 3, 'seen': 7}
  assert not checkpoints.is_unmeasured(3) and checkpoints.best('eval_loss') == 3
  assert not checkpoints.damage(3)
  assert integrity.fingerprint(epath.Path(step)) == before
  checkpoints.close()
