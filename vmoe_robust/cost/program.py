"""What a compiled program costs: FLOPs, HBM traffic, memory, collectives.

Read from the program's own text, because XLA's `cost_analysis` counts the body
of a loop once, on CPU and TPU alike, and knows nothing of collectives. A loop
whose turns depend on data is counted as one turn, and named. (On GPUs products
are calls of libraries, whose FLOPs are not counted here.)
"""

import dataclasses
import math
import re
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import PyTree

from vmoe_robust.cost import hardware, hlo, traffic

_KINDS = (
  *('all-to-all', 'ragged-all-to-all', 'all-gather', 'all-reduce'),
  *('reduce-scatter', 'collective-permute', 'collective-broadcast'),
)
_START = re.compile(rf'({"|".join(_KINDS)})(-start)?')


@runtime_checkable
class Compiled(Protocol):
  """What has a text, as `jax.stages.Compiled` has."""

  def as_text(self) -> str | None:
    """The program in XLA's notation; None if the compiler does not tell."""
    ...


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction by which devices exchange data."""

  kind: str  # as XLA names it, such as 'all-to-all'
  dtype: str  # XLA's name, such as 'bf16'; of several arrays the first's
  bytes: int  # of a device's arrays: put in or got out, whatever is more
  count: int  # how often it runs in one call of the program
  devices: int  # that exchange with each other
  axes: tuple[str, ...]  # of the mesh that it runs along
  slices: int  # TPU slices that it joins, by their network; 1: inside of one
  hops: float  # links between two of the devices, in the mean
  label: str  # where in the Python code it comes from

  @property
  def links(self) -> float:
    """Bytes a device puts on its links each time, by the best algorithm.

    Rings pass data to neighbours; what each sends to each is passed on by all
    that lie between.
    """
    if self.slices > 1:
      return 0.0
    return self._sent * (self.hops if 'all-to-all' in self.kind else 1)

  @property
  def network(self) -> float:
    """Bytes a device sends to other slices each time."""
    return self._sent if self.slices > 1 else 0.0

  @property
  def _sent(self) -> float:
    others = (self.devices - 1) / self.devices
    if self.kind == 'all-reduce':
      return 2 * others * self.bytes
    if self.kind == 'collective-permute':
      return self.bytes * self.hops
    return others * self.bytes


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on each device while the program runs."""

  arguments: int
  outputs: int  # without those that take an argument's place
  temporaries: int
  code: int

  @property
  def peak(self) -> int:
    """All of it; an upper bound of what is held at once."""
    return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Costs:
  """What one call of a compiled program costs each device."""

  flops: float  # of matrix products and convolutions
  bytes: float  # to and from HBM
  collectives: tuple[Collective, ...]
  open_loops: tuple[str, ...]  # loops counted as one turn: data decide

  def __add__(self, other: 'Costs') -> 'Costs':
    """Of one program after the other."""
    return Costs(
      self.flops + other.flops,
      self.bytes + other.bytes,
      self.collectives + other.collectives,
      self.open_loops + other.open_loops,
    )


def read(text: str, mesh: Mesh) -> Costs:
  """Counts in the text of a program compiled for the devices of a mesh."""
  module = hlo.parse(text)
  runs, open_loops = _runs(module)
  flops, moved, collectives = 0.0, 0.0, []
  for name, (count, fused) in runs.items():
    lines = module.computations[name]
    for line in lines.values():
      flops += count * _flops(line, lines)
      if not fused:
        moved += count * traffic.moved(line, module, lines)
      found = _collective(line, lines, mesh, count)
      if found and found.devices > 1:
        collectives.append(found)
  return Costs(flops, moved, tuple(collectives), tuple(open_loops))


def costs(compiled: Compiled, mesh: Mesh) -> Costs:
  """Counts in a compiled program."""
  return read(compiled.as_text(), mesh)


def flops(compiled: Compiled, mesh: Mesh) -> float | None:
  """FLOPs of `costs`, for a line that can do without them.

  None where the program's text is not as this module knows it, which another
  version of XLA or another device may bring.
  """
  try:
    return costs(compiled, mesh).flops
  except Exception as error:  # of whatever kind: nothing depends on it
    logging.debug('the FLOPs of a program are not counted: %r', error)
    return None


