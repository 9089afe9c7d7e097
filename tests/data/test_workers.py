"""Worker processes leave nothing behind, however their streams end."""

import pathlib
import subprocess
import sys

import jax
import pytest

from tests.environment import child
from vmoe_robust import config
from vmoe_robust.config import UserError
from vmoe_robust.data import eval_batches, open_source, train_batches

ROOT = pathlib.Path(__file__).parents[2]


class Broken:
  """Digits of which one cannot be decoded."""

  num_classes, channels, multi_label = 10, 1, False
  class_names = tuple('0123456789')
  fingerprint, lengths = 'of a test', {}

  def __len__(self):
    return 64

  def __getitem__(self, index):
    return dict(image=b'', label=0)

  def describe(self, index):
    return f'example {index}'


def streams():
  """A whole stream, one that is closed early, and one that fails."""
  data = config.default().data
  data.update(workers=2, threads=2)
  mesh = jax.make_mesh((1,), ('data',))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  test = open_source(data, 'test')
  whole = eval_batches(data, test, batch_size=120, sharding=place)
  count = sum(int(batch['mask'].sum()) for batch in whole)
  whole.close()
  options = dict(batch_size=64, sharding=place, seed=0)
  early = train_batches(data, test, **options)
  next(early)
  early.close()
  failing = train_batches(data, Broken(), **options)
  try:
    next(failing)
  except UserError:
    count += 1
  print(count)


@pytest.mark.slow
def test_no_shared_memory_is_left():
  program = 'from tests.data.test_workers import streams; streams()'
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    env=child(),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0 and done.stdout == '361\n', done.stderr
  assert done.stderr == ''
