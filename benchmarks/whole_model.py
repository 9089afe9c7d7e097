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

import timing
from absl import app, flags
from subjects import model_programs

from vmoe_robust import config as config_lib
from vmoe_robust import presets
from vmoe_robust.models import flops

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
    ready = {which: model_programs(config) for which, config in configs.items()}
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
