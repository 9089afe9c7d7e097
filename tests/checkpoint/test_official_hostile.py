"""Files that are damaged, or made to do harm, end in an error that says so."""

import msgpack
import numpy as np
import pytest

from tests.checkpoint import official_writer
from vmoe_robust.checkpoint import open_weights
from vmoe_robust.config import UserError

ARRAYS = {
  'a': np.arange(4, dtype=np.float32),
  'b': np.arange(8, dtype=np.float32).reshape(4, 2),
  'c/d': np.array(5, np.int32),
}
SHARDS = {'a': 0, 'b': {((0, 2), (0, 2)): 0, ((2, 4), (0, 2)): 1}, 'c/d': 1}
HUGE = b'\xff\xff\xff\xff'


def write(prefix, edit=None):
  official_writer.write(prefix, ARRAYS, SHARDS, edit=edit)


def info(shape=(4,), dtype='float32', chunks=(((0, 4, None),),), files=(0,)):
  """The index's entry of an array."""
  head = msgpack.packb([shape, dtype, False, {}])
  chunks = [msgpack.packb([msgpack.packb(s) for s in c]) for c in chunks]
  return msgpack.ExtType(8, msgpack.packb([head, chunks, files]))


def part(count=4, dtype='float32', length=16, code=1):
  """A subchunk."""
  what = msgpack.packb([[count], dtype, bytes(length)])
  return msgpack.ExtType(code, what)


def place(*slices):
  return msgpack.ExtType(6, msgpack.packb([msgpack.packb(s) for s in slices]))


def entry(**how):
  return lambda index, data: index['index'].update(a=info(**how))


def entry_of_b(*chunks):
  files = list(range(len(chunks)))
  b = info((4, 2), chunks=[(c, (0, 2, None)) for c in chunks], files=files)
  return lambda index, data: index['index'].update(b=b)


def top(**keys):
  return lambda index, data: index.update(keys)


def data_of(key, *chunks):
  return lambda index, data: data[0].update({key: list(chunks)})


A = place((0, 4, None))
WRITTEN = {
  'shape beyond the data': (entry(shape=[1 << 40]), '4 of the 10995116'),
  'product overflows': (
    lambda index, data: index['index'].update(
      b=info([1 << 63] * 2, chunks=[[(0, 1 << 63, None)] * 2])
    ),
    r'lacks b\[0:9223372036854775808, 0:9',
  ),
  'negative shape': (entry(shape=[-4]), 'instead of integer'),
  'shape of text': (entry(shape=['4']), 'bytes instead of integer'),
  'rank': (entry(shape=[1] * 1000), '1000 elements instead of 16 at most'),
  'rank of a chunk': (entry(shape=[4, 1]), '1 elements instead of 2'),
  'unknown type': (entry(dtype='object'), "a of type 'object'"),
  'negative start': (
    entry(chunks=[[(-1, 3, None)]]),
    'instead of integer',
  ),
  'past the end': (entry(chunks=[[(0, 2**64 - 1, None)]]), r'a\[0:1844.*shape'),
  'step': (entry(chunks=[[(0, 4, 1)]]), 'integer instead of nil'),
  'empty chunk': (entry(chunks=[[(2, 2, None)]]), r'a\[2:2\]'),
  'no chunks': (entry(chunks=[], files=[]), '0 of the 4 elements of a'),
  'file beyond the last': (entry(files=[7]), 'in file 7 of 2'),
  'chunk without a file': (entry(files=[]), '0 elements instead of 1'),
  'overlap': (entry_of_b((0, 2, None), (1, 3, None)), 'parts of b that overl'),
  'the same twice': (entry_of_b(*[(0, 2, None)] * 2), 'part of b twice'),
  'hole': (entry_of_b((0, 1, None), (2, 4, None)), '6 of the 8 elements of b'),
  'leaf of another kind': (
    lambda index, data: index['index'].update(a=msgpack.ExtType(7, b'')),
    'extension 7 instead of 8',
  ),
  'leaf is a number': (
    lambda index, data: index['index'].update(a=1),
    'integer instead of map',
  ),
  'key with a slash': (
    lambda index, data: index['index'].update({'c/d': info()}),
    "'c/d' twice, or it is no name",
  ),
  'key is a number': (
    lambda index, data: index['index'].update({1: info()}),
    'integer instead of bytes',
  ),
  'too many keys': (
    lambda index, data: index['index'].update(
      {f'{i}': {} for i in range(2**14)}
    ),
    'instead of 16384 at most',
  ),
  'other version': (top(version='20300101'), "of version '20300101'"),
  'no files': (top(shard_count=0), 'shard_count 0'),
  'files beyond number': (top(shard_count=10**9), 'shard_count 1000000000'),
  'other count': (top(shard_count=3), r'data-00000-of-00003 cannot be read'),
  'index is a list': (top(index=[]), 'array instead of map'),
  'no arrays': (top(index={}), 'has no arrays'),
  'more than is known': (
    lambda index, data: (index.pop('version'), index.update(more=1)),
    "'more' twice, or it is unknown",
  ),
  'no mark': (
    lambda index, data: data[0].pop(next(iter(data[0]))),
    'lacks the mark',
  ),
  'array beyond the last': (data_of('3'), "array '3' that the index"),
  'number with a zero': (data_of('01'), "array '01'"),
  'number in other digits': (data_of('²'), "array '²'"),
  'no number': (data_of('x'), "array 'x'"),
  'array absent': (lambda index, data: data[0].pop('0'), r'lacks a\[0:4\]'),
  'chunk absent': (data_of('0'), r'lacks a\[0:4\]'),
  'chunk of another file': (
    data_of('2', [[part(1, 'int32', 4)], place()]),
    r'c/d\[\], which the index does not expect',
  ),
  'chunk twice': (data_of('0', *[[[part()], A]] * 2), r'a\[0:4\] twice'),
  'chunk of other bounds': (
    data_of('0', [[part()], place((1, 5, None))]),
    r'lacks a\[0:4\]',
  ),
  'chunk backwards': (
    data_of('0', [[], place((4, 4, None))]),
    r'lacks a\[0:4\]',
  ),
  'fewer bytes': (data_of('0', [[part(4, length=15)], A]), '15 bytes for 4'),
  'fewer elements': (
    data_of('0', [[part(3, length=12)], A]),
    r'3 elements of a\[0:4\]',
  ),
  'other type': (
    data_of('0', [[part(dtype='int32')], A]),
    'as int32; it is fl',
  ),
  'other extension': (data_of('0', [[part(code=2)], A]), 'sion 2 instead of 1'),
  'count overflows': (
    data_of('0', [[part(2**64 - 1)], A]),
    '16 bytes for 18446744073709551615',
  ),
  'pieces beyond number': (
    data_of('0', [[part(1, length=4)] * 65, A]),
    '65 elements instead of 64 at most',
  ),
}
MARK = b'\x81\xa5index'
RAW = {
  'empty': ('index', b'', '1 bytes announced where 0 are left'),
  'no map': ('index', b'\x90', 'array instead of map'),
  'huge map': ('index', b'\xdf' + HUGE, '4294967295 elements'),
  'huge tree': ('index', MARK + b'\xdf' + HUGE, '4294967295 elements'),
  'huge name': ('index', MARK + b'\x81\xdb' + HUGE, 'name of 4294967295 bytes'),
  'huge leaf': (
    'index',
    MARK + b'\x81\xa1a\xc9' + HUGE + b'\x08',
    '4294967295 bytes announced where 0 are left',
  ),
  'deep': ('index', MARK + b'\x81\xa1a' * 10_000, 'more than 32 names deep'),
  'no text': ('index', MARK + b'\x81\xa1\xff', 'not UTF-8'),
  'byte that is unused': ('index', b'\xc1', 'byte 0xc1 instead of map'),
  'large': ('index', bytes(1 << 23), '8388608 bytes; 4194304 at most'),
  'huge data map': ('data-00000-of-00002', b'\xdf' + HUGE, '4294967295 elem'),
  'huge data list': (
    'data-00000-of-00002',
    b'\x81\xa10\xdd' + HUGE,
    '4294967295 elements instead of 4096 at most',
  ),
  'huge piece': (
    'data-00000-of-00002',
    b'\x81\xa10\x91\x92\x91\xc9' + HUGE + b'\x01',
    '4294967295 bytes announced',
  ),
  'deep data': (
    'data-00000-of-00002',
    b'\x81\xa10' + b'\x91' * 10_000,
    '1 elements instead of 2',
  ),
}


