r"""Turns a TFRecord data set of TensorFlow Datasets into ArrayRecord.

  python -m vmoe_robust.data.convert ~/tensorflow_datasets/imagenet2012/5.1.0

TensorFlow is not needed. The new files lie beside the old ones, and
dataset_info.json lists ArrayRecord as an alternative, as `tfds convert_format`
does: TensorFlow goes on reading what it read. With a second directory, the new
files and a copy of the metadata go there (give it the same ending,
<name>/<version>). A conversion that was interrupted is finished by the same
command: shards whose counts are right are kept.
"""

import argparse
import json
import os
import pathlib
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c
from array_record.python import array_record_module

from vmoe_robust.config import UserError

_INFO = 'dataset_info.json'
_HEADER = struct.Struct('<QI')  # length of the record, its masked checksum
_FOOTER = struct.Struct('<I')  # masked checksum of the record


class _Shard(NamedTuple):
  source: pathlib.Path
  target: pathlib.Path
  examples: int


def convert(
  source: pathlib.Path, target: pathlib.Path | None = None
) -> pathlib.Path:
  """Writes a prepared TFRecord directory as ArrayRecord; returns where.

  Args:
    source: a directory that TFDS prepared, .../<name>/<version>.
    target: where the new files go; None for beside the old ones.

  Raises:
    UserError: the directory is none of TFDS, is not TFRecord, or a shard is
      missing, truncated, damaged or holds another number of examples than
      dataset_info.json says.
  """
  source = source.expanduser().absolute()
  target = target.expanduser().absolute() if target else source
  shards = _shards(source, target)
  target.mkdir(parents=True, exist_ok=True)
  for number, shard in enumerate(shards, start=1):
    begin = time.monotonic()
    place = f'[{number}/{len(shards)}] {shard.target.name}'
    if _is_finished(shard):
      print(f'{place}: finished before, {shard.examples} examples', flush=True)
      continue
    _convert_shard(shard)
    seconds = max(time.monotonic() - begin, 1e-9)
    speed = shard.source.stat().st_size / seconds / 1e6
    print(f'{place}: {shard.examples} examples, {speed:.0f} MB/s', flush=True)
  _write_metadata(source, target)
  return target


def read_tfrecords(path: pathlib.Path) -> Iterator[bytes]:
  """The records of a TFRecord file, each checked against its checksum.

  The format is that of TensorFlow's lib/io/record_writer.h.

  Raises:
    UserError: the file is truncated or damaged.
  """
  with open(path, 'rb') as file:
    while header := file.read(_HEADER.size):
      place = f'{path} at byte {file.tell() - len(header)}'
      if len(header) < _HEADER.size:
        raise _damaged(place, 'is truncated')
      length, checksum = _HEADER.unpack(header)
      if _masked_crc(header[:8]) != checksum:
        raise _damaged(place, 'is damaged or no TFRecord file')
      record, footer = file.read(length), file.read(_FOOTER.size)
      if len(record) < length or len(footer) < _FOOTER.size:
        raise _damaged(place, 'is truncated')
      if _masked_crc(record) != _FOOTER.unpack(footer)[0]:
        raise _damaged(place, 'is damaged')
      yield record


def _damaged(place: str, how: str) -> UserError:
  return UserError(f'{place} {how}; copy the file again, or prepare it again')


def _masked_crc(data: bytes) -> int:
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _shards(source: pathlib.Path, target: pathlib.Path) -> list[_Shard]:
  """What there is to convert, by dataset_info.json."""
  if not (source / _INFO).is_file():
    inside = [p.parent for p in sorted(source.glob(f'**/{_INFO}'))]
    hint = ', '.join(map(str, inside)) or 'a directory .../<name>/<version>'
    raise UserError(
      f'SRC_DIR={source} holds no {_INFO}, so TFDS did not prepare it; give '
      + hint
    )
  import tensorflow_datasets as tfds  # takes a second

  info = tfds.builder_from_directory(str(source)).info
  if info.file_format.value != 'tfrecord':
    raise UserError(
      f'SRC_DIR={source} is in the format {info.file_format.value}, not '
      'tfrecord; only that one needs converting'
    )
  shards = []
  for split in info.splits.values():
    new = split.filename_template.replace(
      data_dir=target, filetype_suffix='array_record'
    )
    names = split.filename_template.sharded_filepaths(split.num_shards)
    new_names = new.sharded_filepaths(split.num_shards)
    for old, out, examples in zip(
      names, new_names, split.shard_lengths, strict=True
    ):
      shards.append(_Shard(pathlib.Path(old), pathlib.Path(out), examples))
  for shard in shards:
    if shard.source == shard.target:
      raise UserError(
        f'SRC_DIR={source} names its files without their format '
        f'({shard.source.name}); give a second directory DST_DIR'
      )
    if not shard.source.is_file() and not _is_finished(shard):
      raise UserError(
        f'SRC_DIR={source} lacks {shard.source.name}, which its {_INFO} '
        'lists; copy the directory again'
      )
  return shards


def _is_finished(shard: _Shard) -> bool:
  if not shard.target.is_file():
    return False
  written = shard.target.stat().st_mtime
  if shard.source.is_file() and shard.source.stat().st_mtime > written:
    return False  # prepared again since
  try:
    reader = array_record_module.ArrayRecordReader(str(shard.target))
    examples = reader.num_records()
    reader.close()
  except (ValueError, RuntimeError):  # not written by us, and damaged
    return False
  return examples == shard.examples


def _convert_shard(shard: _Shard):
  """Writes a shard under another name, so that no half of one is believed."""
  part = shard.target.with_name(shard.target.name + '.incomplete')
  # Random access wants each record in a group of its own, as TFDS writes it.
  writer = array_record_module.ArrayRecordWriter(str(part), 'group_size:1')
  count = 0
  try:
    for record in read_tfrecords(shard.source):
      writer.write(record)
      count += 1
  finally:
    writer.close()
  if count != shard.examples:
    raise UserError(
      f'{shard.source} holds {count} examples but {_INFO} says '
      f'{shard.examples}; copy the directory again, or prepare it again'
    )
  os.replace(part, shard.target)


def _write_metadata(source: pathlib.Path, target: pathlib.Path):
  """Last of all, for this is what makes TFDS read the new files."""
  info = json.loads((source / _INFO).read_text())
  if source == target:
    others = info.setdefault('alternativeFileFormats', [])
    if 'array_record' not in others:
      others.append('array_record')
  else:
    info['fileFormat'] = 'array_record'
    info.pop('alternativeFileFormats', None)
    for path in source.iterdir():
      is_shard = '.tfrecord' in path.name or '.array_record' in path.name
      if path.is_file() and path.name != _INFO and not is_shard:
        shutil.copyfile(path, target / path.name)
  part = target / (_INFO + '.incomplete')
  part.write_text(json.dumps(info, indent=2))
  os.replace(part, target / _INFO)


def main(arguments: list[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m vmoe_robust.data.convert',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('SRC_DIR', type=pathlib.Path)
  parser.add_argument('DST_DIR', type=pathlib.Path, nargs='?')
  options = parser.parse_args(arguments)
  try:
    target = convert(options.SRC_DIR, options.DST_DIR)
  except (UserError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(f'done: {target}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