def memory(compiled: jax.stages.Compiled) -> Memory:
  """What the compiler has planned."""
  found = compiled.memory_analysis()
  return Memory(
    arguments=found.argument_size_in_bytes,
    outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
    temporaries=found.temp_size_in_bytes,
    code=found.generated_code_size_in_bytes,
  )


def held(tree: PyTree) -> int:
  """Bytes on each device of arrays, or of shapes that have shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _runs(module: hlo.Module):
  """How often each computation runs, and whether inside of a fusion.

  All branches of a conditional are counted, which is an upper bound.
  """
  runs, open_loops = {}, []

  def visit(name, count, fused):
    before, _ = runs.get(name, (0, fused))
    runs[name] = before + count, fused
    for line in module.computations[name].values():
      if line.opcode == 'while':
        turns = hlo.trip_count(module, line, name)
        if turns is None:
          open_loops.append(line.label)
          turns = 1
        visit(line.attribute('body'), count * turns, fused)
        visit(line.attribute('condition'), count * turns, fused)
      elif line.opcode in ('fusion', 'call', 'conditional', 'async-start'):
        for called in line.calls:
          visit(called, count, fused or line.opcode == 'fusion')

  visit(module.entry, 1, False)
  return runs, open_loops


def _flops(line: hlo.Instruction, lines: dict) -> float:
  """A multiplication and an addition for each pair of factors."""
  if line.opcode == 'custom-call':  # a kernel, by its own estimate
    return line.estimate('flops')
  if line.opcode not in ('dot', 'convolution'):
    return 0
  left, right = (lines[name].arrays[0].shape for name in line.operands)
  out = line.arrays[0].shape
  if line.opcode == 'dot':
    summed = _numbers(line.attribute('lhs_contracting_dims'))
    return 2 * math.prod(out) * math.prod(left[axis] for axis in summed)
  labels = re.match(r'(\w+)_(\w+)->(\w+)', line.attribute('dim_labels'))
  inputs, kernel, result = labels.groups()
  window = dict(re.findall(r'(\w+)=([\w\-]+)', line.attribute('window')))
  pairs = 1
  for axis in filter(str.isdigit, inputs):
    pairs *= _pairs(
      left[inputs.index(axis)],
      right[kernel.index(axis)],
      out[result.index(axis)],
      {name: value.split('x')[int(axis)] for name, value in window.items()},
    )
  # The kernel's input features are those of one group.
  features = right[kernel.index('i')] * out[result.index('f')]
  batch = left[inputs.index('b')]
  groups = int(line.attribute('batch_group_count') or 1)
  return 2 * pairs * features * batch // groups


def _pairs(size: int, taps: int, outputs: int, window: dict[str, str]) -> int:
  """How many pairs of output and tap meet an element, not padding or a hole.

  The TPU's compiler writes batched products as convolutions most of whose
  window is padding.
  """
  get = lambda name, default: int(window.get(name, default))
  low = int(window.get('pad', '0_0').split('_')[0])
  step = get('lhs_dilate', 1)
  first = np.arange(outputs)[:, None] * get('stride', 1) - low
  place = first + np.arange(taps) * get('rhs_dilate', 1)
  inside = (place >= 0) & (place <= (size - 1) * step) & (place % step == 0)
  return int(inside.sum())


def _collective(
  line: hlo.Instruction, lines: dict, mesh: Mesh, count: int
) -> Collective | None:
  if line.opcode == 'send':
    return _between_slices(line, lines, mesh, count)
  found = _START.fullmatch(line.opcode)
  if not found:
    return None
  inputs = [array for name in line.operands for array in lines[name].arrays]
  group = _group(line.attributes, mesh.size)
  ids = np.unravel_index(group, mesh.devices.shape)
  outputs = line.arrays
  if found[2] and len(outputs) > len(inputs):  # its inputs come first
    outputs = outputs[len(inputs) : 2 * len(inputs)]
  size = lambda arrays: sum(array.bytes for array in arrays)
  devices = [mesh.devices.ravel()[i] for i in group]
  return Collective(
    kind=found[1],
    dtype=inputs[0].dtype,
    bytes=max(size(inputs), size(outputs)),
    count=count,
    devices=len(group),
    axes=tuple(
      axis
      for axis, places in zip(mesh.axis_names, ids, strict=True)
      if len(set(places.tolist())) > 1
    ),
    slices=1,
    hops=_hops(devices, mesh),
    label=line.label,
  )


def _between_slices(
  line: hlo.Instruction, lines: dict, mesh: Mesh, count: int
) -> Collective | None:
  """The part of a collective that the hosts do.

  The compiler cuts one along several slices into parts inside of each slice
  and one between them, in which a device meets one of each other slice.
  """
  kind = re.search(r'_megascale_transfer_type="(\w+)"', line.attributes)
  if not kind:
    return None
  name = r'_host_transfer_rendezvous="([^"]*)"'
  meeting = re.search(name, line.attributes)[0]
  arrays = [
    array
    for other in lines.values()
    if other.opcode in ('send', 'recv') and meeting in other.attributes
    for array in other.arrays[:1]
  ]
  slices = len({_slice(device) for device in mesh.devices.flat})
  return Collective(
    kind=kind[1].lower().replace('_', '-'),
    dtype=arrays[0].dtype,
    bytes=max(array.bytes for array in arrays),
    count=count,
    devices=slices,
    axes=mesh.axis_names[:1],  # along which `mesh.create` joins slices
    slices=slices,
    hops=1.0,
    label=line.label,
  )


def _slice(device: jax.Device) -> int:
  return getattr(device, 'slice_index', None) or 0


def _hops(devices: list[jax.Device], mesh: Mesh) -> float:
  """Between devices of the first one's slice; 1 where no one knows."""
  if not hasattr(devices[0], 'coords'):
    return 1.0
  here = _slice(devices[0])
  inside = lambda many: [tuple(d.coords) for d in many if _slice(d) == here]
  return hardware.hops(inside(devices), inside(mesh.devices.ravel()))


