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

from vmoe_robust.cost import hlo, traffic
from vmoe_robust.cost.collectives import Collective, collective


@runtime_checkable
class Compiled(Protocol):
  """What has a text, as `jax.stages.Compiled` has."""

  def as_text(self) -> str | None:
    """The program in XLA's notation; None if the compiler does not tell."""
    ...


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
      found = collective(line, lines, mesh, count)
      if found and found.devices > 1:
        collectives.append(found)
  return Costs(flops, moved, tuple(collectives), tuple(open_loops))


def costs(compiled: Compiled, mesh: Mesh) -> Costs:
  """Counts in a compiled program."""
  return read(compiled.as_text(), mesh)


# Calls of libraries, which do the work of a product or a convolution.
_UNCOUNTED = ('__cublas', '__cudnn')


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
    target = line.attribute('custom_call_target').strip('"')
    if target.startswith(_UNCOUNTED) and not line.estimate('flops'):
      raise ValueError(f'{target} does not say its FLOPs')
    return line.estimate('flops')
  if line.opcode not in ('dot', 'convolution'):
    return 0
  left, right = (lines[name].arrays[0].shape for name in line.operands)
  out = line.arrays[0].shape
  if line.opcode == 'dot':
    summed = hlo.numbers(line.attribute('lhs_contracting_dims'))
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
