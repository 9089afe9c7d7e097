"""How much of a study's time is the arithmetic that it has to do.

  python benchmarks/studies.py --checkpoint=WORKDIR [--studies=NAME,NAME]

WORKDIR is a run of configs/digits_moe.py. Each study judges the 360 test
images in batches of 120, at one radius. Its passes, as docs/studies.md states
them, are multiplied by what a forward pass of such a batch takes by itself. The
forward passes take their turns between the batches, so that a busy machine
slows both alike. One thread; CPU-seconds of the process, which count everything
after the first batch: the study's program, loading, and what the host does in
between. The first batch compiles and does not count.

Passes are of four kinds, each timed by itself: the model as it is, the model
whose tokens have all experts, that with capacity, and one sparse layer.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time

# Before JAX is imported.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('XLA_FLAGS', '--xla_cpu_multi_thread_eigen=false')
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])

import jax  # noqa: E402
import numpy as np  # noqa: E402

from vmoe_robust import config as config_lib  # noqa: E402
from vmoe_robust.data import Part  # noqa: E402
from vmoe_robust.evaluate import job as job_lib  # noqa: E402
from vmoe_robust.models import build  # noqa: E402
from vmoe_robust.robustness.target import as_floats  # noqa: E402
from vmoe_robust.studies import (  # noqa: E402
  STUDIES,
  conditions,
  jacobian,
  misrouting,
  questions,
)

BATCH, IMAGES = 120, 360
MODEL, ALL, CAPACITY, LAYER = 'model', 'all experts', 'capacity', 'layer'
# Passes of each kind of program between two readings of the clock.
_TIMES = 8
# Settings that keep the less interesting part of a study short.
FIELDS = {
  'batch_dependence': dict(draws=2),
  'jacobian': dict(iterations=10),
  'knobs': dict(attack_draws=4, verdict_draws=8),
  'lipschitz': dict(iterations=10),
  'misrouting': dict(names=('fog', 'contrast'), severities=(1, 5)),
  'pruning': dict(draws=1),
  'router_controls': dict(draws=2),
  'routing_attacks': dict(left_by='apgd_ce', lambdas=(0.1, 1.0)),
}


def passes(config) -> dict[str, dict[str, float]]:
  """Passes an image of each study at one radius, by kind."""
  attack = 2 + 2 * config.attack.steps
  judged, steps = attack + 1, config.attack.steps
  blocks = len(config_lib.moe_blocks(config.model))
  experts, layers = config.model.experts, config.model.layers
  group = config.model.router.group_images
  of = lambda name: FIELDS.get(name, {})
  forced = 1 + blocks + blocks * experts
  removed = 1 + (2 + of('pruning')['draws']) * (experts - 1)
  places = blocks + (blocks > 1)
  substituted = 1 + places * (experts + 1 + config.model.router.selected)
  knobs = of('knobs')
  a, v = knobs['attack_draws'], knobs['verdict_draws']
  ks = experts.bit_length()  # K and numbers of experts: 1, 2, 4 and so on
  larger = [2**i for i in range(1, ks)]
  # By how many other experts they are more than one, over all others.
  more = sum(k - 1 for k in larger) / (experts - 1)
  alike = 1 + len(larger) + len(larger) - more  # kept: as trained; and K
  noise = 2 * (2 * v + a * attack)
  iterations = of('lipschitz')['iterations']
  pairs = config_lib.default().study.lipschitz.pairs
  tokens = config_lib.default().study.margin.tokens or _tokens(config)
  below = sum(
    tokens * 3 * (block + 1) / layers
    for block in config_lib.moe_blocks(config.model)
  )
  variants = of('misrouting')
  shown = 1 + len(variants['names']) * len(variants['severities'])
  controls = 3 + of('router_controls')['draws']
  lambdas = len(of('routing_attacks')['lambdas'])
  model = {
    'forced_expert': forced * (1 + judged),
    'frozen_routing': 1 + 2 * attack + 4,
    'lipschitz': 4 + 3 * iterations + 54 + 4 * pairs + 2 * steps,
    'losses': 1 + 3 * judged,
    'margin': 2 + below + judged,
    'misrouting': 3 * shown,
    'norm_union': 1 + 3 * judged,
    'pruning': removed * 2 + attack,
    'routing_attacks': 1 + (3 + 2 * lambdas) * judged,
    'routing_change': 1 + judged,
    'substitution': 2 * substituted + attack,
    'transfer': 2 + 2 * (2 + attack),
  }
  found = {name: {MODEL: number} for name, number in model.items()}
  draws = of('batch_dependence')['draws']
  found['batch_dependence'] = {
    MODEL: 1,
    CAPACITY: 3 + draws + group + group * (judged + steps + 3),
  }
  found['load'] = {
    MODEL: 1 + attack + 2,
    CAPACITY: 1 + attack + 2,
  }
  found['router_controls'] = {
    MODEL: controls * (1 + judged),
    ALL: 1 + judged,
  }
  found['knobs'] = {
    MODEL: alike * (1 + judged) + noise,
    ALL: more * (1 + judged),
    CAPACITY: 2 * 3,
  }
  found['jacobian'] = {
    MODEL: 7 + 2 * blocks,
    LAYER: blocks * (20 + 12 * of('jacobian')['iterations']),
  }
  return found


def _tokens(config) -> int:
  size = config.data.image_size
  return (size // config.model.patch) ** 2


class Clock:
  """Stands for `progress`, and lets passes take their turn after a batch."""

  def __init__(self, programs):
    self.programs, self._begin = programs, None
    self.study = []
    self.alone = {name: [] for name in programs}

  @contextlib.contextmanager
  def __call__(self, total, what, unit):
    """As `evaluate.batches.progress`."""
    self._begin = None
    yield self._update
    self._begin = None

  def _update(self, done, images=0, text=''):
    del done, images, text
    if self._begin is not None:
      self.study.append(time.process_time() - self._begin)
    for name, program in self.programs.items():
      begin = time.process_time()
      for _ in range(_TIMES):
        jax.block_until_ready(program())
      if self._begin is not None:
        took = (time.process_time() - begin) / _TIMES
        self.alone[name].append(took)
    self._begin = time.process_time()


def forwards(job, kinds) -> dict:
  """A program of each of some kinds on one batch, compiled."""
  model, params = job.classifier.model, job.classifier.params
  settings = job.config.model.copy_and_resolve_references()
  settings.router.selected = settings.experts
  whole = build(settings, model.image_shape, model.module.mesh)
  images = np.stack([job.source[i]['image'] for i in range(BATCH)])
  images = jax.device_put(as_floats(images))
  mask = jax.device_put(np.ones(BATCH, bool))
  block = f'encoderblock_{config_lib.moe_blocks(settings)[0]}'

  def forward(model, experts):
    run = jax.jit(
      lambda params, x: model.apply(params, x, experts=experts, mask=mask)[0]
    )
    return lambda: run(params, images)

  def of_layer():
    see = jax.jit(lambda p: jacobian.inputs(model, p, images, mask)[block])
    tokens = see(params)
    run = jax.jit(
      lambda params, tokens: jacobian.layer(
        model, params, block, mask, jacobian.TOTAL, tokens
      )
    )
    return lambda: run(params, tokens)

  make = {
    MODEL: lambda: forward(model, 'dropless'),
    ALL: lambda: forward(whole, 'dropless'),
    CAPACITY: lambda: forward(model, 'capacity'),
    LAYER: of_layer,
  }
  found = {kind: make[kind]() for kind in kinds}
  for program in found.values():
    jax.block_until_ready(program())
  return found


def measured(name: str, args) -> dict[str, float]:
  """Passes, CPU-seconds and the share, of one study."""
  config = config_lib.default()
  config.mode, config.study.name = 'study', name
  config.checkpoint = args.checkpoint
  config.data.update(name='', split='', threads=1)
  config.study[name].update(FIELDS.get(name, {}) | {'batch_size': BATCH})
  if config_lib.attacks(config):
    config.attack.steps = args.steps
    if name != 'norm_union':
      config.attack.eps = (8 / 255,)
  study = STUDIES[name]
  if name == 'transfer':
    config.study.transfer.others = (args.checkpoint,)
    config = study.settled(config)
  with (
    tempfile.TemporaryDirectory() as workdir,
    job_lib.open_job(config, workdir, study.render) as job,
  ):
    more = np.concatenate([np.arange(BATCH), np.arange(IMAGES)])
    job = job_lib.dataclasses.replace(job, source=Part(job.source, more))
    kinds = passes(job.config)[name]
    clock = Clock(forwards(job, kinds))
    for module in (conditions, questions, misrouting):
      module.progress = clock
    study.run(job)
  # Of several corruptions there are more batches: a batch is what counts.
  batches = len(clock.study)
  if name == 'misrouting':
    whole = 1 + len(FIELDS[name]['names']) * len(FIELDS[name]['severities'])
    kinds = {kind: number / whole for kind, number in kinds.items()}
  expected = [
    sum(number * clock.alone[kind][i] for kind, number in kinds.items())
    for i in range(batches)
  ]
  shares = [e / t for e, t in zip(expected, clock.study, strict=True)]
  return {
    'passes': sum(kinds.values()),
    'arithmetic': statistics.median(expected),
    'study': statistics.median(clock.study),
    'share': statistics.median(shares),
  }


def main():
  """Prints a line a study."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--studies', default='')
  parser.add_argument('--steps', type=int, default=10, help='of the attacks')
  args = parser.parse_args()
  left_out = ('certificates', 'corruptions', 'theory')
  names = args.studies.split(',') if args.studies else STUDIES
  print('study             passes  arithmetic  took (CPU-s a batch)  share')
  for name in names:
    if name in left_out:
      continue
    one = measured(name, args)
    print(
      f'{name:<17} {one["passes"]:>6,.0f}  {one["arithmetic"]:>10.3f}  '
      f'{one["study"]:>20.3f}  {one["share"]:>5.0%}',
      flush=True,
    )


if __name__ == '__main__':
  main()
