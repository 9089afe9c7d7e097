"""Released ViT weights: arrays in a .npz file, which is never unpickled."""

import contextlib
import math
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_robust.checkpoint.files import (
  file_system,
  open_to_hop,
  stamp_of_checksums,
)
from vmoe_robust.config import UserError

# Released ViT names (AugReg and the ViT paper) to those used here.
RENAMED = {
  'Transformer': 'Encoder',
  'MultiHeadDotProductAttention_1': 'SelfAttention',
  'LayerNorm_2': 'LayerNorm_1',
  'MlpBlock_3': 'Mlp',
}
_HEADER = 1000  # bytes; a shape and a type take about 100
_BFLOAT16 = np.dtype(jnp.bfloat16)
# Deflate reaches 1032 to 1, weights hardly 2 to 1. A larger array that
# was smaller than this by so much would fill the memory from a small file.
_LARGE, _RATIO = 1 << 30, 100


class NpzWeights:
  """A released ViT, read array by array."""

  config = None
  class_names: tuple[str, ...] = ()
  step: int | None = None

  def __init__(self, where: str, field: str):
    self.where, self._field = where, field
    self.shapes, self.renamed, self._members = {}, {}, {}
    files, path = file_system(where, field)
    with contextlib.ExitStack() as stack:
      with self._explained():
        file = stack.enter_context(open_to_hop(files, path))
        self._zip = stack.enter_context(zipfile.ZipFile(file))
        for member in self._zip.infolist():
          self._add(member)
      self._stack = stack.pop_all()

  def read(
    self, name: str, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """An array, or a part of it."""
    member, start, order = self._members[name]
    leaf = self.shapes[name]
    with self._explained():
      content = self._zip.read(member)  # and compares its checksum
      array = np.frombuffer(content, leaf.dtype, offset=start)
      array = array.reshape(leaf.shape, order=order)
    return array if index is None else array[index]

  def stamp(self) -> str:
    """Of the checksums in the archive's directory."""
    members = self._zip.infolist()
    return stamp_of_checksums({m.filename: m.CRC for m in members})

  def close(self) -> None:
    """Closes the file."""
    self._stack.close()

  def _add(self, member: zipfile.ZipInfo):
    there = member.filename.removesuffix('.npy')
    shape, dtype, start, order = self._header(member)
    name = '/'.join(RENAMED.get(part, part) for part in there.split('/'))
    if name in self.shapes:
      raise ValueError(f'it has {name} twice')
    self.shapes[name] = jax.ShapeDtypeStruct(shape, dtype)
    self._members[name] = member, start, order
    if name != there:
      self.renamed[name] = there

  def _header(self, member) -> tuple[tuple[int, ...], np.dtype, int, str]:
    """Shape, type, where the data begin and which axis comes first."""
    with self._zip.open(member) as file:
      version = np.lib.format.read_magic(file)
      if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(file, _HEADER)
      elif version == (2, 0):
        header = np.lib.format.read_array_header_2_0(file, _HEADER)
      else:
        raise ValueError(f'{member.filename} is of .npy version {version}')
      start = file.tell()
    shape, turned, dtype = header
    size = start + math.prod(shape) * dtype.itemsize
    if dtype.str == '|V2':  # bfloat16, which NumPy does not name
      dtype = _BFLOAT16
    elif dtype.kind not in 'fiub':
      raise ValueError(f'{member.filename} is of type {dtype}, no numbers')
    if min(shape, default=0) < 0 or size != member.file_size:
      raise ValueError(
        f'{member.filename} should be {size} bytes, of shape {shape}; it is '
        f'{member.file_size}'
      )
    if size > max(_LARGE, _RATIO * member.compress_size):
      raise ValueError(
        f'{member.filename} unpacks {member.compress_size} bytes to {size}, '
        'which weights do not'
      )
    return shape, dtype, start, 'F' if turned else 'C'

  @contextlib.contextmanager
  def _explained(self):
    try:
      yield
    except Exception as error:  # a damaged file makes NumPy raise anything
      reason = str(error).split('\n')[0] or type(error).__name__
      raise UserError(
        f'{self._field}={self.where!r} cannot be read as .npz: {reason}'
      ) from error
