"""Speed of whole models, sparse against dense: training step and PGD step.

  python benchmarks/whole_model.py [--rounds=5] [--models=tiny,s32]

float32 on one device. The programs are those of a run: one step of the
optimizer, and a run of PGD on a batch, ten steps with dropless experts. The
sparse model and its dense twin, the same without experts, take turns; a number
is the median over the rounds of the ratio of CPU-seconds of the process. Beside
it stands the ratio of FLOPs by formula, which it would be were the hardware
used as well. A table for people, then one line of JSON.
"""

import json
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import timing
from absl import app, flags

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust import presets
from vmoe_robust.evaluate.attack import Attacker
from vmoe_robust.models import build, flops
from vmoe_robust.train import optimizer as optimizer_lib
from vmoe_robust.train import state as state_lib
from vmoe_robust.train import step as step_lib

_MODELS = flags.DEFINE_list('models', ['tiny', 's32'], 'Which models.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns that each program takes.')

_TINY = dict(patch=4, hidden=192, layers=6, heads=3, mlp=768)
MODELS = {
  'tiny': (32, 64, 4, dict(_TINY, moe_blocks=(1, 3, 5))),
  's32': (224, 32, 8, dict(presets.model_size('S/32'), moe_blocks=(5, 7))),
}


def experiment(name: str, experts: int) -> config_lib.ConfigDict:
  """A model's configuration; without experts that of its dense twin."""
  size, batch, group, fields = MODELS[name]
  config = config_lib.default()
  config.data.image_size = size
  config.model.update(fields, num_classes=1000, channels=3, experts=experts)
  config.model.router.update(selected=2, group_images=group)
  config.train.batch_size = batch
  config.attack.update(steps=10)
  return config


def programs(config: config_lib.ConfigDict) -> dict:
  """What is timed, as functions of no arguments."""
  size, number = config.data.image_size, config.train.batch_size
  mesh, settings = mesh_lib.create((1, 1, 1), jax.devices()[:1]), config.train
  model = build(config.model, (size, size, 3), mesh)
  optimizer = optimizer_lib.make(settings.optimizer, settings.steps)
  state, _ = state_lib.create(model, optimizer, 0, False, mesh, False, False)
  rate = optimizer_lib.schedule(settings.optimizer, settings.steps)
  step = step_lib.make(model, optimizer, rate, config, mesh)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (number, size, size, 3), np.uint8),
    'label': rng.integers(0, 1000, number).astype(np.int32),
    'mask': np.ones(number, bool),
    'index': np.arange(number, dtype=np.int32),
  }
  step, eps = jax.jit(step, donate_argnums=0), np.float32(8 / 255)
  params = jax.tree.map(jnp.copy, state.params)
  attack = Attacker(model, config).programs(params).attempt(0)
  batch_of_attack = batch | {'target': batch['label']}

  def train():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))

  def pgd():
    jax.block_until_ready(attack(params, batch_of_attack, eps))

  return {'train': train, 'PGD': pgd}


def import_megabytes() -> float:
  """Most memory that importing the program takes."""
  code = 'import vmoe_robust.main'
  subprocess.run([sys.executable, '-c', code], check=True)
  return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main(_):
  """Measures, prints the table and the line of JSON."""
  result = {'import_megabytes': round(import_megabytes(), 1)}
  print(f'importing takes {result["import_megabytes"]} MB')
  print(f'{"model":<6}{"program":<8}{"to dense":>10}{"FLOPs":>8}{"share":>8}')
  for name in _MODELS.value:
    configs = {'sparse': experiment(name, 8), 'dense': experiment(name, 0)}
    work = {
      which: flops.forward(config.model, config.data.image_size)
      for which, config in configs.items()
    }
    expected = work['sparse'] / work['dense']
    ready = {which: programs(config) for which, config in configs.items()}
    for program in ('train', 'PGD'):
      runs = {which: ready[which][program] for which in configs}
      spent = timing.interleave(runs, _ROUNDS.value)
      found = timing.ratio(spent, 'sparse', 'dense')
      share = found / expected
      print(f'{name:<6}{program:<8}{found:>10.2f}{expected:>8.2f}{share:>8.2f}')
      result[f'{name} {program}'] = dict(
        to_dense=round(found, 3),
        flops=round(expected, 3),
        share=round(share, 3),
      )
  print(json.dumps(result))


if __name__ == '__main__':
  app.run(main)
