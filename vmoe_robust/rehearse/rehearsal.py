"""Everything that one rehearsal finds out, as plain numbers."""

import dataclasses
import importlib.metadata
import re
import time
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.config import (
  WHOLE_ATTACKS,
  UserError,
  batch_size,
  mesh_shape,
  validate,
)
from vmoe_robust.cost import hardware, program
from vmoe_robust.models import flops
from vmoe_robust.rehearse import advice, datasets, estimate, topology
from vmoe_robust.rehearse.programs import Programs

_NAMES = {'train': 'training step', 'attack': 'attack'}
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# What libtpu says of a program that is too large.
_TOO_LARGE = re.compile(
  r'((?P<all>Used )|temporaries \()(?P<size>[\d.]+)(?P<unit>[KMGT]?)'
  r'( of [\d.]+\w hbm|\) exceeds available)'
)


def rehearse(
  config: ConfigDict,
  name: str,
  slices: int = 1,
  examples: int = 0,
  say: Callable[[str], None] = print,
) -> dict:
  """Compiles training step and attack for a topology and measures them.

  Args:
    config: what to rehearse.
    name: of the topology, such as 'v5p:4x4x4' or 'cpu:8'.
    slices: how many of it, joined by the data centre's network.
    examples: that the attack would be run on; 0: the evaluation split's.
    say: told what takes a while.

  Returns:
    What `show` shows; bytes are those of a chip.

  Raises:
    UserError: the configuration cannot work on this topology.
  """
  devices = topology.devices(name, slices)
  config, examples = datasets.resolve(config, examples)
  programs = Programs(config, _mesh(config, devices, slices))
  out = {
    'topology': name,
    'slices': slices,
    'chips': len(devices),
    'device_kind': devices[0].device_kind,
    'mesh': dict(programs.mesh.shape),
    'parameters': sum(x.size for x in jax.tree.leaves(programs.state.params)),
    'examples': examples,
    'versions': _versions(),
    'programs': {},
  }
  for use in ('train', 'attack'):
    say(
      f'compiling the {_NAMES[use]} for {len(devices)} x {out["device_kind"]}'
    )
    out['programs'][use] = _one(programs, use, examples)
  return out


def _mesh(config: ConfigDict, devices: list[jax.Device], slices: int) -> Mesh:
  if config.mode != 'train':
    raise UserError(
      f'config.mode={config.mode!r} needs a checkpoint; rehearse the '
      'configuration that trains it, which is attacked as its config.attack '
      'says'
    )
  if config.attack.name not in WHOLE_ATTACKS:
    raise UserError(
      f'config.attack.name={config.attack.name!r} is many programs, which run '
      'as long as images stand; rehearse --config.attack.name=pgd, whose steps '
      'cost the same'
    )
  validate(config, len(devices))
  shape = mesh_shape(config, len(devices))
  if shape[0] % slices:
    raise UserError(
      f'--slices={slices} does not divide the data axis of {shape[0]}, along '
      'which slices are joined; set --config.mesh.expert to '
      f'{len(devices) // slices // config.mesh.model} or a part of it'
    )
  return mesh_lib.create(shape, devices)


def _one(programs: Programs, use: str, examples: int) -> dict:
  config, mesh = programs.config, programs.mesh
  chip = hardware.chip(mesh.devices.flat[0].device_kind)
  start = time.perf_counter()
  compiled, sizes = _compile(programs, use)
  model, size = config.model, config.data.image_size
  formula = flops.forward(model, size, model.channels)
  formula *= estimate.forward_passes(config, use)
  out = {
    'batch': batch_size(config, use),
    'compile_seconds': time.perf_counter() - start,
    'flops_per_image_by_formula': formula,
  }
  parts = programs.held(use)
  out['bytes'] = parts | sizes
  # The compiler names either all or, of a program that cannot be, the most.
  out['bytes'].setdefault('total', sum(out['bytes'].values()))
  if compiled:
    costs = program.costs(compiled, mesh)
    out |= _costs(costs, mesh.size, out['batch'])
  out['limit'] = chip and chip.hbm
  out['fits'] = None
  if chip and chip.hbm:
    out['fits'] = compiled is not None and out['bytes']['total'] <= chip.hbm
    if not out['fits']:
      state = _state(parts, use)
      rest = out['bytes']['total'] - state
      out['advice'] = advice.advise(
        config, mesh.size, use, state, rest, int(chip.hbm)
      )
    elif chip.links:
      out |= _speed(config, use, costs, chip, mesh.size, examples)
  return out


def _compile(programs: Programs, use: str):
  """The program and its bytes; None and what is known if it is too large."""
  try:
    compiled = programs.compile(use)
  except jax.errors.JaxRuntimeError as error:
    found = _TOO_LARGE.search(str(error))
    if not found:
      raise
    size = int(float(found['size']) * _UNITS[found['unit']])
    return None, {'total' if found['all'] else 'temporaries': size}
  memory = program.memory(compiled)
  return compiled, {
    'outputs': memory.outputs,
    'temporaries': memory.temporaries,
    'code': memory.code,
    'total': memory.peak,
  }


def _state(parts: dict[str, int], use: str) -> int:
  """Bytes that stay whatever the batch; the gradient is one of the weights."""
  fixed = sum(parts.values()) - parts['batch']
  return fixed + (parts['weights'] if use == 'train' else 0)


def _costs(costs: program.Costs, chips: int, batch: int) -> dict:
  groups = {}
  for one in costs.collectives:
    key = one.kind, one.dtype, one.axes, one.slices
    entry = groups.setdefault(key, {'count': 0, 'bytes': 0})
    entry['count'] += one.count
    entry['bytes'] += one.count * one.bytes
  names = 'kind', 'dtype', 'axes', 'slices'
  return {
    'flops_per_image': costs.flops * chips / batch,
    'hbm_traffic': costs.bytes,
    'collectives': [
      dict(zip(names, key, strict=True)) | entry
      for key, entry in sorted(groups.items(), key=lambda item: item[0][0])
    ],
    'open_loops': len(costs.open_loops),
  }


def _speed(config, use, costs, chip, chips, examples) -> dict:
  roof = estimate.roofline(costs, chip)
  batch = batch_size(config, use)
  calls = estimate.calls(config, use, examples)
  model, size = config.model, config.data.image_size
  active = flops.forward(model, size, model.channels) * batch
  active *= estimate.forward_passes(config, use)
  seconds = roof.seconds
  out = {
    'seconds': dataclasses.asdict(roof),
    'bound': roof.bound,
    'images_per_second': batch / seconds,
    'mfu': active / (seconds * chip.peak * chips),
    'calls': calls,
    'hours': calls * seconds / 3600,
    'chip_hours': calls * seconds * chips / 3600,
  }
  if use == 'attack':
    steps = config.attack.steps * config.attack.restarts
    out['image_steps_per_second'] = steps * batch / seconds
  return out


def _versions() -> dict[str, str]:
  out = {'jax': jax.__version__}
  try:
    out['libtpu'] = importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    pass
  return out
