"""What checksums add to training that saves.

  python benchmarks/checkpoint.py [--rounds=9] [--steps=20]

A dense ViT whose weights and moments are about 100 MB trains some steps and
saves, on one device, until the checkpoint has its name; with checksums and, by
leaving them out, without. The two take turns; a number is the median over the
rounds of the ratio, of CPU-seconds of the process and of seconds. A busy
machine moves these by more than checksums cost. So `share` is what the thread
that checksums and seals takes of the CPU-seconds. A table for people, then one
line of JSON.
"""

import json
import statistics
import tempfile
import time
from unittest import mock

import jax
import numpy as np
import timing
from absl import app, flags, logging

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.checkpoint import Checkpoints, integrity
from vmoe_robust.models import build
from vmoe_robust.train import optimizer as optimizer_lib
from vmoe_robust.train import state as state_lib
from vmoe_robust.train import step as step_lib

_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Turns that each way takes.')
_STEPS = flags.DEFINE_integer('steps', 20, 'Steps from one save to the next.')
_IMAGES, _SIZE = 16, 64  # of a batch, pixels


class Run:
  """Trains and saves, over and over, in one work directory."""

  def __init__(self, workdir: str):
    config = config_lib.default()
    config.data.image_size = _SIZE
    model = dict(patch=16, hidden=384, layers=5, heads=6, mlp=1536)
    config.model.update(model, num_classes=1000, channels=3)
    config.save.keep = 1
    mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
    settings = config.train
    net = build(config.model, (_SIZE, _SIZE, 3), mesh)
    optimizer = optimizer_lib.make(settings.optimizer, settings.steps)
    self._state, _ = state_lib.create(
      net, optimizer, 0, False, mesh, False, False
    )
    rate = optimizer_lib.schedule(settings.optimizer, settings.steps)
    step = step_lib.make(net, optimizer, rate, config, mesh)
    self._step = jax.jit(step, donate_argnums=0)
    rng = np.random.default_rng(0)
    shape = (_IMAGES, _SIZE, _SIZE, 3)
    self._batch = {
      'image': rng.integers(0, 256, shape, np.uint8),
      'label': rng.integers(0, 1000, _IMAGES).astype(np.int32),
      'mask': np.ones(_IMAGES, bool),
      'index': np.arange(_IMAGES, dtype=np.int32),
    }
    self._checkpoints, self._saves = Checkpoints(workdir, config.save), 0
    self.checksums = []  # CPU-seconds, of each save

  def megabytes(self) -> float:
    """Of what is saved."""
    return sum(x.nbytes for x in jax.tree.leaves(self._trees())) / 1e6

  def _trees(self):
    state = self._state
    return {'params': state.params, 'rest': {'opt_state': state.opt_state}}

  def train(self):
    """Steps without a save."""
    for _ in range(_STEPS.value):
      self._state, metrics = self._step(self._state, self._batch)
    jax.block_until_ready((self._state, metrics))

  def with_checksums(self):
    """The same, and a save to its end."""
    spent = 0.0

    def timed(function):
      def run(*args):
        nonlocal spent
        begin = time.thread_time()
        function(*args)
        spent += time.thread_time() - begin

      return run

    with (
      mock.patch.object(integrity, 'measure', timed(integrity.measure)),
      mock.patch.object(integrity, 'seal', timed(integrity.seal)),
    ):
      self._train_and_save()
    self.checksums.append(spent)

  def without_checksums(self):
    """The same, but nothing is read again to be checksummed."""
    with (
      mock.patch.object(integrity, 'measure'),
      mock.patch.object(integrity, '_checksum', lambda path, sync: ['', 0]),
    ):
      self._train_and_save()

  def _train_and_save(self):
    self.train()
    self._saves += 1
    self._checkpoints.save(self._saves, self._trees(), {}, now=True)


def main(_):
  """Measures, prints the table and the line of JSON."""
  logging.set_verbosity(logging.WARNING)
  with tempfile.TemporaryDirectory() as workdir:
    run = Run(workdir)
    ways = {
      'with checksums': run.with_checksums,
      'without': run.without_checksums,
      'no save': run.train,
    }
    spent = {name: [] for name in ways}
    wall = {name: [] for name in ways}
    for turn in range(_ROUNDS.value + 1):
      for name, way in ways.items():
        begin = time.perf_counter(), time.process_time()
        way()
        if turn:  # the first one compiles
          wall[name].append(time.perf_counter() - begin[0])
          spent[name].append(time.process_time() - begin[1])
  print(f'{_STEPS.value} steps and a save of {run.megabytes():.0f} MB')
  print(f'{"":<16}{"CPU-s":>8}{"s":>8}{"CPU ratio":>11}{"ratio":>8}')
  result = {'megabytes': round(run.megabytes(), 1), 'steps': _STEPS.value}
  for name in ways:
    cpu, clock = (timing.ratio(t, name, 'without') for t in (spent, wall))
    times = statistics.median(spent[name]), statistics.median(wall[name])
    print(
      f'{name:<16}{times[0]:>8.2f}{times[1]:>8.2f}{cpu:>11.3f}{clock:>8.3f}'
    )
    result[name.replace(' ', '_')] = dict(
      cpu_seconds=round(times[0], 3),
      seconds=round(times[1], 3),
      cpu_ratio=round(cpu, 4),
      ratio=round(clock, 4),
    )
  checksums = statistics.median(run.checksums[1:])
  share = checksums / result['with_checksums']['cpu_seconds']
  print(f'checksums take {checksums:.3f} CPU-s, a share of {share:.2%}')
  result |= dict(
    checksum_cpu_seconds=round(checksums, 4), share=round(share, 4)
  )
  print(json.dumps(result))


if __name__ == '__main__':
  app.run(main)
