"""What the attack engine costs besides its programs: memory, disk, host, tail.

  python benchmarks/engine.py [--images=2000] [--rounds=7]

`wide`: `apgd_ce` of two steps on random images of 224 x 224 x 3 by a small ViT,
as `config.mode='attack'` runs it: the process's peak of memory, what it writes,
and the share of the wall time after compiling in which a compiled program runs
(between the call and the moment its outputs are ready; of programs that run at
once the time counts once). `tail`: 100 images of a linear classifier, of which
23 stand, attacked by APGD-CE and Square in batches of 256 and of 25 in turns;
the median over the rounds of the ratio of CPU-seconds. Targets stand beside.
For people, then one line of JSON.
"""

import contextlib
import json
import os
import pathlib
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import timing  # noqa: E402
from absl import app, flags  # noqa: E402
from flax.core import meta  # noqa: E402

from vmoe_robust import config as config_lib  # noqa: E402
from vmoe_robust import mesh as mesh_lib  # noqa: E402
from vmoe_robust.attacks import Budget, ensemble  # noqa: E402
from vmoe_robust.data.rows import Rows  # noqa: E402
from vmoe_robust.data.source import Part  # noqa: E402
from vmoe_robust.evaluate.attack import Attacker  # noqa: E402
from vmoe_robust.models import build  # noqa: E402
from vmoe_robust.robustness import engine  # noqa: E402
from vmoe_robust.robustness.foreign import of_function  # noqa: E402
from vmoe_robust.robustness.programs import Programs, Work  # noqa: E402
from vmoe_robust.robustness.radius import Radius  # noqa: E402
from vmoe_robust.robustness.resume import Unfinished  # noqa: E402

_IMAGES = flags.DEFINE_integer('images', 2000, 'How many, of `wide`.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Turns that each takes, of `tail`.')
_BATCH = flags.DEFINE_integer('batch', 32, 'Slots, of `wide`.')
_PARTS = flags.DEFINE_list('parts', ['wide', 'tail'], 'Which.')
SIZE = 224
_LAYERS = 8  # of the linear network


class Noise:
  """A source of random images, in memory."""

  num_classes, channels, multi_label = 10, 3, False
  class_names = tuple('0123456789')

  def __init__(self, count: int):
    rng = np.random.default_rng(0)
    self._images = rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    self.labels = np.zeros(count, int)

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> dict:
    """The example."""
    return {'image': self._images[index], 'label': self.labels[index]}

  def describe(self, index: int) -> str:
    """Its name."""
    return str(index)


class Clock:
  """Times of the compiled programs of an attack, between call and readiness.

  `advance` is watched by a thread, so that the host goes on meanwhile as it
  does otherwise; the others are waited for, as they are anyway or are short.
  """

  def __init__(self):
    self.seconds, self.calls, self.begun = {}, {}, None
    self._watching = []

  def watch(self, programs: Programs):
    """Puts itself around the programs, which have been compiled."""
    for jitted in programs._programs.values():
      for name, call in jitted.items():
        wrap = self._later if name == 'advance' else self._now
        jitted[name] = wrap(name, call)
    measure = programs.measure
    measure._clean = self._now('clean', measure._clean)
    measure._score = self._now('score', measure._score)
    clean = measure.clean

    def first(*arguments):
      self.begun = time.perf_counter()
      return clean(*arguments)

    measure.clean = first

  def wall(self) -> float:
    """Seconds since the first program."""
    for thread in self._watching:
      thread.join()
    return time.perf_counter() - self.begun

  def _now(self, name, call):
    def timed(*arguments):
      begin = time.perf_counter()
      out = jax.block_until_ready(call(*arguments))
      self._add(name, time.perf_counter() - begin)
      return out

    return timed

  def _later(self, name, call):
    def wait(begin, out):
      jax.block_until_ready(out)
      self._add(name, time.perf_counter() - begin)

    def timed(*arguments):
      begin = time.perf_counter()
      slots, report = call(*arguments)
      # The slots are given to the next call, and the report is not.
      thread = threading.Thread(target=wait, args=(begin, report))
      thread.start()
      self._watching.append(thread)
      return slots, report

    return timed

  def _add(self, name, seconds):
    self.seconds[name] = self.seconds.get(name, 0) + seconds
    self.calls[name] = self.calls.get(name, 0) + 1


