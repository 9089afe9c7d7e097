"""The launcher itself; `tests/test_processes.py` runs a real pod with it."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch' / 'local_pod.py'
# Instead of the program: who it is, and then what a test wants of it.
PROGRAM = """
import os, pathlib, signal, sys, time
index = os.environ['JAX_PROCESS_ID']
print('I am', index, 'of', os.environ['JAX_NUM_PROCESSES'], flush=True)
print(os.environ['XLA_FLAGS'], sys.argv[1:], file=sys.stderr, flush=True)
"""


@pytest.fixture
def pod(tmp_path):
  """Starts a pod whose program ends with some lines of Python."""

  def start(program, *options, grace=45):
    package = tmp_path / 'vmoe_robust'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / 'main.py').write_text(PROGRAM + program)
    launch = (
      f'import sys; sys.path.insert(0, {str(LAUNCH.parent)!r}); '
      f'import local_pod; local_pod._GRACE = {grace}; '
      'sys.exit(local_pod.main())'
    )
    options = [*options, '--logs=logs', '--', '--config=a b']
    return subprocess.Popen(
      [sys.executable, '-c', launch, *options],
      cwd=tmp_path,
      env=os.environ | {'XLA_FLAGS': '--other'},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


def launch(*arguments):
  return subprocess.run(
    [sys.executable, LAUNCH, *arguments], capture_output=True, text=True
  )


def test_dry_run_prints_commands_that_a_shell_understands(tmp_path):
  logs = tmp_path / 'logs'
  arguments = ['-n', '3', '--devices', '4', '--dry-run', f'--logs={logs}']
  arguments += ['--', '--config=configs/digits_moe.py', '--config.seed=(1, 2)']
  done = launch(*arguments)
  assert done.returncode == 0 and not logs.exists()
  lines = [shlex.split(line) for line in done.stdout.splitlines()]
  assert len(lines) == 3
  for i, words in enumerate(lines):
    assert f'JAX_PROCESS_ID={i}' in words and 'JAX_NUM_PROCESSES=3' in words
    assert any('device_count=4' in word for word in words)
    assert words[-3:] == ['--distributed', *arguments[-2:]]
  assert (
    len({word for words in lines for word in words if 'ADDRESS' in word}) == 1
  )


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['-n', '2'], 'say after --'),
    (['-n', '0', '--', '--config=c'], '--processes=0 must be 1 or more'),
    (['--devices=0', '--', '--config=c'], '--devices=0 must be 1 or more'),
  ],
)
def test_what_cannot_be_is_refused(arguments, words):
  done = launch(*arguments)
  assert done.returncode == 2 and words in done.stderr


def test_only_the_first_speaks_and_all_is_kept(pod, tmp_path):
  out, errors = pod('', '-n', '3', '--devices=5').communicate(timeout=60)
  assert 'I am 0 of 3' in out and 'I am 1' not in out and not errors
  assert 'logs/process-N.log' in out.splitlines()[0]
  for i in range(3):
    kept = (tmp_path / 'logs' / f'process-{i}.log').read_text()
    assert f'I am {i} of 3' in kept
    assert '--other --xla_force_host_platform_device_count=5' in kept
    assert "['--distributed', '--config=a b']" in kept


def test_names_the_one_that_died_not_those_that_followed(pod):
  program = (
    'if index == "0": sys.exit(75)\n'
    'time.sleep(0.5)\n'
    'if index == "1": os.kill(os.getpid(), signal.SIGKILL)\n'
    'time.sleep(0.5)\n'
    'os.abort()\n'
  )
  process = pod(program, '-n', '3')
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 1
  assert errors.splitlines()[-1] == (
    'error: process 1 was ended by SIGKILL, and the pod ended; its output is '
    'in logs/process-1.log'
  )


def test_those_that_do_not_end_are_killed(pod):
  program = 'if index == "1": sys.exit(3)\nwhile True: time.sleep(1)\n'
  started = time.monotonic()
  process = pod(program, '-n', '2', grace=1)
  _, errors = process.communicate(timeout=60)
  assert time.monotonic() - started < 30 and process.returncode == 1
  assert 'process 1 exited with code 3' in errors


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all_and_a_second_one_kills(pod, tmp_path, number):
  program = (
    'for n in (signal.SIGTERM, signal.SIGINT):\n'
    '  signal.signal(n, lambda n, _: print("got", n, flush=True))\n'
    'pathlib.Path(f"ready-{index}").touch()\n'
    'while True: time.sleep(0.1)\n'
  )
  process = pod(program, '-n', '2')
  kept = [tmp_path / 'logs' / f'process-{i}.log' for i in range(2)]

  def wait(condition):
    end = time.monotonic() + 60
    while not condition():
      assert time.monotonic() < end
      time.sleep(0.05)

  wait(lambda: all((tmp_path / f'ready-{i}').exists() for i in range(2)))
  process.send_signal(number)
  wait(lambda: all(f'got {int(number)}' in k.read_text() for k in kept))
  assert process.poll() is None
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 1 and 'SIGKILL' in errors
