"""Memory of each device while a model trains or is attacked.

  python benchmarks/memory.py [CONFIG ...]

Read from the programs that are compiled for eight CPU devices that are not
there, so nothing is run. An attack has as many images as a training step, to
be compared with it. The last columns divide the temporaries, activations
above all, by those of the training step and of the dense twin. The compiler
of the CPU holds bfloat16 as float32 in places; for a TPU ask
`python -m vmoe_robust.rehearse`. A table for people, then one line of JSON.
"""

import importlib.util
import json
import os
import pathlib
import sys

# Before JAX is imported.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

from vmoe_robust import config as config_lib  # noqa: E402
from vmoe_robust import mesh as mesh_lib  # noqa: E402
from vmoe_robust.mesh import program  # noqa: E402
from vmoe_robust.rehearse import datasets  # noqa: E402
from vmoe_robust.rehearse.programs import Programs  # noqa: E402
from vmoe_robust.report.table import table  # noqa: E402

DEVICES = 8
CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
# A configuration, and fields that it is changed by. Each sparse one stands
# behind its dense twin.
ROWS = (
  ('digits_vit', {}),
  ('digits_moe', {}),
  ('cifar10_vit', {}),
  ('cifar10_moe', {}),
  ('vit_s32', {}),
  ('moe_s32', {}),
  ('vit_b16', {}),
  ('moe_b16', {}),
  ('moe_b16', {'mesh.expert': 4}),
  ('moe_b16', {'mesh.expert': 4, 'mesh.zero1': True}),
  ('moe_b16', {'mesh.expert': 4, 'mesh.fsdp': True}),
  ('moe_b16', {'train.remat': 'dots'}),
  ('moe_b16', {'train.remat': 'blocks'}),
  ('moe_b16', {'train.accumulate': 4}),
)


def load(name: str, fields: dict) -> config_lib.ConfigDict:
  """A file of configs/ with some fields changed, and with the data's."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.update_from_flattened_dict(fields)
  config.attack.batch_size = config.train.batch_size
  config, _ = datasets.resolve(config)
  config_lib.validate(config, DEVICES)
  return config


def measure(config: config_lib.ConfigDict) -> dict[str, dict[str, int]]:
  """Bytes on a device, by part, of the training step and of the attack."""
  mesh = mesh_lib.create(config_lib.mesh_shape(config, DEVICES))
  programs, out = Programs(config, mesh), {}
  for use in ('train', 'attack'):
    memory = program.memory(programs.compile(use))
    out[use] = programs.held(use) | {
      'outputs': memory.outputs,
      'temporaries': memory.temporaries,
      'total': memory.peak,
    }
  return out


def main():
  """Compiles, prints the table and the line of JSON."""
  wanted, rows, result, dense = sys.argv[1:], [], [], {}
  parts = ('weights', 'optimizer', 'averages', 'batch', 'temporaries', 'total')
  for name, fields in ROWS:
    if wanted and name not in wanted:
      continue
    found = measure(load(name, fields))
    if 'vit' in name:
      dense = {name.replace('vit', 'moe'): found}
    for use, memory in found.items():
      to = lambda other, memory=memory: round(
        memory['temporaries'] / other['temporaries'], 2
      )
      twin = to(dense[name][use]) if name in dense else ''
      changes = ' '.join(f'{k}={v}' for k, v in fields.items())
      mega = [f'{memory.get(part, 0) / 2**20:,.1f}' for part in parts]
      rows.append((name, changes, use, *mega, to(found['train']), twin))
      result.append(
        {'config': name, 'fields': fields, 'use': use}
        | {'bytes': memory, 'to_training': to(found['train'])}
        | ({'to_twin': twin} if name in dense else {})
      )
  heads = ('config', 'changed', 'use', *parts, 'to training', 'to twin')
  print(f'MiB on each of {DEVICES} devices')
  print(table(heads, rows))
  print(json.dumps(result))


if __name__ == '__main__':
  main()