def refused(prefix, match):
  with pytest.raises(UserError, match=match) as caught:
    open_weights(prefix)
  said = str(caught.value)
  assert said.startswith(f"config.init_from='{prefix}'") and '\n' not in said


@pytest.mark.parametrize('edit, match', WRITTEN.values(), ids=list(WRITTEN))
def test_what_cannot_be(tmp_path, peak_of, edit, match):
  write(tmp_path / 'params', edit)
  assert peak_of(lambda: refused(tmp_path / 'params', match)) < 1 << 20


@pytest.mark.parametrize('file, content, match', RAW.values(), ids=list(RAW))
def test_what_lies_about_its_size(tmp_path, peak_of, file, content, match):
  write(tmp_path / 'params')
  (tmp_path / f'params.{file}').write_bytes(content)
  match = f'params.{file} .*{match}'
  assert peak_of(lambda: refused(tmp_path / 'params', match)) < 1 << 20


FILES = ('params.index', *(f'params.data-0000{i}-of-00002' for i in range(2)))


@pytest.mark.parametrize('file', FILES)
def test_longer_or_shorter(tmp_path, file):
  write(tmp_path / 'params')
  path = tmp_path / file
  whole = path.read_bytes()
  path.write_bytes(whole + b'\x00')
  refused(tmp_path / 'params', f'{file} has 1 bytes too many')
  for length in range(0, len(whole), 5):
    path.write_bytes(whole[:length])
    with pytest.raises(UserError, match=file):
      open_weights(tmp_path / 'params')
  path.unlink()
  if file == 'params.index':
    with pytest.raises(UserError, match='there is no .*params.index'):
      open_weights(tmp_path / 'params')
  else:
    refused(tmp_path / 'params', f'{file} cannot be read')


def test_a_number_twice(tmp_path):
  write(tmp_path / 'params')
  path = tmp_path / FILES[1]
  content = path.read_bytes()
  first = content[1:].index(b'\xa10')
  copied = bytes([content[0] + 1]) + content[1:] + content[1 + first :]
  path.write_bytes(copied)
  refused(tmp_path / 'params', "has '0' twice")


@pytest.mark.slow
def test_any_bit_may_flip(tmp_path, flipped):
  """There are no checksums; but values, or a name, are all that may differ."""
  write(tmp_path / 'params')
  files = [tmp_path / file for file in FILES]
  seen = flipped(tmp_path / 'params', files, ARRAYS, 300)
  assert seen - {'other name'} == {'refused', 'equal', 'other value'}
