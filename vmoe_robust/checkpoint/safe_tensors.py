"""Weights in the safetensors format: a header, and arrays that are mapped."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from vmoe_robust.config import ConfigDict, UserError, from_json

# Under this key the header has the configuration of the run, as JSON.
CONFIG = 'vmoe_robust.config'
# Under this key the names of the classes, as JSON.
CLASSES = 'vmoe_robust.class_names'
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
      self.config, self.class_names = _config(metadata), _classes(metadata)
      self._stack = stack.pop_all()

  def read(
    self, name: str, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """An array, or a part of it."""
    with self._explained():
      if index is None:
        return self._file.get_tensor(name)
      return self._file.get_slice(name)[index]

  def close(self) -> None:
    """Closes the file."""
    self._stack.close()

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


def _config(metadata: dict[str, str]) -> ConfigDict | None:
  if CONFIG not in metadata:
    return None
  try:
    return from_json(metadata[CONFIG])
  except (AttributeError, TypeError, ValueError, RecursionError) as error:
    raise ValueError(f'its {CONFIG} is no configuration: {error}') from error


def _classes(metadata: dict[str, str]) -> tuple[str, ...]:
  names = json.loads(metadata.get(CLASSES, '[]'))
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise ValueError(f'its {CLASSES} is no list of names')
  return tuple(names)
