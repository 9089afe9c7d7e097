"""Exchanges of data between devices, in a compiled program's text."""

import dataclasses
import re

import jax
import numpy as np
from jax.sharding import Mesh

from vmoe_robust.cost import hardware, hlo

_KINDS = (
  *('all-to-all', 'ragged-all-to-all', 'all-gather', 'all-reduce'),
  *('reduce-scatter', 'collective-permute', 'collective-broadcast'),
)
_START = re.compile(rf'({"|".join(_KINDS)})(-start)?')


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


def collective(
  line: hlo.Instruction, lines: dict, mesh: Mesh, count: int
) -> Collective | None:
  """What an instruction exchanges; None if it exchanges nothing.

  Args:
    line: the instruction.
    lines: those of its computation, by name.
    mesh: of the devices that the program was compiled for.
    count: how often it runs in one call of the program.
  """
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
    groups = [
      hlo.numbers(g) for g in re.findall(r'\{([\d,]*)\}', found['lists'])
    ]
    if 'source_target_pairs' in found[0]:
      return next((p for p in groups if p[0] != p[1]), groups[0][:1])
    return groups[0]
  if found['shape']:
    ids = np.arange(devices).reshape(hlo.numbers(found['iota']))
    if found['order']:
      ids = ids.transpose(hlo.numbers(found['order']))
    return ids.reshape(hlo.numbers(found['shape']))[0].tolist()
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
