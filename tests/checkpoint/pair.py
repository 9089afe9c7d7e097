"""One of two processes that save together; run by test_writer.py."""

import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from test_writer import full_disk, settings, unwritable

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import Checkpoints, writer
from vmoe_robust.config import UserError


def main(address, process, workdir):
  writer._PAUSES = (0.1, 0.1)
  jax.distributed.initialize(address, 2, process)
  mesh = mesh_lib.create((2, 2, 1))
  place = NamedSharding(mesh, PartitionSpec(('data', 'expert')))
  checkpoints = Checkpoints(workdir, settings(keep=1, every_minutes=1.0))

  def save(step, **how):
    whole = np.random.default_rng(step).normal(size=(400, 100))
    kernel = jax.make_array_from_callback((400, 100), place, whole.__getitem__)
    trees = {'params': {'kernel': kernel}}
    checkpoints.save(step, trees, {'step': step}, **how)

  save(1, now=True)
  began = time.monotonic()
  if process:
    with full_disk():  # of one process alone
      save(2)
      checkpoints._writer._thread.join()
  else:
    save(2)
  save(3, now=True)
  assert time.monotonic() < began + 30, 'one waited in vain for the other'
  assert checkpoints.steps() == [3], checkpoints.steps()
  multihost_utils.sync_global_devices('both have seen it')
  if process:
    save(4)
  else:
    with unwritable(checkpoints.path(0).parent):
      save(4)
  try:
    if process:
      save(5, now=True)
    else:
      with full_disk():
        save(5, now=True)
  except UserError as error:
    assert 'step 5 could not be written' in str(error)
  else:
    raise AssertionError('both know that one failed')
  assert checkpoints.steps() == [3]
  save(6, now=True)
  # The first one's clock counts, and is not asked at every step.
  checkpoints._writer._schedule._last -= 120 * (process == 0)
  assert [s for s in range(1, 45) if checkpoints.due(s, {})] == [20, 40]
  checkpoints._writer._schedule._last += 240 * (process == 0) - 120
  assert not [s for s in range(1, 45) if checkpoints.due(s, {})]
  if not process:
    (path,) = checkpoints.path(6).glob('params/ocdbt.process_1/manifest.ocdbt')
    before = path.read_bytes()
    path.write_bytes(before[:-1])
  multihost_utils.sync_global_devices('damaged')
  assert 'process_1/manifest.ocdbt has changed' in checkpoints.damage(6)
  if not process:
    path.write_bytes(before)
  multihost_utils.sync_global_devices('mended')
  assert checkpoints.newest_whole() == 6
  checkpoints.close()
  print('all is well')


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
