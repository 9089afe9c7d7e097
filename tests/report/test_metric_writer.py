import json
import resource

import jax.numpy as jnp
import numpy as np
from tensorboardX.proto import event_pb2

from vmoe_robust.report.metric_writer import MetricWriter


def _lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def _events(workdir):
  """What TensorBoard reads: records of a length, a CRC, bytes and a CRC."""
  found = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], 'little')
      found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
      at += size + 16
  return found


def test_writes_lines_and_events(tmp_path):
  writer = MetricWriter(tmp_path / 'run')
  writer.write(0, {'loss': 2.5, 'accuracy': np.float32(0.25)})
  writer.write(10, {'loss': jnp.float32(1.5)})
  writer.flush()
  assert _lines(tmp_path / 'run') == [
    {'step': 0, 'loss': 2.5, 'accuracy': 0.25},
    {'step': 10, 'loss': 1.5},
  ]
  writer.close()
  values = {
    (event.step, value.tag): value.simple_value
    for event in _events(tmp_path / 'run')
    for value in event.summary.value
  }
  assert values == {
    (0, 'loss'): 2.5,
    (0, 'accuracy'): 0.25,
    (10, 'loss'): 1.5,
  }


def test_values_that_are_not_finite_are_null(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.write(1, {'loss': float('nan'), 'norm': float('inf')})
  writer.close()
  assert _lines(tmp_path) == [{'step': 1, 'loss': None, 'norm': None}]


def test_resuming_drops_what_the_checkpoint_does_not_know(tmp_path):
  writer = MetricWriter(tmp_path)
  for step in (10, 20, 30):
    writer.write(step, {'loss': step})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as lines:
    lines.write('{"step": 15, "lo')  # kill -9
  writer = MetricWriter(tmp_path, after_step=20)
  writer.write(30, {'loss': 31})
  writer.close()
  assert [(m['step'], m['loss']) for m in _lines(tmp_path)] == [
    (10, 10),
    (20, 20),
    (30, 31),
  ]
  starts = [e.step for e in _events(tmp_path) if e.HasField('session_log')]
  assert 21 in starts


def test_a_full_disk_costs_no_line(tmp_path, caplog):
  writer = MetricWriter(tmp_path)
  writer.write(1, {'loss': 1})
  writer.flush()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))  # in the second line
  try:
    for step in range(2, 20):
      writer.write(step, {'loss': 1})
    writer.flush()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert 'File too large' in caplog.text
  writer.write(200, {'loss': 1})
  writer.close()
  assert [line['step'] for line in _lines(tmp_path)] == [*range(1, 20), 200]
  assert [event.step for event in _events(tmp_path)] == [0, 0, *range(1, 20)]


def test_a_fresh_run_starts_empty(tmp_path):
  for _ in range(2):
    writer = MetricWriter(tmp_path)
    writer.write(0, {'loss': 1})
    writer.close()
  assert len(_lines(tmp_path)) == 1
