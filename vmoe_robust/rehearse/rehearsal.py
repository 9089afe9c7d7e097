"""Everything that one rehearsal finds out, as plain numbers."""

import dataclasses
import importlib.metadata
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vmoe_robust import mesh as mesh_lib
from vmoe_robust.attacks.passes import forward_passes as attack_passes
from vmoe_robust.config import (
  UserError,
  batch_size,
  mesh_shape,
  validate,
)
from vmoe_robust.cost import hardware, program
from vmoe_robust.data import known
from vmoe_robust.models import flops
from vmoe_robust.rehearse import advice, estimate, topology
from vmoe_robust.rehearse.programs import JUDGE, TRAIN, Programs
from vmoe_robust.train.objective import forward_passes

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
    config: what to rehearse; without `attack.at_end` and `attack.every_steps`
      the training step alone.
    name: of the topology, such as 'v5p:4x4x4' or 'cpu:8'.
    slices: how many of it, joined by the data centre's network.
    examples: that the attack would be run on; 0: the evaluation split's.
    say: told what takes a while.

  Returns:
    What `show` shows; bytes are those of a chip. Without an attack there is no
    'attack'.

  Raises:
    UserError: the configuration cannot work on this topology.
  """
  if config.mode != 'train':
    raise UserError(
      f'config.mode={config.mode!r} needs a checkpoint; rehearse the '
      'configuration that trains it, which is attacked as its config.attack '
      'says'
    )
  if examples < 0:
    raise UserError(f'--examples={examples} must be 0 or more')
  devices = topology.devices(name, slices)
  config, examples = known.resolve(config, examples)
  programs = Programs(config, _mesh(config, devices))
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
  kind = f'{len(devices)} x {out["device_kind"]}'
  say(f'compiling the training step for {kind}')
  out['programs'][TRAIN] = _train(programs)
  if not (config.attack.at_end or config.attack.every_steps):
    say('no attack is compiled: config.attack.at_end=False')
    return out
  stages = programs.stages()
  say(f'compiling the attack ({", ".join(stages)}) for {kind}')
  judge = _compile(programs, JUDGE)
  found = {name: _stage(programs, name, judge, examples) for name in stages}
  out['programs'] |= found
  out['attack'] = _whole(
    list(found.values()), examples * len(config.attack.eps)
  )
  return out


def _mesh(config: ConfigDict, devices: list[jax.Device]) -> Mesh:
  validate(config, len(devices))
  return mesh_lib.create(mesh_shape(config, len(devices)), devices)


@dataclasses.dataclass(frozen=True)
class _Compiled:
  """What the compiler says of a program."""

  seconds: float  # that it took
  sizes: dict[str, int]  # bytes on a device
  costs: program.Costs | None  # None: the program is too large


def _compile(programs: Programs, name: str) -> _Compiled:
  begun = time.perf_counter()
  try:
    compiled = programs.compile(name)
  except jax.errors.JaxRuntimeError as error:
    found = _TOO_LARGE.search(str(error))
    if not found:
      raise
    # The compiler names either all or, of a program that cannot be, the most.
    size = int(float(found['size']) * _UNITS[found['unit']])
    sizes, costs = {'total' if found['all'] else 'temporaries': size}, None
  else:
    memory = program.memory(compiled)
    sizes = {
      'outputs': memory.outputs,
      'temporaries': memory.temporaries,
      'code': memory.code,
      'total': memory.peak,
    }
    costs = program.costs(compiled, programs.mesh)
  return _Compiled(time.perf_counter() - begun, sizes, costs)


def _train(programs: Programs) -> dict:
  config, parts = programs.config, programs.held('train')
  found = _compile(programs, TRAIN)
  sizes = parts | found.sizes
  sizes.setdefault('total', sum(sizes.values()))
  # What stays whatever the batch; the gradient is one of the weights.
  state = sum(parts.values()) - parts['batch'] + parts['weights']
  passes = forward_passes(config.train.objective)
  out = _part(programs, 'train', found, sizes, state, passes)
  return out | _hours(out, config.train.steps, programs.mesh.size)


def _stage(
  programs: Programs, name: str, judge: _Compiled, examples: int
) -> dict:
  """A run of a stage on a batch, which is judged."""
  config, parts = programs.config, programs.held('attack')
  stage, found = programs.stages()[name], _compile(programs, name)
  if found.costs and judge.costs:
    costs = found.costs + judge.costs
    found = dataclasses.replace(found, costs=costs)
  else:
    found = dataclasses.replace(found, costs=None)
  sizes = parts | found.sizes
  waiting = sizes.get('outputs', 0)  # what is in the slots, meanwhile
  # Of training, where it attacks; the programs do not know of it.
  training = sum(parts.get(n, 0) for n in ('optimizer', 'averages', 'images'))
  sizes['judging'] = sum((parts | judge.sizes).values()) + waiting
  if 'total' in judge.sizes:
    sizes['judging'] = judge.sizes['total'] + waiting + training
  own = sizes.pop('total', None)
  own = own + parts['outbox'] + training if own else sum(sizes.values())
  sizes['total'] = max(own, sizes['judging'])
  classes = config.model.num_classes
  passes = attack_passes(stage, classes, programs.judged)
  state = parts['weights'] + training
  out = _part(programs, 'attack', found, sizes, state, passes)
  out |= dict(attempts=stage.attempts, steps=stage.attack.steps)
  calls = estimate.calls(config, stage, examples)
  if 'images_per_second' in out:
    each = out['steps'] * out['images_per_second']
    out['image_steps_per_second'] = each
  return out | _hours(out, calls, programs.mesh.size)


def _whole(stages: list[dict], images: int) -> dict:
  """All stages together, if every image stands to the end."""
  out = {
    'total': max(one['bytes']['total'] for one in stages),
    'fits': None
    if stages[0]['fits'] is None
    else all(one['fits'] for one in stages),
  }
  if all('hours' in one for one in stages):
    for name in ('hours', 'chip_hours'):
      out[name] = sum(one[name] for one in stages)
    out['images_per_second'] = images / (3600 * out['hours'])
  return out


def _part(
  programs: Programs,
  use: str,
  found: _Compiled,
  sizes: dict[str, int],
  state: int,
  passes: int,
) -> dict:
  """What is known of a program.

  Args:
    programs: to which it belongs.
    use: 'train' or 'attack'.
    found: by compiling it.
    sizes: bytes by their part, and 'total'.
    state: bytes that stay whatever the batch.
    passes: that it computes, by formula.
  """
  config, mesh = programs.config, programs.mesh
  chip = hardware.chip(mesh.devices.flat[0].device_kind)
  model, size = config.model, config.data.image_size
  formula = passes * flops.forward(model, size, model.channels)
  limit = chip and chip.hbm
  out: dict[str, Any] = {
    'batch': batch_size(config, use),
    'compile_seconds': found.seconds,
    'flops_per_image_by_formula': formula,
    'bytes': sizes,
    'limit': limit,
    'fits': None,
  }
  if found.costs:
    out |= _costs(found.costs, mesh.size, out['batch'])
  if limit:
    out['fits'] = found.costs is not None and sizes['total'] <= limit
    if not out['fits']:
      rest = sizes['total'] - state
      out['advice'] = advice.advise(
        config, mesh.size, use, state, rest, int(limit), mesh_lib.slices(mesh)
      )
    elif chip.links:
      out |= _speed(found.costs, chip, mesh.size, out['batch'], formula)
  return out


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


def _speed(costs, chip, chips, batch, formula) -> dict:
  roof = estimate.roofline(costs, chip)
  return {
    'seconds': dataclasses.asdict(roof),
    'bound': roof.bound,
    'images_per_second': batch / roof.seconds,
    'mfu': formula * batch / (roof.seconds * chip.peak * chips),
  }


def _hours(part: dict, calls: int, chips: int) -> dict:
  if 'seconds' not in part:
    return {'calls': calls}
  hours = calls * max(part['seconds'].values()) / 3600
  return {'calls': calls, 'hours': hours, 'chip_hours': hours * chips}


def _versions() -> dict[str, str]:
  out = {'jax': jax.__version__}
  try:
    out['libtpu'] = importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    pass
  return out
