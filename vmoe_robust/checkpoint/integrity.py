"""Checksums of a checkpoint's files, because Orbax keeps none.

A flipped bit in array data restores as a wrong number without an error.
"""

import json
import zlib

from etils import epath

_SEAL = 'CHECKSUMS.json'


def seal(directory: epath.Path):
  """Writes the checksum and size of every file below a finished checkpoint."""
  found = {name: _checksum(path) for name, path in _files(directory)}
  draft = directory / (_SEAL + '.tmp')
  draft.write_text(json.dumps(found))
  draft.replace(directory / _SEAL)


def fingerprint(directory: epath.Path) -> str | None:
  """A checksum of all checksums; None while there are none."""
  path = directory / _SEAL
  return f'{zlib.crc32(path.read_bytes()):08x}' if path.exists() else None


def damage(directory: epath.Path) -> list[str]:
  """Names of the files that are not as they were sealed; none if unsealed."""
  path = directory / _SEAL
  if not path.exists():
    return []
  try:
    expected = json.loads(path.read_text())
  except ValueError:
    return [_SEAL]
  there = dict(_files(directory))
  return [
    name
    for name, checksum in expected.items()
    if name not in there or _checksum(there[name]) != checksum
  ]


def _files(directory, prefix=''):
  for path in sorted(directory.iterdir()):
    name = prefix + path.name
    if path.is_dir():
      yield from _files(path, name + '/')
    elif not name.startswith(_SEAL):
      yield name, path


def _checksum(path) -> list[int]:
  checksum, size = 0, 0
  with path.open('rb') as file:
    while chunk := file.read(1 << 24):
      checksum, size = zlib.crc32(chunk, checksum), size + len(chunk)
  return [checksum, size]
