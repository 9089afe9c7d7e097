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
import pytest

from vmoe_robust.experiment.parts import parts
from vmoe_robust.experiment.states import states
from vmoe_robust.report.records import read_records
from vmoe_robust.report.results import read_results
from vmoe_robust.report.verdicts import is_right

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


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_results(
  tmp_path, monkeypatch
):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parent)
  monkeypatch.chdir(ROOT)
  first = start(tmp_path)
  wait_for(tmp_path / 'killed_seed0/checkpoints/2', first)
  first.send_signal(signal.SIGTERM)
  code, output = finish(first)
  assert code == 130 and 'the same command goes on' in output
  cut = told(tmp_path)
  code, output = finish(start(tmp_path, '--report'))  # and runs nothing
  assert not code and 'written to' in output and told(tmp_path) == cut
  assert '--report' not in (tmp_path / 'experiment.json').read_text()
  assert cut.pop('killed_seed0') == 'cut short'
  assert set(cut.values()) == {'not started'}

  code, output = finish(start(tmp_path))
  assert code == 0 and '5 finished' in output, output
  assert 'resumed from step' in (tmp_path / 'killed_seed0/log.txt').read_text()
  assert set(told(tmp_path).values()) == {'finished'}
  found = states(described(tmp_path)).values()
  assert {state.name for state in found} == {'finished'}

  # The twin, which is the same model, was never interrupted.
  killed, twin = (
    read_records(tmp_path / run / 'attacks/pgd/records.parquet')
    for run in ('killed_seed0', 'twin_seed0')
  )
  assert list(killed) == list(twin)
  for name, values in twin.items():
    np.testing.assert_array_equal(killed[name], values)
  assert 'Robustness report' in (tmp_path / 'report.html').read_text()
  said = json.loads((tmp_path / 'experiment.json').read_text())
  assert {row['run'] for row in said['accuracies']} == {'killed', 'twin'}
  assert all((tmp_path / f['picture']).exists() for f in said['figures'])
  [measured] = said['measures']
  study = read_results(tmp_path / 'killed_seed0/studies/routing')
  changed = study['rows'][-1]['selected']['encoderblock_0']
  assert measured['seeds'] == [{'seed': 0, 'number': changed}]
  [related] = said['relations']
  assert len(related['trainings']) == 1 and not related['missing']
  assert related['correlation']['value'] is None  # of one
  for part in said['parts']:
    assert part['usage']['cpu_seconds'] > 1
    assert part['usage']['peak_bytes'] > 2**27  # of Python with JAX
  assert '| killed | twin | pgd |' in (tmp_path / 'results.md').read_text()
  [clean, attacked] = json.loads((tmp_path / 'comparisons.json').read_text())
  assert clean['condition'] == 'clean'
  [seed] = attacked['seeds']
  right = int(is_right(twin['prediction_after'], twin['label']).sum())
  assert (seed['both'], seed['neither']) == (right, 40 - right)
  assert seed['only_first'] == seed['only_second'] == 0 and seed['p'] == 1
