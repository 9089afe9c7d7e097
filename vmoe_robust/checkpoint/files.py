"""Files that others made, here or in the cloud."""

import hashlib
import io
import json
from collections.abc import Mapping

import fsspec

from vmoe_robust.config import UserError

_WHOLE = 1 << 26  # bytes; so many are read in a moment
_AHEAD = 1 << 16  # bytes; in the cloud, a look costs as much as many bytes


def file_system(
  where: str, field: str
) -> tuple[fsspec.AbstractFileSystem, str]:
  """What reads a path or address, and the path as that knows it.

  Raises:
    UserError: what reads such addresses is not installed, or unknown.
  """
  try:
    return fsspec.core.url_to_fs(where)
  except ImportError as error:
    way = "; pip install 'vmoe_robust[gcs]'" * where.startswith('gs:')
    raise UserError(
      f'{field}={where!r} cannot be reached: {error}{way}'
    ) from error
  except ValueError as error:
    raise UserError(
      f'{field}={where!r} cannot be reached: {error}; give a path, or an '
      'address such as gs://BUCKET/PATH'
    ) from error


def open_to_hop(files: fsspec.AbstractFileSystem, path: str) -> io.IOBase:
  """Opens a file to read a little here and there, from front to back."""
  return files.open(path, 'rb', block_size=_AHEAD, cache_type='readahead')


def stamp_of_checksums(checksums: Mapping[str, object]) -> str:
  """By which a file that has checksums is known again, and so are its copies.

  Args:
    checksums: by the names of what they are of.
  """
  found = hashlib.blake2b(digest_size=8)
  found.update(json.dumps(dict(checksums), sort_keys=True).encode())
  return f'checksums {found.hexdigest()}'


def stamp(where: str) -> str:
  """By which files that have no checksums are known again.

  Args:
    where: a file, or the prefix of an official V-MoE checkpoint.

  Returns:
    Their size and a digest, by which copies are known too; of more than 64 MiB
    their size, the time of the newest, and a digest of their first and last 64
    KiB, so that a change is noticed without reading all of them.
  """
  files, place = file_system(where, 'path')
  parts = [place]
  if not files.exists(place):
    folder = place.rpartition('/')[0]
    there = files.ls(folder, detail=False)
    parts = [
      path
      for path in sorted(there)
      if path.removeprefix(place).startswith(('.index', '.data-'))
    ]
  size = sum(files.size(part) for part in parts)
  if size <= _WHOLE:
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
      found.update(files.cat_file(part))
    return f'{size} bytes, {found.hexdigest()}'
  ends = hashlib.blake2b(digest_size=8)
  for part in parts:
    ends.update(files.head(part, _AHEAD) + files.tail(part, _AHEAD))
  newest = max(files.modified(part) for part in parts)
  return f'{size} bytes of {newest}, {ends.hexdigest()}'