def wide() -> dict[str, float]:
  """Memory, disk and share of many large images."""
  config = config_lib.default()
  config.data.image_size = SIZE
  config.model.update(
    dict(patch=32, hidden=192, layers=4, heads=3, mlp=768, head='gap'),
    num_classes=10,
    channels=3,
  )
  config.attack.update(name='apgd_ce', steps=2, eps=(1 / 255,))
  config.attack.batch_size = _BATCH.value
  mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
  model = build(config.model, (SIZE, SIZE, 3), mesh)
  params = meta.unbox(jax.jit(model.init)(jax.random.key(0)))
  head = params['head']['kernel']  # which starts at 0
  params['head']['kernel'] = jax.random.normal(jax.random.key(1), head.shape)
  source, attacker = Noise(_IMAGES.value), Attacker(model, config)
  programs = attacker._programs = attacker.programs(params)
  with contextlib.closing(Rows(source, config.data)) as rows:
    clean = programs.measure.clean(params, rows)
  source.labels = clean.columns['prediction_before']  # all are attacked
  attacker(
    params, Part(source, np.arange(0, len(source), 8)), Unfinished(None, {})
  )  # compiles
  clock = Clock()
  clock.watch(programs)
  with tempfile.TemporaryDirectory() as folder:
    before = written()
    found = attacker(params, source, Unfinished(folder, {}))
    wall = clock.wall()
    disk = max(written() - before, size(folder))
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  for name, seconds in sorted(clock.seconds.items()):
    print(f'{name:<10}{clock.calls[name]:>8} calls{seconds:>10.2f} s')
  share = sum(clock.seconds.values()) / wall
  assert len(found.columns['index']) == len(source)
  (fall,) = found.falls.values()
  return {
    'memory_gb': memory / 1e9,
    'disk_gb': disk / 1e9,
    'wall_seconds': wall,
    'share': share,
    'robust': fall.robust_after['apgd_ce'],
  }


def written() -> int:
  """Bytes that this process has written to any disk."""
  fields = pathlib.Path('/proc/self/io').read_text().split()
  return int(fields[fields.index('write_bytes:') + 1])


def size(folder: str) -> int:
  """Bytes of the files in a folder."""
  found = pathlib.Path(folder).rglob('*')
  return sum(path.stat().st_size for path in found if path.is_file())


class Margins:
  """Rows of which 23 stand: a linear classifier's margins are theirs."""

  def __init__(self, count: int = 100, stand: int = 23, side: int = 16):
    """Margins go up evenly to .7 of what an attack can take, then to 1.5."""
    rng = np.random.default_rng(0)
    self._pixels, self.eps = side * side, 0.1
    most = self.eps * self._pixels
    falls = np.linspace(0.05, 0.7, count - stand) * most
    margins = rng.permutation(np.r_[falls, np.full(stand, 1.5 * most)])
    level = 0.5 + margins / self._pixels
    noise = rng.uniform(-0.1, 0.1, (count, side, side, 1))
    noise -= noise.mean((1, 2, 3), keepdims=True)
    self.images = (level[:, None, None, None] + noise).astype(np.float32)

  def __len__(self) -> int:
    return len(self.images)

  def __call__(self, indices: np.ndarray) -> dict:
    """See `measure.Rows`."""
    place = np.maximum(indices, 0)
    return {
      'image': self.images[place],
      'label': np.ones(len(indices), np.int32),
      'mask': np.asarray(indices) >= 0,
    }

  def ahead(self, indices):
    """Nothing to load."""


def tail(attack: str) -> float:
  """CPU-seconds in batches of 256 to those in batches of 25."""
  rows = Margins()
  turn = np.linalg.qr(np.random.default_rng(0).normal(size=(256, 256)))[0]
  turn, first = turn.astype(np.float32), np.ones(256, np.float32) / 16
  last = np.linalg.matrix_power(turn.T, _LAYERS) @ first

  def logits(x):
    # A linear network: what stands is known, and yet it costs something.
    features = (x - 0.5).sum((2, 3))[:, :, None] * first
    for _ in range(_LAYERS):
      features = features @ turn
    margin = (features @ last).sum(1)
    return jnp.stack([-margin, margin], 1)

  def run_in(batch: int) -> Callable[[], None]:
    mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
    stages = ensemble(attack, 'linf', 2, Budget(100, 1000))
    programs = Programs(
      of_function(logits, None, rows.images.shape[1:], mesh),
      stages,
      norm='linf',
      seed=0,
      batch_size=batch,
    )

    clean = programs.measure.clean(programs.target.params, rows)

    def run():
      radius = Radius(rows.eps, clean)
      engine.attack(programs, Work(radius, rows))
      assert radius.robust_after == {attack: 0.23}, radius.robust_after

    return run

  spent = timing.interleave({n: run_in(n) for n in (256, 25)}, _ROUNDS.value)
  for batch, seconds in spent.items():
    print(f'{attack}, batch {batch}: {statistics.median(seconds):.3f} CPU-s')
  return timing.ratio(spent, 256, 25)


def main(_):
  """Measures, prints the figures and the line of JSON."""
  result = {}
  targets = {'memory_gb': '< 2', 'disk_gb': '< 1', 'share': '>= .9'}
  if 'wide' in _PARTS.value:
    for name, value in wide().items():
      print(f'{name:<16}{value:>10.3f}  {targets.get(name, "")}', flush=True)
      result[name] = round(value, 4)
  if 'tail' in _PARTS.value:
    for attack in ('apgd_ce', 'square'):
      result[f'tail {attack}'] = round(tail(attack), 3)
      print(f'tail {attack:<11}{result[f"tail {attack}"]:>10.3f}  <= 1.15')
  print(json.dumps(result))


if __name__ == '__main__':
  app.run(main)
