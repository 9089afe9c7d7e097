"""Memory of each device while a model trains or is attacked.

  python benchmarks/memory.py [--topology=v5e:2x4] [CONFIG ...]

Read from the programs that are compiled for eight devices that are not there,
so nothing is run: CPUs, or TPUs if libtpu is installed. A device has 32 images
at most, in training as in an attack, so that these can be compared. The last
columns divide the temporaries, activations above all, by those of the training
step and of the dense twin. The compiler of the CPU holds bfloat16 as float32 in
places and keeps what no other would; believe the TPU's. A table for people,
then one line of JSON.
"""

import argparse
import importlib.util
import json
import pathlib

import jax

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust.cost import program
from vmoe_robust.data import known
from vmoe_robust.rehearse import topology
from vmoe_robust.rehearse.programs import Programs

IMAGES = 32  # of a device
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
  ('moe_b16', {'train.accumulate': 2}),
  ('vit_l16', {}),
  ('moe_l16', {}),
)


def load(name: str, fields: dict, devices: int) -> config_lib.ConfigDict:
  """A file of configs/ with some fields changed, and with the data's."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.update_from_flattened_dict(fields)
  batch = min(config.train.batch_size, IMAGES * devices)
  config.train.batch_size = config.attack.batch_size = batch
  config, _ = known.resolve(config)
  config_lib.validate(config, devices)
  return config


def measure(
  config: config_lib.ConfigDict, devices: list[jax.Device]
) -> dict[str, dict[str, int]]:
  """Bytes on a device, by part, of the training step and of the attack."""
  shape = config_lib.mesh_shape(config, len(devices))
  programs, out = Programs(config, mesh_lib.create(shape, devices)), {}
  for use, name in (('train', 'train'), ('attack', 'pgd')):
    memory = program.memory(programs.compile(name))
    out[use] = programs.held(use) | {
      'outputs': memory.outputs,
      'temporaries': memory.temporaries,
      'total': memory.peak,
    }
  return out


def main():
  """Compiles, prints the table and the line of JSON."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('configs', nargs='*', help='of configs/; all if none')
  parser.add_argument('--topology', default='cpu:8', help='such as v5e:2x4')
  wanted = parser.parse_args()
  devices = topology.devices(wanted.topology)
  result, dense = [], {}
  parts = ('weights', 'optimizer', 'averages', 'batch', 'temporaries', 'total')
  print(f'MiB on each of {len(devices)} x {devices[0].device_kind}')
  _print('config', 'changed', 'use', (*parts, 'to training', 'to twin'))
  for name, fields in ROWS:
    if wanted.configs and name not in wanted.configs:
      continue
    found = measure(load(name, fields, len(devices)), devices)
    if 'vit' in name:
      dense = {name.replace('vit', 'moe'): found}
    for use, memory in found.items():
      to = lambda other, memory=memory: round(
        memory['temporaries'] / other['temporaries'], 2
      )
      twin = to(dense[name][use]) if name in dense else ''
      changes = ' '.join(f'{k}={v}' for k, v in fields.items())
      mega = [f'{memory.get(part, 0) / 2**20:,.1f}' for part in parts]
      _print(name, changes, use, (*mega, to(found['train']), twin))
      result.append(
        {'config': name, 'fields': fields, 'use': use}
        | {'bytes': memory, 'to_training': to(found['train'])}
        | ({'to_twin': twin} if name in dense else {})
      )
  print(json.dumps(result))


def _print(name, changes, use, numbers):
  row = f'{name:<12}{changes:<35}{use:<7}'
  print(row + ''.join(f'{number:>12}' for number in numbers), flush=True)


if __name__ == '__main__':
  main()
