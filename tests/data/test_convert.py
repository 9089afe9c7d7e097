import json
import os
import struct

import google_crc32c
import pytest
from array_record.python import array_record_module

from vmoe_robust.config import UserError
from vmoe_robust.data import convert, open_source


def frame(record: bytes) -> bytes:
  """A record as TensorFlow's TFRecordWriter writes it."""

  def masked(data):
    crc = google_crc32c.value(data)
    return struct.pack(
      '<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    )

  length = struct.pack('<Q', len(record))
  return length + masked(length) + record + masked(record)


@pytest.fixture
def tfrecord_directory(tfds_root):
  """'pets' as TensorFlow would have written it: train in three shards."""
  directory = tfds_root / 'pets' / '1.0.0'
  info = json.loads((directory / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  for split in info['splits']:
    name = split['name']
    (old,) = directory.glob(f'pets-{name}.array_record*')
    reader = array_record_module.ArrayRecordReader(str(old))
    records = reader.read_all()
    reader.close()
    old.unlink()
    lengths = [8, 9, 3] if name == 'train' else [6]
    split['shardLengths'] = [str(n) for n in lengths]
    for i, length in enumerate(lengths):
      path = directory / f'pets-{name}.tfrecord-{i:05}-of-{len(lengths):05}'
      part, records = records[:length], records[length:]
      path.write_bytes(b''.join(map(frame, part)))
  (directory / 'dataset_info.json').write_text(json.dumps(info))
  return directory


def content(root, make_data, split='train') -> list:
  source = open_source(make_data(name='pets', dir=str(root)), split)
  return [source[i] for i in range(len(source))]


@pytest.fixture
def expected(tfds_root, make_data):
  """The examples before the directory was made a TFRecord one."""
  return content(tfds_root, make_data), content(tfds_root, make_data, 'test')


def test_examples_survive(expected, tfrecord_directory, make_data, capsys):
  root = tfrecord_directory.parent.parent
  with pytest.raises(UserError, match='vmoe_robust.data.convert'):
    content(root, make_data)
  assert convert.main([str(tfrecord_directory)]) == 0
  assert capsys.readouterr().out.count(' examples, ') == 4
  assert content(root, make_data) == expected[0]
  assert content(root, make_data, 'test') == expected[1]
  info = json.loads((tfrecord_directory / 'dataset_info.json').read_text())
  assert info['fileFormat'] == 'tfrecord'  # TensorFlow still reads it


def test_another_directory_gets_all_that_is_needed(
  expected, tfrecord_directory, make_data, tmp_path
):
  target = tmp_path / 'elsewhere' / 'pets' / '1.0.0'
  before = sorted(p.name for p in tfrecord_directory.iterdir())
  assert convert.main([str(tfrecord_directory), str(target)]) == 0
  assert sorted(p.name for p in tfrecord_directory.iterdir()) == before
  assert content(tmp_path / 'elsewhere', make_data) == expected[0]
  source = open_source(
    make_data(name='pets', dir=str(tmp_path / 'elsewhere')), 'train'
  )
  assert source.class_names == ('cat', 'dog')


def test_a_second_start_finishes_what_is_missing(
  expected, tfrecord_directory, make_data, capsys
):
  convert.convert(tfrecord_directory)
  shard = tfrecord_directory / 'pets-train.array_record-00001-of-00003'
  shard.write_bytes(shard.read_bytes()[:50])
  (tfrecord_directory / 'pets-train.tfrecord-00000-of-00003').unlink()
  capsys.readouterr()
  convert.convert(tfrecord_directory)
  assert capsys.readouterr().out.count('finished before') == 3
  assert content(tfrecord_directory.parent.parent, make_data) == expected[0]


def fails(directory, *words):
  with pytest.raises(UserError) as error:
    convert.convert(directory)
  text = str(error.value)
  assert '\n' not in text
  for word in words:
    assert word in text


@pytest.mark.parametrize('cut', [1, 30, 2000])
def test_a_truncated_shard_is_named_and_not_published(tfrecord_directory, cut):
  shard = tfrecord_directory / 'pets-train.tfrecord-00001-of-00003'
  shard.write_bytes(shard.read_bytes()[:-cut])
  fails(tfrecord_directory, str(shard), 'truncated')
  done = sorted(p.name for p in tfrecord_directory.glob('*array_record*of-*'))
  assert 'pets-train.array_record-00001-of-00003' not in done
  assert 'pets-train.array_record-00000-of-00003' in done
  info = (tfrecord_directory / 'dataset_info.json').read_text()
  assert 'array_record' not in info


@pytest.mark.parametrize('place', [3, 200])
def test_a_flipped_bit_is_found(tfrecord_directory, place):
  shard = tfrecord_directory / 'pets-test.tfrecord-00000-of-00001'
  data = bytearray(shard.read_bytes())
  data[place] ^= 1
  shard.write_bytes(data)
  fails(tfrecord_directory, str(shard), 'damaged')


def test_a_wrong_count_is_found(tfrecord_directory):
  shard = tfrecord_directory / 'pets-test.tfrecord-00000-of-00001'
  shard.write_bytes(shard.read_bytes() + frame(b'one more'))
  fails(tfrecord_directory, str(shard), 'holds 7 examples', 'says 6')


def test_a_missing_shard_is_named(tfrecord_directory):
  (tfrecord_directory / 'pets-train.tfrecord-00002-of-00003').unlink()
  fails(tfrecord_directory, 'pets-train.tfrecord-00002-of-00003')


def test_directories_of_another_kind_are_refused(tfds_root, tmp_path, capsys):
  fails(tmp_path, 'dataset_info.json', str(tfds_root / 'pets' / '1.0.0'))
  fails(tfds_root / 'pets' / '1.0.0', 'array_record')
  assert convert.main([str(tmp_path)]) == 1
  assert capsys.readouterr().err.startswith('error: SRC_DIR=')


def test_what_was_prepared_again_is_converted_again(
  expected, tfrecord_directory, make_data, capsys
):
  convert.convert(tfrecord_directory)
  shards = sorted(tfrecord_directory.glob('pets-train.tfrecord*'))
  records = list(convert.read_tfrecords(shards[0]))
  shards[0].write_bytes(b''.join(map(frame, reversed(records))))
  target = tfrecord_directory / 'pets-train.array_record-00000-of-00003'
  before = target.stat().st_mtime
  os.utime(shards[0], (before + 1, before + 1))
  capsys.readouterr()
  convert.convert(tfrecord_directory)
  assert capsys.readouterr().out.count('finished before') == 3
  reader = array_record_module.ArrayRecordReader(str(target))
  assert reader.read_all() == records[::-1]
  reader.close()
