"""A whole experiment through the real program, killed and continued.

What its processes compile is kept in the folder of tests/conftest.py; where
it is there already the test takes about 55 seconds of CPU time.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

from vmoe_robust.experiment.parts import parts
from vmoe_robust.experiment.states import states
from vmoe_robust.report import statistics
from vmoe_robust.report.records import read_records
from vmoe_robust.robustness.measure import is_right

ROOT = pathlib.Path(__file__).parents[2]
TINY = 'tests/experiment/tiny.py'


def environment():
  """One device: it compiles and saves faster than the tests' eight."""
  flags = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1')
  return os.environ | {'XLA_FLAGS': flags}


def described(workdir):
  import tiny

  return parts(tiny.get_config(), workdir)


def start(workdir, *arguments):
  command = [sys.executable, '-m', 'vmoe_robust.experiment']
  return subprocess.Popen(
    [*command, f'--config={TINY}', f'--workdir={workdir}', *arguments],
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  output = process.communicate(timeout=500)[0]
  return process.returncode, output


def wait_for(path, process):
  end = time.monotonic() + 300
  while not path.exists():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < end
    time.sleep(0.02)


def told(workdir):
  found = json.loads((workdir / 'experiment.json').read_text())
  return {part['name']: part['state'] for part in found['parts']}


def uninterrupted(folder):
  """The records of the attack on the dense model, by its commands alone."""
  by_name = {part.name: part for part in described(folder)}
  for name in ('dense_seed0', 'dense_seed0/attacks/pgd'):
    command = by_name[name].command()
    subprocess.run(command, cwd=ROOT, env=environment(), check=True)
  return read_records(folder / 'dense_seed0/attacks/pgd/records.parquet')


def test_killed_in_the_middle_it_goes_on_to_the_same_results(
  tmp_path, monkeypatch
):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parent)
  monkeypatch.chdir(ROOT)
  workdir = tmp_path / 'experiment'
  killed = start(workdir)
  wait_for(workdir / 'dense_seed0/checkpoints/2', killed)
  killed.send_signal(signal.SIGTERM)
  code, output = finish(killed)
  assert code == 130 and 'the same command goes on' in output
  cut = told(workdir)
  assert cut.pop('dense_seed0') == 'cut short'
  assert set(cut.values()) == {'not started'}

  code, output = finish(start(workdir))
  assert code == 0 and '5 finished' in output, output
  assert 'resumed from step' in (workdir / 'dense_seed0/log.txt').read_text()
  there = workdir / 'dense_seed0/attacks/pgd'
  wanted = uninterrupted(tmp_path / 'reference')
  found = read_records(there / 'records.parquet')
  assert list(found) == list(wanted)
  for name, values in wanted.items():
    np.testing.assert_array_equal(found[name], values)

  [clean, attacked] = json.loads((workdir / 'comparisons.json').read_text())
  assert (clean['condition'], attacked['condition']) == (
    'clean',
    'pgd linf 0.1',
  )
  other = read_records(workdir / 'moe_seed0/attacks/pgd/records.parquet')
  right = [is_right(c['prediction_after'], c['label']) for c in (other, found)]
  [seed] = attacked['seeds']
  wanted = statistics.paired(*right)
  assert {name: seed[name] for name in wanted} == json.loads(json.dumps(wanted))
  assert (attacked['first'], attacked['second']) == ('moe', 'dense')

  found = states(described(workdir)).values()
  assert {state.name for state in found} == {'finished'}
  assert set(told(workdir).values()) == {'finished'}
