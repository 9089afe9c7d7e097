"""Whole runs: resumed equals uninterrupted, and bad endings end well."""

import gc
import json
import logging
import pathlib
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.environment import child
from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import (
  Checkpoints,
  locate,
  open_weights,
  read_config,
  save_config,
)
from vmoe_robust.config import UserError
from vmoe_robust.data import open_source
from vmoe_robust.evaluate.finished import ends_training
from vmoe_robust.report.records import read_records
from vmoe_robust.report.results import read_results
from vmoe_robust.train import loop, measuring, start

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
  'model.patch': 4,
  'model.hidden': 16,
  'model.layers': 2,
  'model.heads': 2,
  'model.mlp': 16,
  'model.experts': 4,
  'model.moe_every': 2,
  'model.dropout': 0.1,
  'model.router.group_images': 2,
  'train.batch_size': 32,
  'train.log_every': 1,
  'train.ema': 0.9,
  'train.steps': 12,
  'save.every_steps': 4,
  'attack.steps': 2,
  'attack.eps': (0.02, 0.1),
  'data.threads': 2,
}


def small(**changes):
  config = config_lib.default()
  config.update_from_flattened_dict(SMALL | changes)
  return config


def command(workdir, **changes):
  """The same run as a process of its own, on one device."""
  flags = [f'--config.{name}={value}' for name, value in changes.items()]
  file = workdir.parent / 'config.py'
  file.write_text(
    'from vmoe_robust import config\n'
    'def get_config():\n'
    '  c = config.default()\n'
    f'  c.update_from_flattened_dict({SMALL!r})\n'
    '  return c\n'
  )
  program = [sys.executable, '-m', 'vmoe_robust.main', f'--config={file}']
  return subprocess.Popen(
    [*program, f'--workdir={workdir}', *flags],
    cwd=ROOT,
    env=child(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return {line['step']: line['loss'] for line in found if 'loss' in line}


def wait_for(condition, seconds=120):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  """A run in a process of its own, with its output."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  process = command(workdir)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return workdir, output


@pytest.mark.slow
def test_the_story_of_a_run(uninterrupted):
  workdir, output = uninterrupted
  assert 'clean' in output and 'routing' in output
  assert str(workdir) in output and 'images/s' in output
  assert sorted(losses(workdir)) == list(range(1, 13))
  assert Checkpoints(workdir).steps() == [8, 12]  # the newest two
  assert list((workdir / 'tensorboard').iterdir())
  results = json.loads((workdir / 'results.json').read_text())
  sweep = {row['eps']: row for row in results['rows']}
  records = read_records(workdir / 'records.parquet')
  assert results['data']['examples'] == 360 and len(records['eps']) == 720
  assert sorted(set(records['index'])) == list(range(360))
  first = records['eps'] == 0.02
  right = records['prediction_before'] == records['label']
  assert results['summary']['clean_accuracy']['value'] == pytest.approx(
    right[first].mean()
  )
  for eps in (0.02, 0.1):
    rows = records['eps'] == eps
    right = records['prediction_after'] == records['label']
    found = sweep[eps]['robust_accuracy']['value']
    assert found == pytest.approx(right[rows].mean())
    assert found <= results['summary']['clean_accuracy']['value']
    assert (records['linf'][rows] <= eps + 1e-6).all()


def buffers(arrays):
  """Bytes on each device by their address; an array's shards are arrays too."""
  return {
    (shard.device, shard.data.unsafe_buffer_pointer()): shard.data.nbytes
    for x in arrays
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    for shard in x.addressable_shards
  }


@pytest.mark.slow
def test_the_last_attack_has_the_memory_of_training(tmp_path, monkeypatch):
  """Of the state only the weights that are attacked are left on the devices."""
  seen = {}

  def final(self, state, speed):
    gc.collect()
    live = buffers(jax.live_arrays())
    seen['live'] = sum(live[where] for where in live.keys() - before.keys())
    seen['weights'] = sum(buffers(jax.tree.leaves(state.params)).values())
    raise KeyboardInterrupt

  monkeypatch.setattr(loop.Measuring, 'final', final)
  gc.collect()
  before = buffers(jax.live_arrays())
  with pytest.raises(KeyboardInterrupt):
    loop.run(small(**{'train.steps': 1, 'save.every_steps': 0}), tmp_path)
  # With the optimizer's moments and both copies of the weights it was four
  # times as much, and the images besides.
  assert seen['weights'] <= seen['live'] < 1.5 * seen['weights']


@pytest.mark.parametrize(
  ('ema', 'warmup', 'steps', 'words'),
  [
    (0.999, 0, 300, ['74% of what is evaluated are the weights as they were']),
    (0.99, 50, 1600, []),
    (0.0, 400, 300, ['warmup_steps=400 of 300 steps: the learning rate rises']),
  ],
)
def test_lengths_that_few_would_want_are_said(ema, warmup, steps, words):
  config = small(**{'train.ema': ema, 'train.steps': steps})
  config.train.optimizer.warmup_steps = warmup
  said = list(start.expected(config, mesh_lib.create((2, 4, 1)), 1437))
  assert len(said) == len(words)
  assert all(a in b for a, b in zip(words, said, strict=True))
  (line,) = set(start.expected(config, mesh_lib.create((2, 4, 1)), 9)) - {*said}
  assert f'batch_size={config.train.batch_size} of 9 images' in line


def test_groups_larger_than_a_device_s_share_are_said():
  config = small(**{'train.batch_size': 16, 'model.router.group_images': 8})
  config.train.optimizer.warmup_steps, config.train.ema = 0, 0.0
  config.model.update(experts=4, moe_every=2, moe_last=0, moe_blocks=())
  said = lambda: list(start.expected(config, mesh_lib.create((2, 4, 1)), 1437))
  (line,) = said()
  assert 'runs on 64 images a step' in line and 'batch_size=16' in line
  config.model.router.group_images = 2
  assert not said()
  config.model.update(experts=0, moe_every=0)
  config.model.router.group_images = 8
  assert not said()


@pytest.mark.slow
def test_starting_again_says_finished(uninterrupted):
  workdir, output = uninterrupted
  state = lambda: {
    p: p.stat().st_mtime_ns for p in (workdir, *workdir.iterdir())
  }
  before = state()
  again = command(workdir)
  text, _ = again.communicate(timeout=120)
  assert again.returncode == 0
  assert 'is finished' in text and 'compiled' not in text
  table = [line for line in output.splitlines() if 'clean' in line]
  assert table[0] in text
  assert state() == before  # so that it works on a read-only disk


@pytest.mark.slow
def test_resumed_after_kill_equals_uninterrupted(uninterrupted, tmp_path):
  workdir = tmp_path / 'run'
  first = command(workdir, **{'train.steps': 12, 'data.threads': 1})
  wait_for(lambda: (workdir / 'checkpoints' / '4').exists())
  first.send_signal(signal.SIGKILL)
  first.communicate()
  process = command(workdir)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  assert losses(workdir) == losses(uninterrupted[0])  # digit for digit
  there = json.loads((workdir / 'results.json').read_text())
  expected = json.loads((uninterrupted[0] / 'results.json').read_text())
  for row in (*there['rows'], *expected['rows']):
    for found in row['per_attack'].values():
      assert found.pop('seconds') > 0
  assert there['rows'] == expected['rows']


@pytest.mark.slow
def test_a_program_that_cannot_be_read_does_not_stop_training(
  tmp_path, capsys, monkeypatch
):
  from vmoe_robust.cost import program

  monkeypatch.setattr(program.hlo, 'parse', lambda text: {}['ENTRY'])
  changes = {'train.steps': 2, 'attack.at_end': False}
  changes |= {'train.profile_steps': (2, 2), 'train.ema': 0.0}
  loop.run(small(**changes), tmp_path / 'run')
  shown = capsys.readouterr().out
  assert 'GFLOP by formula\n' in shown and 'as compiled' not in shown
  assert list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_is_not_taken_for_the_end(tmp_path, number):
  workdir = tmp_path / 'run'
  process = command(workdir, **{'train.steps': 100_000, 'save.every_steps': 0})
  wait_for(lambda: (workdir / 'metrics.jsonl').exists() and losses(workdir))
  process.send_signal(number)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 130, output
  last = output.splitlines()[-1]
  assert last.endswith('the same command resumes')
  (step,) = Checkpoints(workdir).steps()
  assert last.startswith(f'stopped at step {step} ')
  assert not (workdir / 'results.json').exists()


def run_here(config, workdir):
  loop.run(config, str(workdir))
  return losses(workdir)


# One sparse block, and an optimizer that does not turn rounding into steps.
TINY = {
  'model.layers': 1,
  'model.moe_every': 1,
  'train.optimizer.name': 'sgd',
  'train.ema': 0.0,
  'attack.at_end': False,
  'eval.batch_size': 360,
}


class StopAt(loop.Stopping):
  """Says stop once, when it is asked for the n-th time."""

  def __init__(self, turn):
    self.turn = turn

  def __call__(self):
    self.turn -= 1
    return self.turn == 0


def train_on(devices, shape, config, workdir, until):
  """Trains to a step on some of the devices there are; returns the trainer."""
  config, splits = start.open_splits(config)
  mesh = mesh_lib.create(shape, jax.devices()[:devices])
  trainer = loop.Trainer(config, workdir, mesh, splits)
  trainer.train(StopAt(until - trainer.step))
  return trainer


@pytest.mark.slow
def test_any_mesh_goes_on_where_another_stopped(tmp_path):
  """1, 2, 4 and 8 devices; data, expert and model axes; split weights."""
  tiny = lambda **changes: small(**TINY, **{'train.steps': 8}, **changes)
  train_on(1, (1, 1, 1), tiny(), tmp_path / 'whole', 0)
  for step, devices, shape, changes in (
    (2, 8, (2, 2, 2), {}),
    (4, 2, (2, 1, 1), {'mesh.zero1': True}),
    (6, 4, (1, 4, 1), {}),
    (8, 8, (8, 1, 1), {'mesh.fsdp': True}),
  ):
    moved = tmp_path / 'moved'
    trainer = train_on(devices, shape, tiny(**changes), moved, step)
    assert trainer.step == step and trainer.mesh.size == devices
  alone, found = losses(tmp_path / 'whole'), losses(moved)
  assert list(found) == list(alone) == list(range(1, 9))
  np.testing.assert_allclose(
    list(found.values()), list(alone.values()), atol=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize('what', ['eval', 'attack'])
def test_a_long_measurement_is_left_to_save_in_time(tmp_path, what, capsys):
  """Asked to stop between its batches, a run saves and is resumed."""
  changes = {'train.steps': 4, 'eval.batch_size': 40, f'{what}.every_steps': 2}
  changes |= {'attack.steps': 1, 'attack.eps': (0.1,)}
  config = small(**(TINY | changes))
  trainer = train_on(1, (1, 1, 1), config, tmp_path, 4)
  assert trainer.step == 2 and trainer.checkpoints.steps() == [2]
  lines = (tmp_path / 'metrics.jsonl').read_text()
  assert 'eval_accuracy' not in lines and 'robust_accuracy' not in lines
  assert not (tmp_path / 'results.json').exists()
  assert trainer.checkpoints.is_unmeasured(2)
  train_on(1, (1, 1, 1), config, tmp_path, 5)  # at once again
  assert trainer.checkpoints.is_unmeasured(2)
  trainer = train_on(1, (1, 1, 1), config, tmp_path, 0)
  assert trainer.step == 4 and list(losses(tmp_path)) == [1, 2, 3, 4]
  assert not trainer.checkpoints.is_unmeasured(2)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  name = {'eval': 'eval_accuracy', 'attack': 'robust_accuracy/0.1'}[what]
  assert 2 in [line['step'] for line in map(json.loads, lines) if name in line]


def measured(workdir):
  """What was measured at each step, and the step that is best."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = {
    (line['step'], name): value
    for line in map(json.loads, lines)
    for name, value in line.items()
    if name.startswith(('eval_', 'test_'))
  }
  return found, locate(workdir / 'checkpoints' / 'best')[1]


@pytest.mark.slow
def test_the_line_after_a_stop_is_of_all_steps_since_the_line_before(tmp_path):
  changes = {'train.steps': 4, 'train.log_every': 4, 'save.every_steps': 3}
  config = small(**(TINY | changes))
  train_on(1, (1, 1, 1), config, tmp_path / 'whole', 0)
  stopped = train_on(1, (1, 1, 1), config, tmp_path / 'stopped', 2)
  assert stopped.step == 2  # of which the first one alone has a line
  train_on(1, (1, 1, 1), config, tmp_path / 'stopped', 0)

  def last_loads(name):
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    found = [line for line in map(json.loads, lines) if 'loss' in line]
    assert found[-1]['step'] == 4
    return {k: v for k, v in found[-1].items() if k.startswith('load/')}

  assert last_loads('stopped') == last_loads('whole')
  assert len(last_loads('whole')) == 4  # experts


@pytest.mark.slow
@pytest.mark.parametrize('until', [2, 3, 5, 6, 8])
def test_wherever_it_is_stopped_the_same_is_measured(tmp_path, until):
  """And so the same checkpoint is the best: a preemption selects nothing."""
  changes = {'train.steps': 4, 'eval.batch_size': 180, 'eval.every_steps': 2}
  changes |= {'save.best': 'eval_accuracy', 'save.keep': 1}
  changes |= {'data.validation': 0.1, 'train.optimizer.learning_rate': 0.3}
  config = small(**(TINY | changes))
  train_on(1, (1, 1, 1), config, tmp_path / 'whole', 0)
  expected = measured(tmp_path / 'whole')
  assert {step for step, _ in expected[0]} == {2, 4}
  stopped = tmp_path / 'stopped'
  config_, splits = start.open_splits(config)
  mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
  for turn in (until, 0):
    trainer = loop.Trainer(config_, stopped, mesh, splits)
    trainer.train(StopAt(turn))
    assert trainer.unmeasured or not turn or trainer.step < 4
  assert measured(stopped) == expected
  assert trainer.checkpoints.steps() == Checkpoints(tmp_path / 'whole').steps()


@pytest.mark.slow
def test_the_best_of_a_late_measurement_outlives_a_kill(tmp_path, monkeypatch):
  """So that the monitor sees the same fall as in a run without a stop."""
  values = {2: 0.9, 4: 0.1}
  judged = []

  def judge(self, params, step):
    judged.append((step, self.best))
    self.best = max(self.best, values[step])
    return {self.name: values[step]}

  monkeypatch.setattr(measuring.Monitor, '__call__', judge)
  changes = {'train.steps': 4, 'eval.batch_size': 184, 'eval.every_steps': 2}
  changes |= {'data.validation': 0.1, 'train.monitor.eps': 0.01}
  config = small(**(TINY | changes))
  train_on(1, (1, 1, 1), config, tmp_path, 3)  # before it measures step 2
  assert judged == []

  def kill(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(loop.advance, 'compile_steps', kill)
    with pytest.raises(KeyboardInterrupt):
      train_on(1, (1, 1, 1), config, tmp_path, 0)
  config.train.monitor.on_fall = 'stop'  # may change: it alters no step
  loop.run(config, tmp_path)
  assert judged == [(2, 0.0), (4, 0.9)]


@pytest.mark.slow
def test_an_attack_that_selects_is_not_the_one_at_the_end(
  tmp_path, monkeypatch
):
  """A run that is killed in its last attack is resumed with it."""
  changes = {'train.steps': 2, 'attack.every_steps': 1, 'attack.at_end': True}
  changes |= {'attack.steps': 1, 'attack.eps': (0.1,), 'data.validation': 0.1}
  config = small(**(TINY | changes | {'save.best': 'robust_accuracy/0.1'}))

  def kill(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(measuring.Measuring, 'final', kill)
    with pytest.raises(KeyboardInterrupt):
      loop.run(config, tmp_path)
  results = read_results(tmp_path)
  assert results['data']['split'] == 'train (validation)'
  assert results['weights']['step'] == 2 and not ends_training(results, 2)
  loop.run(config, tmp_path)
  results = read_results(tmp_path)
  assert results['data']['split'] == 'test' and ends_training(results, 2)
  monkeypatch.setattr(loop.Trainer, '__init__', kill)
  loop.run(config, tmp_path)  # there is nothing left to do


@pytest.mark.slow
def test_a_full_disk_does_not_end_training(
  tmp_path, monkeypatch, caplog, capfd
):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  save = Checkpoints.save

  def save_to_a_full_disk(self, step, *rest):
    room = 6000 if step == 4 else soft  # too little for arrays
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    save(self, step, *rest)

  monkeypatch.setattr(Checkpoints, 'save', save_to_a_full_disk)
  config = small(**TINY, **{'train.steps': 8, 'save.every_steps': 2})
  config.save.update(dict(keep=1, best='eval_accuracy'))
  config.data.validation = 0.1
  config.eval.every_steps = 2
  loop.run(config, str(tmp_path))
  assert 'step 4 was not written' in caplog.text
  assert 'Traceback' not in caplog.text + capfd.readouterr().err
  assert sorted(losses(tmp_path)) == list(range(1, 9))
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  accuracies = {
    line['step']: line['eval_accuracy']
    for line in lines
    if line.get('eval_accuracy') is not None and line['step'] != 4
  }
  best = max(accuracies, key=accuracies.get)
  assert Checkpoints(tmp_path).steps() == sorted({best, 8})
  assert locate(tmp_path / 'checkpoints' / 'best') == (str(tmp_path), best)


def fail_once(monkeypatch, place, name, when):
  """An error in a method of `place`, as of an image that cannot be read."""
  usual, failed = getattr(place, name), []

  def method(self, *rest):
    if when(*rest) and not failed:
      failed.append(True)
      raise UserError('corrupt')
    return usual(self, *rest)

  monkeypatch.setattr(place, name, method)


@pytest.mark.slow
def test_what_fails_beside_the_training_costs_no_step(tmp_path, monkeypatch):
  """Images to train on, or to evaluate on at the end, that cannot be read."""
  changes = {'data.resident': False, 'train.steps': 6, 'save.every_steps': 0}
  config = small(**(TINY | changes))
  whole = run_here(config, tmp_path / 'whole')
  here = tmp_path / 'here'
  with monkeypatch.context() as patch:
    fail_once(
      patch, loop.advance.Streamed, '__call__', lambda state, _: state.step == 3
    )
    with pytest.raises(UserError, match='corrupt'):
      loop.run(config, here)
    assert Checkpoints(here).steps() == [3]
    fail_once(patch, measuring.Measuring, '_accuracy', lambda *_: True)
    with pytest.raises(UserError, match='corrupt'):
      loop.run(config, here)
  assert Checkpoints(here).steps() == [3, 6]
  assert Checkpoints(here).is_unmeasured(6)
  assert run_here(config, here) == whole
  assert not Checkpoints(here).is_unmeasured(6)


@pytest.mark.slow
def test_weights_that_fell_are_not_saved(tmp_path, monkeypatch):
  judged = iter((0.9, 0.1))
  monkeypatch.setattr('vmoe_robust.train.monitor.fetch', lambda _: next(judged))
  changes = {'train.steps': 4, 'eval.every_steps': 2, 'save.every_steps': 2}
  changes |= {'data.validation': 0.1, 'train.monitor.eps': 0.01}
  config = small(**(TINY | changes), **{'train.monitor.on_fall': 'stop'})
  with pytest.raises(UserError, match='fell from 90.0% to 10.0% by step 4'):
    loop.run(config, tmp_path)
  assert Checkpoints(tmp_path).steps() == [2]


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_the_run(tmp_path):
  # Without clipping, a huge learning rate overflows within a few steps.
  config = small(**{'train.optimizer.learning_rate': 1e30, 'train.steps': 50})
  config.train.optimizer.clip_norm = 0.0
  with pytest.raises(UserError, match='at step .*learning_rate') as error:
    loop.run(config, str(tmp_path))
  step = int(str(error.value).split('at step ')[1].split(',')[0])
  saved = Checkpoints(tmp_path).steps()
  assert all(s < step for s in saved)


@pytest.mark.slow
def test_evaluates_and_attacks_while_training(tmp_path):
  config = small(**{'eval.every_steps': 5, 'attack.every_steps': 6})
  config.attack.at_end = False
  loop.run(config, str(tmp_path))
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  steps = lambda name: [line['step'] for line in lines if name in line]
  assert steps('eval_accuracy') == [5, 10, 12]
  assert steps('robust_accuracy/0.02') == [6]


@pytest.mark.slow
def test_damage_is_repaired_by_resuming(tmp_path):
  config = small(**{'attack.at_end': False})
  expected = run_here(config, tmp_path)
  step = tmp_path / 'checkpoints' / '12'
  files = [path for path in step.glob('rest/**/*') if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  assert run_here(config, tmp_path) == expected
  assert Checkpoints(tmp_path).newest_whole() == 12
  for path in (tmp_path / 'checkpoints').glob('*/CHECKSUMS.json'):
    path.write_text('')
  filters = list(logging.getLogger('absl').filters)
  with pytest.raises(UserError, match='all checkpoints in .* are damaged'):
    loop.run(config, str(tmp_path))
  assert logging.getLogger('absl').filters == filters, 'they were not closed'


@pytest.mark.slow
def test_finished_is_of_this_attack_alone(tmp_path):
  config = small(**{'train.steps': 2})
  loop.run(config, str(tmp_path))
  loop.run(config, str(tmp_path))
  config.data.threads = 1
  loop.run(config, str(tmp_path))
  config.attack.eps = (0.3,)
  with pytest.raises(UserError, match='config.attack.eps=.0.3,. .was'):
    loop.run(config, str(tmp_path))


@pytest.mark.slow
def test_a_run_that_never_saved_does_not_lock_its_workdir(tmp_path):
  save_config(tmp_path, small(**{'model.hidden': 64}))
  config = small(**{'train.steps': 1, 'attack.at_end': False})
  loop.run(config, str(tmp_path))
  assert read_config(tmp_path).model.hidden == 16


@pytest.mark.slow
def test_another_run_is_not_overwritten(tmp_path):
  config = small(**{'train.steps': 2, 'attack.at_end': False})
  loop.run(config, str(tmp_path))
  with pytest.raises(UserError, match='config.model.hidden=32 .was 16'):
    loop.run(small(**{'train.steps': 2, 'model.hidden': 32}), str(tmp_path))


@pytest.mark.slow
def test_starts_from_another_run(tmp_path):
  config = small(**{'train.steps': 3, 'attack.at_end': False, 'save.keep': 1})
  loop.run(config, str(tmp_path / 'first'))
  bigger = small(**{'attack.at_end': False, 'train.steps': 1})
  bigger.update_from_flattened_dict(
    {
      'init_from': str(tmp_path / 'first'),
      'data.image_size': 16,
      'train.optimizer.learning_rate': 0.0,
    }
  )
  loop.run(bigger, str(tmp_path / 'second'))
  old, new = (open_weights(tmp_path / name) for name in ('first', 'second'))
  kernel = 'Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel'
  np.testing.assert_allclose(new.read(kernel), old.read(kernel), rtol=1e-6)
  positions = new.shapes['Encoder/posembed_input/pos_embedding']
  assert positions.shape == (1, 17, 16)


def test_weights_that_are_not_there_are_told_at_once(tmp_path, monkeypatch):
  """Before anything is built; a run that has its own needs them no more."""

  def build(*_):
    raise RuntimeError('built')

  monkeypatch.setattr(loop, 'Trainer', build)
  config = small(**{'init_from': str(tmp_path / 'nowhere')})
  with pytest.raises(UserError, match="config.init_from='.*nowhere' is no dir"):
    loop.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  (tmp_path / 'run/checkpoints/4').mkdir(parents=True)
  with pytest.raises(RuntimeError, match='built'):
    loop.run(config, tmp_path / 'run')


def test_resolve_refuses_what_the_data_contradict():
  config = small()
  source = open_source(config.data, 'train')
  config.model.num_classes = 7
  with pytest.raises(UserError, match='config.model.num_classes=7 .* 10'):
    start.resolve(config, source, source)
  config.model.num_classes = 0
  config.train.loss = 'sigmoid'
  with pytest.raises(UserError, match='config.train.loss=.*softmax'):
    start.resolve(config, source, source)


@pytest.mark.slow
def test_the_workdir_is_enough(uninterrupted):
  saved = read_config(uninterrupted[0])
  assert saved.model.num_classes == 10 and saved.model.channels == 1
  assert jax.device_count() == 8  # the run that saved it had one
