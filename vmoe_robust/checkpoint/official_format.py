"""What is in the files of an official V-MoE checkpoint, and where.

All of it is untrusted: what is claimed is checked before it is believed, and
nothing is as large in memory as it claims to be.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from vmoe_robust.checkpoint.msgpack import Broken, Scanner

_VERSION = '20220622'
_MARK = '__msgpack_array_chunk_a87ca2__'
_INFO, _SUBCHUNK, _SLICES = 8, 1, 6  # types of msgpack extensions
_TYPES = (
  *('float16', 'bfloat16', 'float32', 'float64', 'bool'),
  *('int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'),
)
_SHARDS = 99_999  # names of files have five digits
_ARRAYS, _DEPTH, _RANK = 1 << 14, 32, 16
_CHUNKS, _PIECES = 1 << 12, 1 << 6  # of an array; of a chunk, up to 1 GiB each

Bounds = tuple[tuple[int, int], ...]  # first and last + 1, of each axis


@dataclasses.dataclass(frozen=True)
class Leaf:
  """An array as the index describes it."""

  path: tuple[str, ...]
  shape: tuple[int, ...]
  dtype: np.dtype
  chunks: dict[Bounds, int]  # and the number of the file that has it

  @property
  def name(self) -> str:
    """The names of the branches and its own."""
    return '/'.join(self.path)


# Where the bytes of a chunk are: place and length of each piece.
Pieces = list[tuple[int, int]]


def describe(leaf: Leaf, chunk: Bounds) -> str:
  """A chunk for messages."""
  return f'{leaf.name}[{", ".join(f"{a}:{b}" for a, b in chunk)}]'


def read_index(scanner: Scanner) -> tuple[list[Leaf], int]:
  """The arrays, in the order of their numbers, and the number of files."""
  leaves, shards, version = [], 0, None
  for _ in range(scanner.map(3)):
    match scanner.text():
      case 'shard_count':
        shards = scanner.integer()
      case 'version':
        version = scanner.text()
      case 'index' if not leaves:
        _read_tree(scanner, (), leaves)
      case key:
        raise Broken(f'has {key!r} twice, or it is unknown')
  scanner.finish()
  if not leaves:
    raise Broken('has no arrays')
  if version not in (None, _VERSION):
    raise Broken(f'is of version {version!r}; {_VERSION} can be read')
  if not 0 < shards <= _SHARDS:
    raise Broken(f'has shard_count {shards}; 1 to {_SHARDS} can be')
  # Before there were versions, numbers followed the order of the training
  # state's fields, which the file does not tell.
  if version is None and is_state(leaves):
    raise Broken(
      'is of a whole training state of before 2022-06-22, in which arrays '
      'cannot be told apart; save the weights alone'
    )
  leaves.sort(key=lambda leaf: leaf.path)
  for leaf in leaves:
    _check(leaf, shards)
  return leaves, shards


def is_state(leaves: list[Leaf]) -> bool:
  """Whether they are a whole training state, not its weights alone."""
  return any(leaf.name.startswith('params/') for leaf in leaves)


def _read_tree(scanner: Scanner, path: tuple[str, ...], leaves: list[Leaf]):
  if path and scanner.is_extension():
    if len(leaves) == _ARRAYS:
      raise Broken(f'has more than {_ARRAYS} arrays')
    leaves.append(_read_leaf(scanner, path))
    return
  if len(path) == _DEPTH:
    raise Broken(f'is more than {_DEPTH} names deep')
  keys = set()
  for _ in range(scanner.map(_ARRAYS)):
    key = scanner.text()
    if not key or '/' in key or key in keys:
      raise Broken(f'has {key!r} twice, or it is no name')
    keys.add(key)
    _read_tree(scanner, (*path, key), leaves)


def _read_leaf(scanner: Scanner, path: tuple[str, ...]) -> Leaf:
  with scanner.packed(_INFO):
    scanner.array(3, exactly=3)
    with scanner.packed():
      scanner.array(4)
      shape = tuple(scanner.integer() for _ in range(scanner.array(_RANK)))
      dtype = scanner.text()
      scanner.rest()  # what JAX once knew of an array besides
    if dtype not in _TYPES:
      raise Broken(f'has {"/".join(path)} of type {dtype!r}')
    chunks = []
    for _ in range(scanner.array(_CHUNKS)):
      with scanner.packed():
        chunks.append(_read_slices(scanner, len(shape)))
    scanner.array(len(chunks), exactly=len(chunks))
    shards = [scanner.integer() for _ in chunks]
  unique = dict(zip(chunks, shards, strict=True))
  if len(unique) != len(chunks):
    raise Broken(f'has a part of {"/".join(path)} twice')
  return Leaf(path, shape, jnp.dtype(dtype), unique)


def _read_slices(scanner: Scanner, rank: int) -> Bounds:
  bounds = []
  for _ in range(scanner.array(rank, exactly=rank)):
    with scanner.packed():
      scanner.array(3, exactly=3)
      bounds.append((scanner.integer(), scanner.integer()))
      scanner.nil()
  return tuple(bounds)


def _check(leaf: Leaf, shards: int):
  """Its chunks cover it, each element once."""
  for chunk, shard in leaf.chunks.items():
    inside = (a < b <= n for (a, b), n in zip(chunk, leaf.shape, strict=True))
    if not all(inside):
      raise Broken(f'has {describe(leaf, chunk)}, of shape {leaf.shape}')
    if shard >= shards:
      raise Broken(f'has {describe(leaf, chunk)} in file {shard} of {shards}')
  volume = sum(math.prod(b - a for a, b in chunk) for chunk in leaf.chunks)
  if volume != math.prod(leaf.shape):
    raise Broken(
      f'has {volume} of the {math.prod(leaf.shape)} elements of {leaf.name}'
    )
  bounds = np.array(list(leaf.chunks), np.uint64)
  bounds = bounds.reshape(len(leaf.chunks), len(leaf.shape), 2)
  for i, (start, stop) in enumerate(bounds.transpose(0, 2, 1)):
    others = bounds[i + 1 :]
    meet = (others[..., 0] < stop) & (start < others[..., 1])
    if meet.all(1).any():
      raise Broken(f'has parts of {leaf.name} that overlap')


def read_places(
  scanner: Scanner, leaves: list[Leaf]
) -> dict[tuple[int, Bounds], Pieces]:
  """Where the chunks lie in a data file, by array and bounds."""
  found, keys = {}, set()
  for _ in range(scanner.map(len(leaves) + 1)):
    key = scanner.text()
    if key in keys:
      raise Broken(f'has {key!r} twice')
    keys.add(key)
    if key == _MARK:
      scanner.boolean()
      continue
    number = int(key) if key.isascii() and key.isdecimal() else -1
    if not 0 <= number < len(leaves) or key != str(number):
      raise Broken(f'has an array {key!r} that the index does not have')
    leaf = leaves[number]
    for _ in range(scanner.array(_CHUNKS)):
      scanner.array(2, exactly=2)
      count = scanner.array(_PIECES)
      pieces = [_read_piece(scanner, leaf) for _ in range(count)]
      with scanner.packed(_SLICES):
        chunk = _read_slices(scanner, len(leaf.shape))
      there = sum(length for _, length in pieces) // leaf.dtype.itemsize
      if there != math.prod(b - a for a, b in chunk):
        raise Broken(f'has {there} elements of {describe(leaf, chunk)}')
      if (number, chunk) in found:
        raise Broken(f'has {describe(leaf, chunk)} twice')
      found[number, chunk] = pieces
  scanner.finish()
  if _MARK not in keys:
    raise Broken('lacks the mark of such a file')
  return found


def _read_piece(scanner: Scanner, leaf: Leaf) -> tuple[int, int]:
  with scanner.packed(_SUBCHUNK):
    scanner.array(3, exactly=3)
    scanner.array(1, exactly=1)
    count, dtype = scanner.integer(), scanner.text()
    place, length = scanner.hop()
  if dtype != leaf.dtype.name or length != count * leaf.dtype.itemsize:
    raise Broken(
      f'has {length} bytes for {count} elements of {leaf.name}, as {dtype}; it '
      f'is {leaf.dtype.name}'
    )
  return place, length
