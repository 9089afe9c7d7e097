"""Files that others made, here or in the cloud."""

import io

import fsspec

from vmoe_robust.config import UserError

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


def stamp(where: str) -> str:
  """Size and time of a file, by which a change of it is noticed.

  Args:
    where: a file, or the prefix of an official V-MoE checkpoint.
  """
  files, place = file_system(where, 'path')
  if not files.exists(place):
    place += '.index'
  return f'{files.size(place)} bytes of {files.modified(place)}'
