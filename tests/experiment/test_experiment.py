"""A whole experiment through the real program, killed and continued.

What children compile is kept in the folder of tests/conftest.py.
"""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

from vmoe_robust.evaluate import attack
from vmoe_robust.experiment.parts import parts
from vmoe_robust.experiment.states import states
from vmoe_robust.report import statistics
from vmoe_robust.report.records import read_records
from vmoe_robust.robustness.measure import is_right
from vmoe_robust.train import loop

ROOT = pathlib.Path(__file__).parents[2]
TINY = 'tests/experiment/tiny.py'


def start(workdir, *arguments):
  command = [sys.executable, '-m', 'vmoe_robust.experiment']
  return subprocess.Popen(
    [*command, f'--config={TINY}', f'--workdir={workdir}', *arguments],
    cwd=ROOT,
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


def uninterrupted(folder, monkeypatch):
  """The records of the attack on the dense model, without an experiment."""
  import tiny

  monkeypatch.chdir(ROOT)
  by_name = {part.name: part for part in parts(tiny.get_config(), folder)}
  for name, run in (('dense_seed0', loop), ('dense_seed0/attacks/pgd', attack)):
    run.run(by_name[name].config, by_name[name].folder)
  return read_records(folder / 'dense_seed0/attacks/pgd/records.parquet')


def test_killed_in_the_middle_it_goes_on_to_the_same_results(
  tmp_path, monkeypatch
):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parent)
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
  wanted = uninterrupted(tmp_path / 'reference', monkeypatch)
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

  tiny = sys.modules['tiny'].get_config()
  every = parts(tiny, workdir)
  assert {s.name for s in states(every).values()} == {'finished'}
  assert set(told(workdir).values()) == {'finished'}
