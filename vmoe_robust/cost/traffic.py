"""How many bytes an instruction of a compiled program moves to and from HBM."""

from vmoe_robust.cost.hlo import Instruction, Module

# Names for what is already there, or bookkeeping: nothing is moved.
_FREE = (
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while'),
  *('call', 'conditional', 'after-all', 'partition-id', 'opt-barrier'),
  *('copy-done', 'slice-done', 'async-done', 'async-start'),
)
_PART = ('dynamic-slice', 'gather', 'slice')


def moved(line: Instruction, module: Module, lines: dict) -> float:
  """Bytes read from and written to HBM; what stays on the chip is free.

  Whoever reads or writes a part of an array moves that part alone.
  """
  if line.opcode in _FREE or line.opcode.endswith('-done'):
    return 0
  if line.opcode == 'custom-call':
    return line.estimate('bytes_accessed')
  sizes = [_size(lines[name]) for name in line.operands]
  written = _size(line)
  if line.opcode in _PART:
    return 2 * written + sum(sizes[1:])
  if line.opcode == 'dynamic-update-slice':
    return 2 * sizes[1]
  if line.opcode == 'fusion':
    return _fusion(line, module.computations[line.calls[0]], sizes, written)
  if line.opcode.endswith('-start'):  # returns its operands too
    return max(written, sum(sizes))
  return sum(sizes) + written


def _fusion(line, inside: dict, sizes: list[int], written: int) -> float:
  """A fusion that slices a parameter reads the slice, not the parameter."""
  users = {}
  for inner in inside.values():
    for place, name in enumerate(inner.operands):
      users.setdefault(name, []).append((inner, place))
  total = written
  for inner in inside.values():
    if inner.opcode != 'parameter':
      continue
    whole = sizes[int(inner.operands[0])]
    uses = users.get(inner.name, [])
    if uses and all(_is_part(user, place) for user, place in uses):
      parts = [_part(user, inside) for user, _ in uses]
      total += min(whole, sum(parts))
      if any(user.opcode == 'dynamic-update-slice' for user, _ in uses):
        total -= min(whole, written)  # written in place
        total += sum(parts)
    else:
      total += whole
  return max(total, 0)


def _is_part(user: Instruction, place: int) -> bool:
  return place == 0 and user.opcode in (*_PART, 'dynamic-update-slice')


def _part(user: Instruction, inside: dict) -> int:
  if user.opcode == 'dynamic-update-slice':
    return _size(inside[user.operands[1]], hbm=False)
  return _size(user, hbm=False)


def _size(line: Instruction, hbm: bool = True) -> int:
  return sum(a.bytes for a in line.arrays if not (hbm and a.fast))
