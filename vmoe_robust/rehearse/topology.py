"""The devices of a pod that is not there."""

import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from vmoe_robust.config import UserError

# How many axes the torus of a generation has.
_AXES = {'v4': 3, 'v5e': 2, 'v5p': 3, 'v6e': 2}
_EXAMPLES = {2: '4x4 or 16x16', 3: '2x2x1 or 4x4x4'}


def devices(name: str, slices: int = 1) -> list[jax.Device]:
  """The devices of a topology: of TPUs, to compile for and no more.

  Args:
    name: such as 'v5e:4x4', 'v5p:4x4x4' or 'cpu:8'.
    slices: of this topology each, joined by the data centre's network.

  Raises:
    UserError: there is no such topology, or libtpu is not installed.
  """
  jax.config.update('jax_platforms', 'cpu')
  if slices < 1:
    raise UserError(f'--slices={slices} must be 1 or more')
  kind, _, size = name.partition(':')
  if kind == 'cpu' and size.isdigit() and int(size):
    if slices > 1:
      raise UserError(f'--slices={slices}: {name} has no slices; leave it out')
    return _cpus(int(size))
  if kind not in _AXES or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)+', size):
    raise UserError(
      f'--topology={name!r} is not known; write v4, v5p:4x4x4, v5e or '
      'v6e:16x16 in this form, or cpu:8'
    )
  sizes = [int(n) for n in size.split('x')]
  if len(sizes) != _AXES[kind]:
    raise UserError(
      f'--topology={name!r}: a {kind} has {_AXES[kind]} axes; use one such as '
      f'{kind}:{_EXAMPLES[_AXES[kind]]}'
    )
  return _tpus(name, slices, math.prod(sizes))


def _cpus(count: int) -> list[jax.Device]:
  try:
    jax.config.update('jax_num_cpu_devices', count)
  except RuntimeError:
    pass  # JAX runs already, with as many as it was told then
  found = jax.devices('cpu')
  if len(found) < count:
    raise UserError(
      f'--topology=cpu:{count} needs more than the {len(found)} devices that '
      'JAX was started with; leave out XLA_FLAGS'
    )
  return found[:count]


def _tpus(name: str, slices: int, chips: int) -> list[jax.Device]:
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      f"--topology={name} needs the TPU's compiler; install it by "
      "pip install 'vmoe_robust[tpu]', or rehearse on --topology=cpu:8"
    )
  # Nobody to ask about a pod here, and no chip that two programs might want.
  about = dict(
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_WORKER_ID='0',
    TPU_ACCELERATOR_TYPE=name.replace(':', '-'),
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
  )
  for variable, value in about.items():
    os.environ.setdefault(variable, value)
  options: dict[str, Any] = {}
  if name.startswith('v4:'):
    options['chip_config_name'] = 'megacore'  # both cores are one device
  if chips == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  if slices > 1:
    options['num_slices'] = slices
  try:
    found = topologies.get_topology_desc(name, 'tpu', **options)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise UserError(f'--topology={name!r} is refused: {reason}') from error
  return list(found.devices)
