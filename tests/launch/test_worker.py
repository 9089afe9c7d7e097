"""One process of a run, with the real program, and the scripts' style."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.environment import xla_flags
from vmoe_robust.distributed import pod

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))


def start(workdir, *more, **environment):
  return subprocess.Popen(
    ['bash', ROOT / 'launch/worker.sh', '0-0', workdir, *more],
    cwd=ROOT,
    env=os.environ | {'PYTHON': sys.executable} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.slow
def test_sigterm_saves_and_asks_to_be_resumed(tmp_path):
  """The real program: 80 while there is more to do, 0 when it is done."""
  flags = [
    '--config=configs/digits_vit.py',
    '--nodistributed',
    *(
      f'--config.{field}'
      for field in (
        'train.steps=100000',
        'train.log_every=1',
        'model.layers=2',
        'model.hidden=16',
        'attack.at_end=False',
      )
    ),
  ]
  first = start(tmp_path, *flags, XLA_FLAGS=xla_flags())
  metrics = tmp_path / 'metrics.jsonl'
  deadline = time.monotonic() + 300
  while not (metrics.exists() and metrics.read_text()):
    assert first.poll() is None and time.monotonic() < deadline
    time.sleep(0.1)
  first.send_signal(signal.SIGTERM)
  out, err = first.communicate(timeout=120)
  assert first.returncode == 80, err
  assert err.splitlines()[-1].startswith('stopped at step')
  # The program itself ends so where another process failed.
  assert first.returncode != pod.FOLLOWED
  # What is shown is what is kept.
  assert (tmp_path / 'logs/0-0.out').read_text().endswith(out[-40:])
  assert (tmp_path / 'logs/0-0.err').read_text()


@pytest.mark.parametrize(
  ('end', 'code'),
  [
    ('echo the table', 0),
    ('exit 3', 3),
    ('kill -9 $$', 137),
    ('echo "stopped by a signal; start all again" >&2; exit 130', 80),
    (f'echo "{pod._ABSENT}" >&2; exit 134', 81),
  ],
)
def test_the_exit_code_is_the_runs(tmp_path, end, code):
  run = tmp_path / 'python'
  run.write_text(f'#!/bin/sh\necho "words: $*"\necho trouble >&2\n{end}\n')
  run.chmod(0o755)
  logs = tmp_path / 'a run/logs'
  logs.mkdir(parents=True)
  # What an earlier run said does not count.
  (logs / '0-0.err').write_text('stopped at step 1\n')
  process = start(tmp_path / 'a run', '--config=a b', PYTHON=str(run))
  out, err = process.communicate(timeout=30)
  assert process.returncode == code
  assert f'--workdir={tmp_path}/a run --config=a b' in out
  kept = (logs / '0-0.err').read_text()
  assert kept.startswith('stopped at step 1\ntrouble\n')


@pytest.mark.parametrize('end', ['exit 3', 'exit 0', 'kill -9 $$'])
def test_what_an_earlier_start_said_is_not_said_again(tmp_path, end):
  """By one that dies without a word, and would be started without end."""
  run = tmp_path / 'python'
  run.write_text(f'#!/bin/sh\n{end}\n')
  run.chmod(0o755)
  (tmp_path / 'run/logs').mkdir(parents=True)
  for kind in ('out', 'err'):
    (tmp_path / f'run/logs/0-0.{kind}').write_text('stopped at step 1\n')
  process = start(tmp_path / 'run', '--config=c', PYTHON=str(run))
  process.communicate(timeout=30)
  assert process.returncode == {'exit 3': 3, 'exit 0': 0}.get(end, 137)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
  shellcheck = shutil.which(
    'shellcheck', path=f'{pathlib.Path(sys.executable).parent}:{os.defpath}'
  )
  assert shellcheck, "pip install -e '.[test]' brings shellcheck"
  done = subprocess.run([shellcheck, script], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
