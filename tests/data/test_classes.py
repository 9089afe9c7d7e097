"""Classes go by name: what a model calls 1 is what its name says."""

import pickle

import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.data import match_classes, open_source
from vmoe_robust.data.classes import require_one_order


class Named:
  """One image of every class."""

  multi_label, channels = False, 1
  fingerprint, lengths = 'of a test', {}

  def __init__(self, *names, multi_label=False):
    self.class_names, self.num_classes = names, len(names)
    self.multi_label = multi_label

  def __len__(self):
    return self.num_classes

  def __getitem__(self, i):
    hot = np.eye(self.num_classes, dtype=np.float32)[i]
    label = hot if self.multi_label else i
    return dict(image=np.full((1, 1, 1), i, np.uint8), label=label)

  def describe(self, i):
    return f'a {self.class_names[i]}'


def labels(source):
  return [source[i]['label'] for i in range(len(source))]


def test_some_classes_in_another_order():
  there = Named('whale', 'frog')
  found = match_classes(there, ('apple', 'frog', 'whale'))
  assert labels(found) == [2, 1] and found.num_classes == 3
  assert found.class_names == ('apple', 'frog', 'whale')
  assert found.describe(0) == 'a whale' and len(found) == 2
  assert labels(pickle.loads(pickle.dumps(found))) == [2, 1]  # for workers
  several = Named('whale', 'frog', multi_label=True)
  found = match_classes(several, ('apple', 'frog', 'whale'))
  assert np.array_equal(labels(found), [[0, 0, 1], [0, 1, 0]])


def test_equal_names_change_nothing():
  there = Named('apple', 'frog')
  assert match_classes(there, ['apple', 'frog']) is there


def test_a_new_class_is_refused_by_name():
  with pytest.raises(UserError) as stop:
    match_classes(
      Named('frog', 'whale', 'zinnia'), ('apple', 'frog', 'whale'), 'the data'
    )
  assert str(stop.value).startswith(
    "the data has classes that the model does not know: 'zinnia', and lacks "
    "'apple'; "
  )


def test_a_name_of_two_classes_is_refused():
  with pytest.raises(UserError, match="the model has several .* named 'frog'"):
    match_classes(Named('frog', 'eel'), ('frog', 'eel', 'frog'))


@pytest.mark.parametrize('names', [(), ('0', '1'), ('cat', 'dog')])
def test_names_that_say_nothing_are_not_compared(names, caplog):
  there = Named('cat', 'eel') if names != ('cat', 'dog') else Named('0', '1')
  assert match_classes(there, names) is there
  assert 'by their number (2) alone' in caplog.text
  with pytest.raises(UserError, match='the 2 classes .* and the 3 of the'):
    words = there.class_names == ('cat', 'eel')
    match_classes(there, ('0', '1', '2') if words else ('cat', 'dog', 'eel'))


def test_numbers_are_names_among_numbers():
  numbers = tuple(map(str, range(10)))
  assert labels(match_classes(Named('0', '3'), numbers)) == [0, 3]
  with pytest.raises(UserError, match="does not know: '10', and lacks '0'"):
    match_classes(Named(*map(str, range(1, 11))), numbers)


def folder(root, jpeg, *names):
  for i, name in enumerate(names):
    (root / 'test' / name).mkdir(parents=True)
    (root / 'test' / name / 'a.jpg').write_bytes(jpeg(i))
  return root


def test_folders_of_numbers_are_in_their_order(make_data, tmp_path, jpeg):
  folder(tmp_path, jpeg, *map(str, range(12)))
  source = open_source(make_data(name='folder', dir=str(tmp_path)), 'test')
  assert source.class_names == tuple(map(str, range(12)))
  for i in range(12):
    name = source.class_names[source[i]['label']]
    assert source.describe(i) == str(tmp_path / 'test' / name / 'a.jpg')


def test_one_name_more_and_they_are_in_the_order_of_text(
  make_data, tmp_path, jpeg
):
  folder(tmp_path, jpeg, '10', '2', 'other')
  source = open_source(make_data(name='folder', dir=str(tmp_path)), 'test')
  assert source.class_names == ('10', '2', 'other')


@pytest.mark.parametrize(
  'names', [('0', '1', '9'), ('02', '10'), ('c10', 'c2'), ('2', '10', 'eel')]
)
def test_an_order_that_is_one_is_not_refused(names):
  require_one_order(names, 'the model')


def test_an_order_that_was_another_is_refused():
  with pytest.raises(UserError) as stop:
    require_one_order(tuple(map(str, range(11))), 'the model')
  for words in ('have no saved names', "('c10', 'c2')", "('02', '10')"):
    assert words in str(stop.value)
