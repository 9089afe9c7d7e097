"""The text of a compiled program, as instructions that can be counted."""

import dataclasses
import functools
import math
import re

# Types whose name does not say how many bits an element has.
_BITS = {'pred': 8, 'token': 0}
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_NAME = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = ')
_OPCODE = re.compile(r'\s*([\w\-]+)\(')
_OPERAND = re.compile(r'%([\w.\-]+)')
# Attributes of an instruction that name other computations.
_CALLS = re.compile(
  r'\b(calls|to_apply|called_computations|branch_computations|'
  r'true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of an instruction's result."""

  dtype: str
  shape: tuple[int, ...]
  fast: bool  # in the chip's own memory, not in HBM

  @property
  def bytes(self) -> int:
    """Size without the padding of its layout."""
    return math.prod(self.shape) * _bits(self.dtype) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  opcode: str
  type: str
  operands: tuple[str, ...]
  attributes: str
  root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    """The arrays of its result."""
    return tuple(
      Array(
        dtype,
        tuple(int(n) for n in sizes.split(',') if n),
        # Memory spaces above 0 are on the chip; 5 is the host's.
        'S(' in layout,
      )
      for dtype, sizes, layout in _ARRAY.findall(self.type)
    )

  @functools.cached_property
  def calls(self) -> tuple[str, ...]:
    """Computations it runs once; a loop's are `attribute('body')`."""
    found = _CALLS.findall(self.attributes)
    return tuple(
      name for _, names in found for name in re.findall(r'[\w.\-]+', names)
    )

  @property
  def label(self) -> str:
    """Where in the Python code it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ''

  def estimate(self, name: str) -> int:
    """What a Pallas kernel says it costs: 'flops' or 'bytes_accessed'."""
    found = re.search(rf'"{name}":"?(\d+)', self.attributes)
    return int(found[1]) if found else 0

  def attribute(self, name: str) -> str:
    """The value of an attribute, '' if it has none of this name."""
    pattern = rf'\b{name}=(\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|[^\s,]+)'
    found = re.search(pattern, self.attributes)
    return found[1].lstrip('%') if found else ''


@dataclasses.dataclass(frozen=True)
class Module:
  """A program: computations, each a list of instructions by name."""

  computations: dict[str, dict[str, Instruction]]
  entry: str


def parse(text: str) -> Module:
  """Reads what `jax.stages.Compiled.as_text` returns."""
  computations, entry, lines = {}, '', None
  for line in text.splitlines():
    if line.startswith('}'):
      lines = None
    elif lines is None:
      head = _HEAD.match(line)
      if head:
        lines = computations.setdefault(head[2], {})
        entry = head[2] if head[1] else entry
    else:
      found = _instruction(line)
      if found:
        lines[found.name] = found
  return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
  head = _NAME.match(line)
  if not head:
    return None
  start = head.end()
  stop = _closing(line, start) if line[start] == '(' else line.index(' ', start)
  opcode = _OPCODE.match(line, stop)
  end = _closing(line, opcode.end() - 1)
  operands = line[opcode.end() : end - 1]
  constant = opcode[1] in ('constant', 'parameter')
  return Instruction(
    name=head[2],
    opcode=opcode[1],
    type=line[start:stop],
    operands=(operands,) if constant else tuple(_OPERAND.findall(operands)),
    attributes=line[end:],
    root=bool(head[1]),
  )


def _closing(line: str, start: int) -> int:
  """Where the parenthesis that opens at `start` has closed."""
  depth = 0
  for found in re.compile(r'[()]').finditer(line, start):
    depth += 1 if found[0] == '(' else -1
    if not depth:
      return found.end()
  return len(line)


def _bits(dtype: str) -> int:
  if dtype in _BITS:
    return _BITS[dtype]
  found = re.search(r'\d+', dtype)  # f32, bf16, u8, f8e4m3fn, c64
  return int(found[0]) if found else 32


def trip_count(module: Module, loop: Instruction, caller: str) -> int | None:
  """How often a `while` turns; None if that depends on data.

  The compiler of the CPU says it. That of the TPU does not, and so it is read
  from the condition, `counter < limit`; JAX counts by one.

  Args:
    module: the program.
    loop: one of its `while` instructions.
    caller: the computation that it is in.
  """
  known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  condition = module.computations[loop.attribute('condition')]
  body = module.computations[loop.attribute('body')]
  outside = module.computations[caller]
  test, before = _root(condition), outside[loop.operands[0]]
  if test.attribute('direction') != 'LT' or before.opcode != 'tuple':
    return None

  def first(value: Instruction) -> int | None:
    """What a value of the condition is before the first turn."""
    if value.opcode == 'get-tuple-element':
      name = before.operands[int(value.attribute('index'))]
      value = _origin(name, outside)
    return _number(value)

  counter, limit = (_origin(name, condition) for name in test.operands)
  if limit.opcode == 'get-tuple-element':
    place = limit.attribute('index')
    after = _origin(_root(body).operands[int(place)], body)
    if after.attribute('index') != place:  # it changes from turn to turn
      return None
  start, stop = first(counter), first(limit)
  return None if start is None or stop is None else max(stop - start, 0)


def _root(lines: dict[str, Instruction]) -> Instruction:
  return next(line for line in lines.values() if line.root)


def _origin(name: str, lines: dict[str, Instruction]) -> Instruction:
  """The instruction that a value comes from, copies left out."""
  line = lines[name]
  while line.opcode in ('copy', 'copy-done', 'copy-start', 'bitcast'):
    line = lines[line.operands[0]]
  return line


def _number(line: Instruction) -> int | None:
  if line.opcode != 'constant' or not re.fullmatch(r'-?\d+', line.operands[0]):
    return None
  return int(line.operands[0])


def numbers(text: str) -> list[int]:
  """The whole numbers in a text, such as '{0,1}', in order."""
  return [int(n) for n in re.findall(r'\d+', text)]
