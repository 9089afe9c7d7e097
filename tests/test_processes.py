"""Two real processes of four devices each, against one of eight."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from vmoe_robust.report.records import read_records

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = [
  *(sys.executable, '-m', 'vmoe_robust.main'),
  '--config=configs/digits_moe.py',
  *(
    f'--config.{field}'
    for field in (
      'train.steps=6',
      'train.log_every=1',
      'save.every_steps=3',
      'model.layers=2',
      'model.hidden=16',
      'attack.steps=1',
      'attack.eps=(0.1,)',
      'mesh.expert=4',
      'mesh.model=1',
    )
  ),
]


def start(workdir, devices, *more, **place):
  environment = os.environ | place
  environment['XLA_FLAGS'] = (
    f'--xla_force_host_platform_device_count={devices} '
    '--xla_backend_optimization_level=0'
  )
  return subprocess.Popen(
    [*COMMAND, f'--workdir={workdir}', *more],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(*processes):
  outputs = [process.communicate(timeout=400)[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output
  return outputs


def start_two(workdir, *more):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  place = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2'}
  return [
    start(workdir, 4, '--distributed', *more, **place, JAX_PROCESS_ID=str(i))
    for i in range(2)
  ]


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  return [line['loss'] for line in lines if 'loss' in line]


def test_two_processes_equal_one(tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  finish(start(one, 8))
  # In two parts, so that both processes restore as well.
  finish(*start_two(two, '--config.attack.at_end=False'))
  outputs = finish(*start_two(two))
  assert 'resumed from step 6' in outputs[0]
  assert 'clean' in outputs[0] and 'clean' not in outputs[1]
  assert len(losses(two)) == 6
  np.testing.assert_allclose(losses(two), losses(one), atol=1e-5)
  here, there = (read_records(w / 'records.parquet') for w in (two, one))
  assert sorted(here['index']) == list(range(360))
  np.testing.assert_array_equal(here['label'], there['label'])
  agree = here['prediction_before'] == there['prediction_before']
  assert agree.mean() > 0.99
