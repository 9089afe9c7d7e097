"""Weights for other programs: a .safetensors or a released ViT's .npz file."""

import json
import math
import os
import pathlib
import re
import zipfile
from typing import Any, BinaryIO

import numpy as np

from vmoe_robust.checkpoint.npz import RENAMED
from vmoe_robust.checkpoint.safe_tensors import (
  CHECKSUMS,
  CLASSES,
  CONFIG,
  NAMES,
  STEP,
  Checksum,
  as_bytes,
  text_checksum,
)
from vmoe_robust.checkpoint.weights import Weights
from vmoe_robust.config import UserError, to_json
from vmoe_robust.files import path

_CODES = {np.dtype(kind): code for code, kind in NAMES.items()}
# What a released ViT may have.
_POSITIONS = 'Encoder/posembed_input/pos_embedding'
_AFFINE = r'/(kernel|bias)'
_RELEASED = re.compile(
  rf'cls|(embedding|head|pre_logits){_AFFINE}|{_POSITIONS}'
  r'|Encoder/encoder_norm/(scale|bias)|Encoder/encoderblock_\d+/('
  rf'LayerNorm_[01]/(scale|bias)|SelfAttention/(query|key|value|out){_AFFINE}'
  rf'|Mlp/Dense_[01]{_AFFINE})'
)
_THERE = {ours: theirs for theirs, ours in RENAMED.items()}


def export(
  weights: Weights, out: str | os.PathLike, *, overwrite: bool = False
) -> None:
  """Writes weights to a file, one array after the other.

  It appears whole or not at all.

  Args:
    weights: of whatever format.
    out: `.safetensors`, which `open_weights` reads with the configuration of
      the run; or `.npz`, under the names of the released ViT files.
    overwrite: replace a file that is there.

  Raises:
    UserError: there is a file already, or the format has no place for such
      weights.
  """
  if '://' in os.fspath(out):
    raise UserError(f'{out} is not on this machine; write here, then copy')
  out = pathlib.Path(path(out, 'out'))
  if out.exists() and not overwrite:
    raise UserError(f'{out} exists; choose another name, or add --overwrite')
  if out.suffix == '.safetensors':
    write, names = _write_safetensors, {n: n for n in weights.shapes}
  elif out.suffix == '.npz':
    write, names = _write_npz, _released_names(weights, out)
  else:
    raise UserError(f'{out} must end in .safetensors or .npz')
  out.parent.mkdir(parents=True, exist_ok=True)
  draft = out.with_name(out.name + '.incomplete')
  try:
    with draft.open('wb') as file:
      write(weights, names, file)
      file.flush()
      os.fsync(file.fileno())
    draft.replace(out)
  finally:
    draft.unlink(missing_ok=True)


def _write_safetensors(weights, names, file: BinaryIO):
  """The format's own library would need all arrays at once."""
  header: dict[str, Any] = {}
  metadata: dict[str, str] = {}
  end = 0
  if weights.config is not None:
    metadata[CONFIG] = to_json(weights.config)
  if weights.class_names:
    metadata[CLASSES] = json.dumps(weights.class_names)
  if weights.step is not None:
    metadata[STEP] = json.dumps(weights.step)
  checksums = {name: text_checksum(text) for name, text in metadata.items()}
  # Those of arrays are known when all is written.
  checksums |= dict.fromkeys(names, '0' * 8)
  header['__metadata__'] = metadata
  # The widest first, so that each array begins where its type may.
  order = sorted(names, key=lambda n: (-weights.shapes[n].dtype.itemsize, n))
  for name in order:
    leaf = weights.shapes[name]
    begin, end = end, end + math.prod(leaf.shape) * leaf.dtype.itemsize
    code = _CODES[leaf.dtype]
    header[name] = dict(dtype=code, shape=leaf.shape, data_offsets=(begin, end))

  def write_header():
    metadata[CHECKSUMS] = json.dumps(checksums)
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    file.seek(0)
    file.write(len(text).to_bytes(8, 'little') + text)

  write_header()
  for name in order:
    array, found = weights.read(name), Checksum(weights.shapes[name])
    found.add(array)
    checksums[name] = found.text
    file.write(as_bytes(array).data)
    del array  # two at a time are one too many
  write_header()


def _write_npz(weights, names, file: BinaryIO):
  with zipfile.ZipFile(file, 'w') as archive:
    for name, there in names.items():
      # Its size is not known to the archive before it is written.
      with archive.open(f'{there}.npy', 'w', force_zip64=True) as member:
        array = _named_by_numpy(weights.read(name))
        np.lib.format.write_array(member, array, allow_pickle=False)
        del array  # two at a time are one too many


def _named_by_numpy(array: np.ndarray) -> np.ndarray:
  return array.view('V2') if array.dtype.name == 'bfloat16' else array


def _released_names(weights, out) -> dict[str, str]:
  """Names there by names here."""
  unknown = [n for n in weights.shapes if not _RELEASED.fullmatch(n)]
  if _POSITIONS not in weights.shapes:
    unknown.append('a position embedding that is not learnt')
  model = weights.config and weights.config.model
  if model and {*model.mean, *model.std} != {0.5}:
    unknown.append(f'mean={model.mean} with std={model.std}')
  if unknown:
    other = out.with_suffix('.safetensors').name
    raise UserError(
      f'{out} cannot be written: {unknown[0]} has no place in the released ViT '
      'files, which are dense models of patches with learnt positions that '
      f'take pixels in [-1, 1]; export to {other}'
    )
  return {
    name: '/'.join(_THERE.get(part, part) for part in name.split('/'))
    for name in weights.shapes
  }
