"""What a training step costs by each objective, in CPU-seconds and FLOPs.

`python benchmarks/objectives.py --model=digits_moe --rounds=5` prints, of each
objective, its forward passes by formula, its time in those of a natural step,
the same over what the passes allow (passes / 3; the target is at most 1.05),
and the FLOPs of the compiled step over those of as many natural passes.
"""

import argparse
import importlib.util
import pathlib

import jax
import numpy as np
import timing

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.cost import program
from vmoe_robust.models import build
from vmoe_robust.train import objective, optimizer, state, step

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
_STEPS = 5  # of each attack that takes several
_ONE_STEP = ('natural', 'fast', 'nfgsm')


class Run:
  """Steps on one batch of noise."""

  def __init__(self, config):
    size, batch = config.data.image_size, config.train.batch_size
    config.model.update(dict(num_classes=10, channels=1))
    mesh = mesh_lib.create((1, 1, 1), jax.devices()[:1])
    model = build(config.model, (size, size, 1), mesh)
    opt, steps = config.train.optimizer, config.train.steps
    made = optimizer.make(opt, steps)
    self._state, _ = state.create(model, made, 0, True, mesh, False, False)
    rate = optimizer.schedule(opt, steps)
    taken = jax.jit(step.make(model, made, rate, config, mesh))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (batch, size, size, 1), np.uint8)
    label = rng.integers(0, 10, batch).astype(np.int32)
    self._batch = dict(image=image, label=label, mask=np.ones(batch, bool))
    self._step = taken.lower(self._state, self._batch).compile()
    self.passes = objective.forward_passes(config.train.objective)
    self.flops = program.flops(self._step, mesh)

  def __call__(self):
    """Takes a step and waits for it."""
    jax.block_until_ready(self._step(self._state, self._batch))


def configured(model: str, name: str, inner: str):
  """The configuration of a model with an objective."""
  spec = importlib.util.spec_from_file_location(model, CONFIGS / f'{model}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.data.mixup = 0.0
  fields = {} if name == 'natural' else {'eps': 16 / 255, 'inner': inner}
  if name not in _ONE_STEP:
    fields['steps'] = _STEPS
  config.train.objective.update(dict(name=name) | fields)
  return config


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--model', default='digits_moe')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--inner', default='evaluation')
  given = parser.parse_args()
  names = list(objective.OBJECTIVES)
  if '_vit' in given.model:
    names.remove('advmoe')
  runs = {n: Run(configured(given.model, n, given.inner)) for n in names}
  found, natural = timing.interleave(runs, given.rounds), runs['natural']
  print('objective  passes  time  of allowed  FLOPs of natural passes')
  for name, run in runs.items():
    time = timing.ratio(found, name, 'natural')
    allowed = run.passes / natural.passes
    flops = run.flops / natural.flops / allowed
    print(
      f'{name:9}  {run.passes:6}  {time:4.2f}  {time / allowed:10.2f}  '
      f'{flops:.2f}'
    )


if __name__ == '__main__':
  main()
