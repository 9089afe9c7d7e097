"""Decoded images stay in memory up to a limit, and no longer than needed."""

import collections
import contextlib

import numpy as np
import pytest

from vmoe_robust.data import load
from vmoe_robust.data.rows import Rows

# A row of 8 x 8 grey pixels: image, label, mask and index.
ROW = 64 + 4 + 1 + 4


class Numbered:
  num_classes, class_names = 2, ('a', 'b')
  fingerprint, lengths = 'of a test', {}
  multi_label, channels = False, 1

  def __len__(self):
    return 10

  def __getitem__(self, i):
    return dict(image=np.full((8, 8, 1), i, np.uint8), label=i % 2)

  def describe(self, i):
    return f'number {i}'


@pytest.fixture
def decoded(monkeypatch):
  """How often each image was decoded."""
  count, decode = collections.Counter(), load.decode_image

  def counted(image, channels):
    count[int(image[0, 0, 0])] += 1
    return decode(image, channels)

  monkeypatch.setattr(load, 'decode_image', counted)
  return count


@pytest.fixture
def rows_of(make_data):
  """Opens rows with a cache of some bytes and closes them."""
  with contextlib.ExitStack() as stack:

    def make(cache_bytes, **fields):
      data = make_data(cache_bytes=cache_bytes, threads=2, **fields)
      return stack.enter_context(contextlib.closing(Rows(Numbered(), data)))

    yield make


def passes(rows, count):
  """What several passes over all examples in batches of 4 see."""
  order = np.array([*range(10), -1, -1])
  return [
    np.concatenate([b['image'][:, 0, 0, 0] for b in rows.batches(order, 4)])
    for _ in range(count)
  ]


def held(rows):
  return sum(x.nbytes for row in rows._cache.values() for x in row.values())


def test_an_image_is_decoded_once(rows_of, decoded):
  rows = rows_of(11 * ROW)
  for seen in passes(rows, 5):
    assert seen.tolist() == [*range(10), 0, 0]
  assert decoded == {i: 1 for i in range(10)}
  assert held(rows) == 11 * ROW  # padding is one more


@pytest.mark.parametrize('rest', [0, 1, ROW - 1])
def test_a_full_cache_keeps_what_it_has(rows_of, decoded, rest):
  limit = 6 * ROW + rest
  rows = rows_of(limit)
  for turn in range(1, 4):
    (seen,) = passes(rows, 1)
    assert seen.tolist() == [*range(10), 0, 0]
    assert held(rows) == 6 * ROW <= limit
    assert all(decoded[i] == 1 for i in range(6))
    assert all(decoded[i] == turn for i in range(6, 10))


def test_no_cache_at_all(rows_of, decoded):
  rows = rows_of(0)
  passes(rows, 3)
  assert held(rows) == 0 and decoded == {i: 3 for i in range(10)}


def test_what_is_in_use_twice_is_loaded_once(rows_of, decoded):
  rows = rows_of(0)
  found = rows(np.array([3, 3, 5, 3]))
  assert found['index'].tolist() == [3, 3, 5, 3]
  assert decoded == {3: 1, 5: 1}


def test_what_is_loaded_ahead_is_bounded(rows_of):
  rows = rows_of(0, prefetch=1)
  rows.ahead(range(10))
  assert set(rows._ahead) == set(range(10))
  rows.ahead([2, 4])  # the others are forgotten
  assert set(rows._ahead) == {2, 4}
  rows(np.array([2]))
  assert set(rows._ahead) == {4}
  for _ in rows.batches(np.arange(10)[:8], 2):
    assert len(rows._ahead) <= 2  # the next batch; this one is handed out


def test_what_is_asked_for_ahead_of_a_cache_is_not_loaded_again(
  rows_of, decoded
):
  rows = rows_of(11 * ROW)
  rows(np.arange(10))
  rows.ahead(range(10))
  assert not rows._ahead and decoded == {i: 1 for i in range(10)}


def test_cached_rows_cannot_be_changed_by_who_gets_them(rows_of):
  rows = rows_of(11 * ROW)
  rows(np.array([1]))['image'][:] = 9
  assert (rows(np.array([1]))['image'] == 1).all()
