"""Real processes of several devices each, against one of eight."""

import json
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.environment import child
from vmoe_robust.distributed import pod
from vmoe_robust.report.records import read_records

ROOT = pathlib.Path(__file__).parents[1]
SMALL = [
  '--config=configs/digits_moe.py',
  *(
    f'--config.{field}'
    for field in (
      'model.layers=1',
      'model.moe_blocks=(0,)',
      'model.moe_every=0',
      'model.hidden=16',
      'model.mlp=16',
      'train.steps=16',
      'train.log_every=1',
      'train.optimizer.name=sgd',
      'attack.name=apgd_ce+square',
      'attack.steps=3',
      'attack.queries=5',
      'attack.eps=(0.1,)',
    )
  ),
]
SAVING = [*SMALL, '--config.save.every_steps=1']
# Seconds in which a pod must have ended after one of its processes did.
SOON = 60


def start(workdir, devices, arguments=SMALL, **place):
  program = [sys.executable, '-m', 'vmoe_robust.main', *arguments]
  return subprocess.Popen(
    [*program, f'--workdir={workdir}'],
    cwd=ROOT,
    env=child(devices, **place),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def start_pod(workdir, processes, devices, arguments=SMALL):
  """As on a pod: nothing but the processes themselves ends them."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  place = {
    'JAX_COORDINATOR_ADDRESS': address,
    'JAX_NUM_PROCESSES': str(processes),
  }
  arguments = [*arguments, '--distributed']
  return [
    start(workdir, devices, arguments, **place, JAX_PROCESS_ID=str(i))
    for i in range(processes)
  ]


def finish(*processes, code=0):
  outputs = [process.communicate(timeout=400)[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == code, output
  return outputs


def assert_silent(outputs):
  for output in outputs:
    for words in ('parameters', 'compiled', 'train step', 'saved', 'clean'):
      assert words not in output
    assert 'apgd_ce' not in output


def wait_for(path, *processes):
  end = time.monotonic() + 300
  while not path.exists():
    for process in processes:
      assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < end
    time.sleep(0.05)


def metrics(workdir, name):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  return [line[name] for line in lines if name in line]


def saved_steps(workdir):
  names = [path.name for path in (workdir / 'checkpoints').iterdir()]
  return sorted(int(name) for name in names if name.isdigit())


def assert_attacked_alike(workdir, expected):
  """Every example once, by weights that were trained alike but for rounding."""
  here, there = (
    read_records(w / 'records.parquet') for w in (workdir, expected)
  )
  assert sorted(here['index']) == list(range(360))
  np.testing.assert_array_equal(here['label'], there['label'])
  losses = here['loss_before'], there['loss_before']
  np.testing.assert_allclose(*losses, atol=1e-4)
  for name in ('prediction_before', 'prediction_after', 'fallen_in'):
    assert (here[name] == there[name]).mean() > 0.99, name
  assert not (workdir / 'unfinished').exists()
  assert (workdir / 'figures' / 'robustness.png').stat().st_size > 1000


def stop_one_of_four(workdir):
  """One is told that its machine goes away; returns the step of the save."""
  processes = start_pod(workdir, 4, 2)
  wait_for(workdir / 'config.json', *processes)
  processes[2].send_signal(signal.SIGTERM)
  outputs = finish(*processes, code=pod.STOPPED)
  step = saved_steps(workdir)[-1]
  assert 1 <= step < 10
  stopped = f'stopped at step {step} and saved; the same command resumes'
  assert all(output.splitlines()[-1] == stopped for output in outputs)
  assert_silent(output.removesuffix(stopped + '\n') for output in outputs[1:])
  return step


def kill_one_of_two(workdir, before):
  processes = start_pod(workdir, 2, 2, SAVING)
  wait_for(workdir / 'checkpoints' / str(before + 1), *processes)
  processes[1].kill()
  outputs = ended_soon(processes)
  assert processes[0].returncode != 0
  assert f'resumed from step {before} ' in outputs[0]
  for output in outputs:
    last = output.splitlines()[-1]
    assert last.startswith('error: ') and 'same --workdir to resume' in last


def ended_soon(processes):
  started = time.monotonic()
  outputs = [process.communicate(timeout=SOON)[0] for process in processes]
  assert time.monotonic() - started < SOON
  return outputs


def stop_alone(workdir):
  before = saved_steps(workdir)[-1]
  alone = start(workdir, 4, SAVING)
  wait_for(workdir / 'checkpoints' / str(before + 1), alone)
  alone.send_signal(signal.SIGTERM)
  (output,) = finish(alone, code=pod.STOPPED)
  assert f'resumed from step {before} ' in output
  assert 'stopped at step' in output and saved_steps(workdir)[-1] < 16


def finish_on_two(workdir, logs):
  launch = [sys.executable, 'launch/local_pod.py', '-n', '2', '--devices', '4']
  rehearsal = subprocess.run(
    [*launch, '--logs', logs, '--', *SMALL, f'--workdir={workdir}'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert rehearsal.returncode == 0, rehearsal.stdout + rehearsal.stderr
  assert 'clean' in rehearsal.stdout
  kept = [(logs / f'process-{i}.log').read_text() for i in range(2)]
  assert 'clean' in kept[0] and 'after apgd_ce' in kept[0]
  assert_silent(kept[1:])


@pytest.mark.slow
def test_a_pod_stopped_killed_and_moved_equals_one_process(tmp_path):
  """Four processes, two, one and two again, with other devices each time."""
  moved, whole = tmp_path / 'moved', tmp_path / 'one'
  step = stop_one_of_four(moved)
  one = start(whole, 8)  # while nothing happens on the pod
  kill_one_of_two(moved, step)
  finish(one)
  stop_alone(moved)
  finish_on_two(moved, tmp_path / 'logs')
  for name in ('loss', 'eval_loss'):
    found, expected = metrics(moved, name), metrics(whole, name)
    np.testing.assert_allclose(found, expected, atol=1e-5)
  assert len(metrics(moved, 'loss')) == 16
  assert_attacked_alike(moved, whole)


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_other_in_time(tmp_path):
  """A corrupt image, which one of two processes reads."""
  rng = np.random.default_rng(0)
  for i in range(80):
    split = 'train' if i < 64 else 'test'
    path = tmp_path / 'images' / split / 'ab'[i % 2] / f'{i:02}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
  bad = tmp_path / 'images' / 'train' / 'a' / '04.png'
  bad.write_bytes(bad.read_bytes()[:100])
  arguments = [*SMALL, '--config.data.name=folder']
  arguments.append(f'--config.data.dir={tmp_path}/images')
  # With resident data both would read it.
  arguments.append('--config.data.resident=False')
  processes = start_pod(tmp_path / 'run', 2, 2, arguments)
  while all(process.poll() is None for process in processes):
    time.sleep(0.05)
  outputs = ended_soon(processes)
  codes = [process.returncode for process in processes]
  assert sorted(codes) == [1, pod.FOLLOWED], outputs
  for code, output in zip(codes, outputs, strict=True):
    last = output.splitlines()[-1]
    assert last.startswith('error: ') and '04.png' in last, output
    assert ('process ' in last) == (code == pod.FOLLOWED)
