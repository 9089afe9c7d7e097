"""Training with data on the devices against batches that come from the host.

  python benchmarks/resident.py [--data_dir=TFDS_DIR] [--rounds=5] [--seconds=5]

Whole steps with the log, as a run takes them, of the models of configs/. The
two ways take turns. Without --data_dir the models of CIFAR-10 see images of
its size and number that are drawn and encoded here.

A line has, of each way, the median over the rounds of images a second and of
the host's share: the part of the time that goes into something else than the
program of the steps, which is run alone for that, on a batch that is ready.
Where the host is the device, times are CPU-seconds of the process, which other
programs on the machine do not change; elsewhere they are by the clock. A table
for people, then one line of JSON.
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.config import mesh_shape
from vmoe_robust.data import open_source
from vmoe_robust.models import build
from vmoe_robust.train import advance, events
from vmoe_robust.train import optimizer as optimizer_lib
from vmoe_robust.train import state as state_lib
from vmoe_robust.train import step as step_lib
from vmoe_robust.train.load import Loads
from vmoe_robust.train.log import Log
from vmoe_robust.train.start import resolve

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
MODELS = ('digits_vit', 'digits_moe', 'cifar10_vit', 'cifar10_moe')
ENDLESS = 10**9  # steps


class Drawn:
  """As many small encoded images as CIFAR-10 has, a tenth of them different."""

  num_classes, class_names = 10, tuple('abcdefghij')
  multi_label, channels = False, 3

  def __init__(self):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5000, 8, 8, 3), np.uint8)
    large = [cv2.resize(x, (32, 32)) for x in small]
    self._encoded = [cv2.imencode('.png', x)[1].tobytes() for x in large]

  def __len__(self):
    return 50_000

  def __getitem__(self, index):
    return dict(image=self._encoded[index % 5000], label=index % 10)

  def describe(self, index):
    """A name by which a person finds the example."""
    return f'drawn {index}'


class Way:
  """A model that is trained, with resident data or without."""

  def __init__(self, name: str, resident: bool, data_dir: str):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data.resident, config.data.dir = resident, data_dir
    drawn = name.startswith('cifar10') and not data_dir
    source = Drawn() if drawn else open_source(config.data, 'train')
    config, _ = resolve(config, source, source)
    optimizer = optimizer_lib.make(config.train.optimizer, config.train.steps)
    rate = optimizer_lib.schedule(config.train.optimizer, config.train.steps)
    # Nothing but the log stands between steps.
    config.train.steps = ENDLESS
    config.save.every_steps = config.eval.every_steps = 0
    mesh = mesh_lib.create(mesh_shape(config, jax.device_count()))
    size = config.data.image_size
    shape = (size, size, config.model.channels)
    model = build(config.model, shape, mesh)
    self.state, places = state_lib.create(
      model, optimizer, 0, config.train.ema > 0, mesh, False, False
    )
    step = step_lib.make(model, optimizer, rate, config, mesh)
    begin = time.perf_counter()
    self.steps = advance.make(step, config, source, mesh, places, None)
    self.opening = time.perf_counter() - begin
    self.program = self.steps.compile(self.state)
    self.config, self.step, self.per_second = config, 0, 1.0
    self.log = Log(config, lambda: None, None, None, Loads())

  def train(self, seconds: float) -> tuple[float, float]:
    """Trains so long; returns images and seconds, by this module's clock."""
    first, begin, start = self.step, clock(), time.monotonic()
    end = start + seconds
    while time.monotonic() < end:
      ahead = events.steps_ahead(self.config, self.step)
      self.state, metrics, steps = self.steps(self.state, ahead)
      self.step += steps
      self.log.add(self.step, metrics, steps)
    self.log.drain()
    spent = clock() - begin
    self.per_second = (self.step - first) / (time.monotonic() - start)
    return (self.step - first) * self.config.train.batch_size, spent

  def alone(self, seconds: float) -> float:
    """Seconds of an image in the program of the steps, without the rest."""
    batches, steps = self.steps.batches, 1
    if isinstance(self.steps, advance.Many):
      most = self.config.train.log_every
      # Fewer where they would last longer than the turn.
      steps = max(1, min(most, int(self.per_second * seconds)))
      rows = batches.take(steps, most)
      given = (batches.arrays, rows, jnp.int32(steps))
    else:
      given = (next(batches),)
    end, begin, taken, last = time.monotonic() + seconds, clock(), 0, None
    while time.monotonic() < end:
      self.state, metrics = self.program(self.state, *given)
      jax.block_until_ready(last)  # one is in flight
      last, taken = metrics, taken + steps
    jax.block_until_ready(last)
    return (clock() - begin) / taken / self.config.train.batch_size


def clock() -> float:
  """CPU-seconds where the host is the device, otherwise seconds."""
  on_host = jax.default_backend() == 'cpu'
  return time.process_time() if on_host else time.perf_counter()


def measure(name: str, data_dir: str, rounds: int, seconds: float) -> dict:
  """The two ways in turns: images a second, and the host's share."""
  ways = {
    'streamed': Way(name, False, data_dir),
    'resident': Way(name, True, data_dir),
  }
  rates = {way: [] for way in ways}
  shares = {way: [] for way in ways}
  for turn in range(rounds + 1):
    for way, model in ways.items():
      images, spent = model.train(seconds)
      alone = model.alone(seconds / 2)
      if turn:  # the first one warms up
        rates[way].append(images / spent)
        shares[way].append(1 - alone * images / spent)
  for model in ways.values():
    model.steps.batches.close()
  pairs = zip(rates['resident'], rates['streamed'], strict=True)
  return {
    'images_per_second': {w: statistics.median(r) for w, r in rates.items()},
    'host_share': {w: statistics.median(s) for w, s in shares.items()},
    'ratio': statistics.median(a / b for a, b in pairs),
    'decode_seconds': ways['resident'].opening,
  }


def main() -> None:
  """Measures the models that the command line names."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data_dir', default='', help='with cifar10 of TFDS')
  parser.add_argument('--models', nargs='+', default=MODELS, choices=MODELS)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--seconds', type=float, default=5, help='of a turn')
  args = parser.parse_args()
  unit = 'CPU-second' if jax.default_backend() == 'cpu' else 'second'
  print(f'{jax.devices()[0].device_kind}; images a {unit}, share of the host')
  print(f'{"model":12} {"streamed":>16} {"resident":>16} {"ratio":>7} decoding')
  found = {}
  for name in args.models:
    found[name] = row = measure(name, args.data_dir, args.rounds, args.seconds)
    cells = [
      f'{row["images_per_second"][way]:>10,.0f} {row["host_share"][way]:>5.0%}'
      for way in ('streamed', 'resident')
    ]
    print(
      f'{name:12} {cells[0]} {cells[1]} {row["ratio"]:>7.2f} '
      f'{row["decode_seconds"]:.1f} s',
      flush=True,
    )
  kind = jax.devices()[0].device_kind
  print(json.dumps({'device': kind, 'models': found}))


if __name__ == '__main__':
  main()
