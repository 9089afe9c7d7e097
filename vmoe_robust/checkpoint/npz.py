"""Released ViT weights: arrays in a .npz file, which is never unpickled."""

import contextlib
import zipfile

import fsspec
import jax
import jax.numpy as jnp
import numpy as np

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

  def __init__(self, where: str, field: str):
    self.where, self._field = where, field
    self.shapes, self.renamed, self._members = {}, {}, {}
    with contextlib.ExitStack() as stack:
      with self._explained():
        file = stack.enter_context(fsspec.open(where, 'rb'))
        self._zip = stack.enter_context(zipfile.ZipFile(file))
        for member in self._zip.infolist():
          self._add(member)
      self._stack = stack.pop_all()

  def read(
    self, name: str, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """An array, or a part of it."""
    member = self._members[name]
    with self._explained(), self._zip.open(member) as file:
      array = np.lib.format.read_array(file, allow_pickle=False)
      file.read(1)  # at the end its checksum is compared
    if array.dtype.str == '|V2':
      array = array.view(_BFLOAT16)
    return array if index is None else array[index]

  def close(self):
    """Closes the file."""
    self._stack.close()

  def _add(self, member: zipfile.ZipInfo):
    there = member.filename.removesuffix('.npy')
    shape, dtype = self._header(member)
    name = '/'.join(RENAMED.get(part, part) for part in there.split('/'))
    if name in self.shapes:
      raise ValueError(f'it has {name} twice')
    self.shapes[name] = jax.ShapeDtypeStruct(shape, dtype)
    self._members[name] = member
    if name != there:
      self.renamed[name] = there

  def _header(self, member) -> tuple[tuple[int, ...], np.dtype]:
    with self._zip.open(member) as file:
      version = np.lib.format.read_magic(file)
      if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(file, _HEADER)
      elif version == (2, 0):
        header = np.lib.format.read_array_header_2_0(file, _HEADER)
      else:
        raise ValueError(f'{member.filename} is of .npy version {version}')
      shape, _, dtype = header
      size = file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
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
    return shape, dtype

  @contextlib.contextmanager
  def _explained(self):
    try:
      yield
    except Exception as error:  # a damaged file makes NumPy raise anything
      reason = str(error).split('\n')[0] or type(error).__name__
      raise UserError(
        f'{self._field}={self.where!r} cannot be read as .npz: {reason}'
      ) from error
