"""Kills a program that saves, at random moments; run by test_integrity.py.

Importing takes seconds, so this program imports once and forks before JAX
starts anything.
"""

import os
import random
import signal
import sys
import time

import jax.numpy as jnp
import numpy as np
from etils import epath

from vmoe_robust import config as config_lib
from vmoe_robust.checkpoint import (
  Checkpoints,
  integrity,
  open_weights,
  save_config,
  writer,
)
from vmoe_robust.checkpoint.weights_checksum import weights_checksum


def save_for_ever(workdir, report):
  save = config_lib.default().save
  save.keep = 1  # the hardest: every save removes the last good one
  checkpoints = Checkpoints(workdir, save)
  step = checkpoints.resume() or 0
  weights_checksum({'kernel': jnp.zeros((256, 256))})  # compiled once a life
  if step:
    found = open_weights(workdir, step=step).read('kernel')
    np.testing.assert_array_equal(found, np.full((256, 256), float(step)))
  report(step)
  while True:
    step += 1
    trees = {'params': {'kernel': jnp.full((256, 256), float(step))}}
    checkpoints.save(step, trees, {'step': step})
    report(step - 1)  # which has been waited for


def one_life(workdir, seconds, oldest, waits):
  """Returns the newest step that was reported as saved before the kill.

  Args:
    workdir: of the run.
    seconds: until the kill.
    oldest: step to resume from.
    waits: until something was saved, however slow the machine is.
  """
  read, write = os.pipe()
  child = os.fork()
  if not child:
    try:
      save_for_ever(workdir, lambda step: os.write(write, b'%d\n' % step))
    finally:
      os._exit(1)
  os.close(write)
  with os.fdopen(read) as reports:
    resumed = int(reports.readline())
    assert resumed >= oldest, f'resumed from {resumed} after saving {oldest}'
    newest = resumed
    while waits and newest == resumed:
      newest = int(reports.readline())
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return max([newest, *map(int, reports.read().split())])


def main(workdir):
  rng, saved = random.Random(0), 0
  directory = epath.Path(workdir) / 'checkpoints'
  save_config(workdir, config_lib.default())
  cut_short = 0
  for life in range(20):
    saved = one_life(workdir, rng.uniform(0, 0.6), saved, waits=life % 2)
    there = writer.steps(directory)
    assert not there or there[-1] >= saved
    for step in there:
      bad = integrity.damage(directory / str(step))
      assert not bad, bad
    cut_short += bool(writer.unfinished(directory))
  print(f'{saved} saved, {cut_short} of 20 kills cut one short')


if __name__ == '__main__':
  main(sys.argv[1])
