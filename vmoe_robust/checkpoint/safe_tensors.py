"""Weights in the safetensors format: a header, and arrays that are mapped.

The format has no checksums. Files that `export` writes have a CRC-32C of each
array and of what the header says of the run, and are refused where one differs.
"""

import contextlib
import json
import math

import google_crc32c
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from vmoe_robust.checkpoint.files import stamp, stamp_of_checksums
from vmoe_robust.config import ConfigDict, UserError, from_json

# Under this key the header has the configuration of the run, as JSON.
CONFIG = 'vmoe_robust.config'
# Under this key the names of the classes, as JSON.
CLASSES = 'vmoe_robust.class_names'
# Under this key the step of the run.
STEP = 'vmoe_robust.step'
# Under this key a checksum of each array and of these texts, as JSON.
CHECKSUMS = 'vmoe_robust.checksums'
_CHUNK = 1 << 24  # bytes read at once to check them
# Names of types in the header.
NAMES = {
  'BF16': jnp.bfloat16,
  'BOOL': np.bool_,
  'F16': np.float16,
  'F32': np.float32,
  'F64': np.float64,
  'I8': np.int8,
  'I16': np.int16,
  'I32': np.int32,
  'I64': np.int64,
  'U8': np.uint8,
  'U16': np.uint16,
  'U32': np.uint32,
  'U64': np.uint64,
}


class SafeTensorsWeights:
  """Weights in a .safetensors file under this project's names."""

  def __init__(self, where: str, field: str):
    self.where, self._field, self.renamed = where, field, {}
    if '://' in where:
      raise UserError(
        f'{field}={where!r} must be copied to this machine first: a '
        '.safetensors file is mapped into memory'
      )
    with contextlib.ExitStack() as stack, self._explained():
      self._file = stack.enter_context(safetensors.safe_open(where, 'np'))
      self.shapes = {name: self._shape(name) for name in self._file.keys()}
      metadata = self._file.metadata() or {}
      self._checksums = _checksums(metadata, self.shapes)
      self.config, self.class_names = _config(metadata), _classes(metadata)
      self.step = _step(metadata)
      # The processes of a pod share the work: what one finds ends all.
      names = sorted(self.shapes if self._checksums else ())
      self._unchecked = set(names[jax.process_index() :: jax.process_count()])
      self._stack = stack.pop_all()

  def read(
    self, name: str, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """An array, or a part of it; the first time it is checked as a whole."""
    with self._explained():
      if name in self._unchecked:
        self._check(name)
      if index is None:
        return self._file.get_tensor(name)
      return self._file.get_slice(name)[index]

  def stamp(self) -> str:
    """Of the checksums, if it was exported here; else of the file's ends."""
    if self._checksums:
      return stamp_of_checksums(self._checksums)
    return stamp(self.where)

  def close(self) -> None:
    """Closes the file."""
    self._stack.close()

  def _check(self, name):
    array, leaf = self._file.get_slice(name), self.shapes[name]
    found = Checksum(leaf)
    if leaf.shape:
      row = math.prod(leaf.shape[1:]) * leaf.dtype.itemsize
      rows = max(_CHUNK // max(row, 1), 1)
      for first in range(0, leaf.shape[0], rows):
        found.add(array[first : min(first + rows, leaf.shape[0])])
    else:
      found.add(self._file.get_tensor(name))
    if found.text != self._checksums[name]:
      raise ValueError(f'it is damaged: {name} is not as it was written')
    self._unchecked.remove(name)

  def _shape(self, name):
    array = self._file.get_slice(name)
    kind = array.get_dtype()
    if kind not in NAMES:
      raise ValueError(f'{name} is of type {kind}, which NumPy does not know')
    return jax.ShapeDtypeStruct(tuple(array.get_shape()), NAMES[kind])

  @contextlib.contextmanager
  def _explained(self):
    try:
      yield
    except (OSError, ValueError, safetensors.SafetensorError) as error:
      raise UserError(
        f'{self._field}={self.where!r} cannot be read as safetensors: {error}'
      ) from error


class Checksum:
  """Of an array with its type and shape, from its parts in their order."""

  def __init__(self, leaf: jax.ShapeDtypeStruct):
    """Begins with type and shape."""
    kind = f'{np.dtype(leaf.dtype).name} {tuple(leaf.shape)}'
    self._found = google_crc32c.Checksum(kind.encode())

  def add(self, part: np.ndarray) -> None:
    """Goes on with the next part."""
    part = as_bytes(part)
    for first in range(0, part.size, _CHUNK):  # the library takes copies alone
      self._found.update(part[first : first + _CHUNK].tobytes())

  @property
  def text(self) -> str:
    """It, in eight digits."""
    return self._found.hexdigest().decode()


def as_bytes(array: np.ndarray) -> np.ndarray:
  """An array as uint8 [bytes], in the order of the format."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def text_checksum(text: str) -> str:
  """The checksum of a text of the header."""
  return google_crc32c.Checksum(text.encode()).hexdigest().decode()


def _checksums(metadata: dict[str, str], shapes) -> dict[str, str]:
  """Those of the header, of which those of its texts are compared here.

  Raises:
    ValueError: they are of other arrays or texts.
  """
  if CHECKSUMS not in metadata:
    return {}
  found = json.loads(metadata[CHECKSUMS])
  texts = {
    name: metadata[name] for name in (CONFIG, CLASSES, STEP) if name in metadata
  }
  if not isinstance(found, dict) or found.keys() != {*shapes, *texts}:
    raise ValueError('it is damaged: its checksums are of other arrays')
  for name, text in texts.items():
    if found[name] != text_checksum(text):
      raise ValueError(f'it is damaged: {name} is not as it was written')
  return found


def _config(metadata: dict[str, str]) -> ConfigDict | None:
  if CONFIG not in metadata:
    return None
  try:
    return from_json(metadata[CONFIG])
  except (AttributeError, TypeError, ValueError, RecursionError) as error:
    raise ValueError(f'its {CONFIG} is no configuration: {error}') from error


def _step(metadata: dict[str, str]) -> int | None:
  step = json.loads(metadata.get(STEP, 'null'))
  if step is not None and type(step) is not int:
    raise ValueError(f'its {STEP} is no whole number')
  return step


def _classes(metadata: dict[str, str]) -> tuple[str, ...]:
  names = json.loads(metadata.get(CLASSES, '[]'))
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise ValueError(f'its {CLASSES} is no list of names')
  return tuple(names)
