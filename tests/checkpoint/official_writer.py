"""Writes the official V-MoE format, as its authors' code does byte for byte."""

import itertools

import msgpack
import numpy as np


def write(prefix, arrays, shards, version='20220622', cut=1 << 30, edit=None):
  """Writes a checkpoint.

  Args:
    prefix: of its files.
    arrays: by name.
    shards: for each name, a dictionary from a chunk (of each axis its start and
      stop) to the number of the file that gets it; or a number, for an array
      in one piece.
    version: None, as before there were versions.
    cut: bytes of the longest subchunk.
    edit: changes the index and the data files before they are packed.
  """
  tree, data = {}, {}
  # As a tree is flattened, with sorted keys at every level.
  for leaf, name in enumerate(sorted(arrays, key=lambda n: n.split('/'))):
    array, chunks = arrays[name], shards[name]
    if isinstance(chunks, int):
      chunks = {tuple((0, n) for n in array.shape): chunks}
    *parents, last = name.split('/')
    node = tree
    for part in parents:
      node = node.setdefault(part, {})
    node[last] = msgpack.ExtType(8, info(array, chunks))
    for chunk, shard in chunks.items():
      file = data.setdefault(shard, {'__msgpack_array_chunk_a87ca2__': True})
      parts = [
        msgpack.ExtType(1, subchunk(part))
        for part in pieces(array[tuple(itertools.starmap(slice, chunk))], cut)
      ]
      place = msgpack.ExtType(6, msgpack.packb(packed(chunk)))
      file.setdefault(str(leaf), []).append([parts, place])
  count = max(data) + 1
  index = {'shard_count': count, 'index': tree}
  if version is not None:
    index['version'] = version
  if edit is not None:
    edit(index, data)
  with open(f'{prefix}.index', 'wb') as file:
    file.write(msgpack.packb(index))
  for shard, content in data.items():
    with open(f'{prefix}.data-{shard:05}-of-{count:05}', 'wb') as file:
      file.write(msgpack.packb(content))


def info(array, chunks):
  shape = msgpack.packb([list(array.shape), array.dtype.name, False, {}])
  slices = [msgpack.packb(packed(chunk)) for chunk in chunks]
  return msgpack.packb([shape, slices, list(chunks.values())])


def packed(chunk):
  return [msgpack.packb([start, stop, None]) for start, stop in chunk]


def subchunk(part):
  return msgpack.packb([list(part.shape), part.dtype.name, part.tobytes()])


def pieces(array, cut):
  flat = np.ascontiguousarray(array).reshape(-1)
  step = cut // flat.itemsize
  return [flat[i : i + step] for i in range(0, flat.size, step)]


def split(shape, counts):
  """Chunks of an array that is cut in so many parts along each axis."""
  axes = [
    [(n * i // c, n * (i + 1) // c) for i in range(c)]
    for n, c in zip(shape, counts, strict=True)
  ]
  return list(itertools.product(*axes))