def _group(attributes: str, devices: int) -> list[int]:
  """The first group of devices, by their place in the mesh.

  The text has one of four forms: `{{0,1},{2,3}}`, `[2,2]<=[2,2]T(1,0)`,
  `mesh['a'=2,'b'=2] {'b'}`, and the pairs of a permutation.
  """
  found = re.search(
    r'(?:replica_groups|source_target_pairs)=(?:'
    r'\{(?P<lists>\{[^=]*?\})\}'
    r'|\[(?P<shape>[\d,]+)\]<=\[(?P<iota>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?'
    r'|mesh\[(?P<mesh>[^\]]*)\] \{(?P<axes>[^}]*)\})',
    attributes,
  )
  if not found:
    return list(range(devices))
  if found['lists']:
    groups = [_numbers(g) for g in re.findall(r'\{([\d,]*)\}', found['lists'])]
    if 'source_target_pairs' in found[0]:
      return next((p for p in groups if p[0] != p[1]), groups[0][:1])
    return groups[0]
  if found['shape']:
    ids = np.arange(devices).reshape(_numbers(found['iota']))
    if found['order']:
      ids = ids.transpose(_numbers(found['order']))
    return ids.reshape(_numbers(found['shape']))[0].tolist()
  sizes = {n: int(v) for n, v in re.findall(r"'(\w+)'=(\d+)", found['mesh'])}
  parts = {name: np.arange(1) for name in sizes}
  for name, before, size in re.findall(
    r"'(\w+)'(?::\((\d+)\)(\d+))?", found['axes']
  ):
    parts[name] = np.arange(sizes[name])
    if size:  # of this axis a part, behind one of size `before`
      parts[name] = parts[name].reshape(int(before), int(size), -1)[0, :, 0]
  ids = np.arange(devices).reshape(*sizes.values())
  return ids[np.ix_(*parts.values())].ravel().tolist()


def _numbers(text: str) -> list[int]:
  return [int(n) for n in re.findall(r'\d+', text)]
