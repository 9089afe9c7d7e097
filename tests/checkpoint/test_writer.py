"""What is saved when, what stays, and what happens when writing fails."""

import contextlib
import logging
import pathlib
import resource
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.environment import child
from vmoe_robust import config as config_lib
from vmoe_robust.checkpoint import (
  Checkpoints,
  locate,
  open_weights,
  policy,
  save_config,
)
from vmoe_robust.checkpoint import writer as writer_lib
from vmoe_robust.checkpoint.verify import verify
from vmoe_robust.config import UserError

HERE = pathlib.Path(__file__).parent


def settings(**values):
  save = config_lib.default().save
  save.update(values)
  return save


def trees(step):
  noise = np.random.default_rng(step).normal(size=(100, 100))
  return {'params': {'kernel': jnp.asarray(noise)}}


def save(checkpoints, step, metrics=None, **how):
  checkpoints.save(step, trees(step), {'step': step}, metrics, **how)


@contextlib.contextmanager
def full_disk():
  """No file may grow beyond 10 kB, which the system refuses as a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def unwritable(directory):
  """Even to root: there is a file in its place."""
  aside = directory.with_name('aside')
  directory.rename(aside)
  directory.write_text('')
  try:
    yield
  finally:
    directory.unlink()
    aside.rename(directory)


def test_a_full_disk_costs_one_save_and_no_old_one(tmp_path, caplog):
  checkpoints = Checkpoints(tmp_path, settings(keep=1))
  save(checkpoints, 1, now=True)
  with full_disk():
    save(checkpoints, 2)
    save(checkpoints, 3)  # waits for 2
    assert 'step 2 was not written' in caplog.text
    assert 'File too large' in caplog.text
    checkpoints.close()  # waits for 3
  assert checkpoints.steps() == [1]
  checkpoints = Checkpoints(tmp_path, settings(keep=1))
  save(checkpoints, 4)
  checkpoints.close()
  assert 'step 3 was not written' in caplog.text
  assert 'step 4' not in caplog.text
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['4']
  save_config(tmp_path, config_lib.default())
  found = open_weights(tmp_path)
  assert found.step == 4
  np.testing.assert_array_equal(
    found.read('kernel'), trees(4)['params']['kernel']
  )


def news(path):
  return logging.LogRecord('absl', 30, path, 1, path, (), None)


def test_what_failed_last_is_not_said_again_while_the_program_ends(
  tmp_path, caplog
):
  checkpoints = Checkpoints(tmp_path, settings())
  with full_disk():
    save(checkpoints, 1)
    checkpoints.close()
  logging.getLogger('absl').handle(news(ocp.args.__file__))
  assert ocp.args.__file__ not in caplog.messages
  checkpoints._writer._hush.close()  # for the tests after this one
  logging.getLogger('absl').handle(news(ocp.args.__file__))
  assert ocp.args.__file__ in caplog.messages


def test_only_orbax_is_hushed(tmp_path, caplog):
  """Not what is in a folder of that name."""
  checkpoints = Checkpoints(tmp_path, settings())
  paths = [ocp.args.__file__, str(tmp_path / 'orbax' / 'ours.py')]
  for path in paths:
    logging.getLogger('absl').handle(news(path))
  checkpoints.close()
  assert caplog.messages == paths[1:]


def test_an_unwritable_directory_is_said_at_once(tmp_path, caplog):
  checkpoints = Checkpoints(tmp_path, settings(keep=1))
  save(checkpoints, 1, now=True)
  with unwritable(tmp_path / 'checkpoints'):
    save(checkpoints, 2)
    assert 'step 2 was not written: ' in caplog.text
    assert 'Not a directory' in caplog.text
  save(checkpoints, 3, now=True)
  assert checkpoints.steps() == [3]
  checkpoints.close()


def test_the_last_save_is_tried_again_and_then_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(writer_lib, '_PAUSES', (0.01, 0.01))
  checkpoints = Checkpoints(tmp_path, settings())
  save(checkpoints, 1, now=True)
  attempts = []
  begin = writer_lib.Writer.save
  monkeypatch.setattr(
    writer_lib.Writer, 'save', lambda *args: attempts.append(begin(*args))
  )
  with full_disk(), pytest.raises(UserError) as error:
    save(checkpoints, 2, now=True)
  assert len(attempts) == 3
  message = str(error.value)
  assert 'step 2 could not be written' in message
  assert 'File too large' in message and 'goes on from step 1' in message
  save(checkpoints, 2, now=True)
  assert checkpoints.steps() == [1, 2]
  checkpoints.close()


def test_old_ones_go_only_when_the_new_one_is_sealed(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path, settings(keep=1))
  save(checkpoints, 1, now=True)
  there = []
  prune = writer_lib.Writer._prune

  def look_first(self):
    there.append((checkpoints.steps(), checkpoints.damage(2)))
    prune(self)

  monkeypatch.setattr(writer_lib.Writer, '_prune', look_first)
  save(checkpoints, 2, now=True)
  assert there == [([1, 2], '')] and checkpoints.steps() == [2]
  checkpoints.close()


def test_the_best_stays_and_has_a_name(tmp_path):
  config = config_lib.default()
  config.save.update(dict(keep=1, best='eval_loss', every_steps=0))
  save_config(tmp_path, config)
  checkpoints = Checkpoints(tmp_path, config.save)
  best = str(tmp_path / 'checkpoints' / 'best')
  losses = {1: 0.9, 2: 0.4, 3: float('nan'), 4: 0.6, 5: 0.3, 6: 0.3}
  saved = []
  for step, loss in losses.items():
    if checkpoints.due(step, {'eval_loss': loss}):
      save(checkpoints, step, {'eval_loss': loss})
      saved.append(step)
    if step == 4:  # as after a restart
      checkpoints.close()
      assert locate(best) == (str(tmp_path), 2)
      checkpoints = Checkpoints(tmp_path, config.save)
  assert saved == [1, 2, 5]
  save(checkpoints, 6, {'eval_loss': 0.3}, now=True)
  save(checkpoints, 7, now=True)
  checkpoints.close()
  assert checkpoints.steps() == [5, 7]
  assert locate(best) == (str(tmp_path), 5)
  assert locate(tmp_path) == (str(tmp_path), 7)


def test_the_best_is_one_that_was_written(tmp_path):
  score = lambda value: {'eval_accuracy': value}
  checkpoints = Checkpoints(
    tmp_path, settings(best='eval_accuracy', every_steps=0)
  )
  assert checkpoints.due(1, score(0.8))
  save(checkpoints, 1, score(0.8), now=True)
  with full_disk():
    save(checkpoints, 2, score(0.9))
    assert not checkpoints.due(3, score(0.8))
    assert checkpoints.due(4, score(0.89))  # which waits for the end of 2
  save(checkpoints, 4, score(0.89))
  assert not checkpoints.due(5, score(0.88))
  checkpoints.close()
  assert checkpoints.steps() == [1, 4]


def test_a_best_whose_seal_is_damaged_stays_and_is_not_replaced(tmp_path):
  config = config_lib.default()
  config.save.update(dict(keep=1, best='eval_loss', every_steps=1))
  save_config(tmp_path, config)
  checkpoints = Checkpoints(tmp_path, config.save)
  best = tmp_path / 'checkpoints' / 'best'
  for step, loss in {1: 0.9, 2: 0.3, 3: 0.6}.items():
    save(checkpoints, step, {'eval_loss': loss})
  checkpoints.close()
  assert checkpoints.steps() == [2, 3] and locate(best)[1] == 2
  remarks = lambda: [(s.name, s.remarks) for s in verify(tmp_path)[1:]]
  assert remarks() == [('2', 'best'), ('3', '')]
  seal = tmp_path / 'checkpoints' / '2' / 'CHECKSUMS.json'
  text = bytearray(seal.read_bytes())
  text[30] ^= 1
  seal.write_bytes(text)
  with pytest.raises(UserError, match=r'damaged checkpoints of steps \[2\]'):
    locate(best)
  assert locate(tmp_path)[1] == 3
  checkpoints = Checkpoints(tmp_path, config.save)
  save(checkpoints, 4, {'eval_loss': 0.5})
  checkpoints.close()
  # 2 may be the best, 4 is the best of the others and the newest.
  assert checkpoints.steps() == [2, 4]
  seal = 'CHECKSUMS.json has changed'
  assert remarks() == [('2', seal), ('4', 'best of the others')]


def test_copies_that_somebody_made_by_hand_stay(tmp_path):
  names = ['1.bak', '1.tar.gz', '7.copy-before', '2026.notes.txt', '3.old']
  left = [
    '5.unsealed',
    '4.removed',
    '6.probe',
    '5.unsealed.orbax-checkpoint-tmp',
  ]
  for name in names + left:
    (tmp_path / 'checkpoints' / name).mkdir(parents=True)
  checkpoints = Checkpoints(tmp_path, settings())
  save(checkpoints, 1, now=True)
  checkpoints.close()
  there = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert there == {'1', *names}


def test_without_a_measure_there_is_no_best(tmp_path):
  save_config(tmp_path, config_lib.default())
  checkpoints = Checkpoints(tmp_path, settings())
  save(checkpoints, 1, now=True)
  checkpoints.close()
  with pytest.raises(UserError, match="best was ''.*name one of the steps .1."):
    locate(tmp_path / 'checkpoints' / 'best')


def test_saves_by_steps_and_by_minutes():
  due = policy.Schedule(settings(every_steps=4))
  assert [step for step in range(1, 10) if due(step)] == [4, 8]
  due = policy.Schedule(settings(every_steps=0, every_minutes=0.1 / 60))
  assert not due(1)
  time.sleep(0.1)
  assert due(2) and due(3)
  due.saved()
  assert not due(4)
  assert not policy.Schedule(settings(every_steps=0))(1000)


@pytest.mark.slow
def test_what_fails_on_one_process_fails_on_both_and_soon(tmp_path):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  pair = [
    subprocess.Popen(
      [sys.executable, HERE / 'pair.py', address, str(process), tmp_path],
      env=child(devices=2, PYTHONPATH=str(HERE.parents[1])),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for process in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=150)[0] for process in pair]
  finally:
    for process in pair:
      process.kill()
      process.communicate()
  for process, output in zip(pair, outputs, strict=True):
    assert process.returncode == 0 and 'all is well' in output, output
  assert 'step 2 was not written: process 1: ' in outputs[0]
  assert 'File too large' in outputs[0] and 'Not a directory' in outputs[0]
  assert 'was not written' not in outputs[1]
  save_config(tmp_path, config_lib.default())
  found = open_weights(tmp_path)  # by one process
  whole = np.random.default_rng(6).normal(size=(400, 100))
  assert found.step == 6
  np.testing.assert_array_equal(found.read('kernel'), whole.astype(np.float32))
