import contextlib

import numpy as np
import pytest

from vmoe_robust import config as config_lib
from vmoe_robust.config import UserError
from vmoe_robust.data import examples, open_source
from vmoe_robust.data.rows import Rows


def test_rows_by_number_are_those_of_the_source():
  data = config_lib.default().data
  source = open_source(data, 'test')
  with contextlib.closing(Rows(source, data)) as rows:
    assert len(rows) == 360
    rows.ahead([7, 5])
    rows.ahead([7, 3])
    found = rows(np.array([3, -1, 7]))
    assert found['mask'].tolist() == [True, False, True]
    assert found['index'].tolist() == [3, -1, 7]
    for place, number in ((0, 3), (2, 7)):
      np.testing.assert_array_equal(
        found['image'][place], source[number]['image']
      )
      assert found['label'][place] == source[number]['label']
    again = rows(np.array([3, -1, 7]))
    np.testing.assert_array_equal(again['image'], found['image'])


def test_a_corrupt_image_is_named():
  class Damaged:
    num_classes, channels, multi_label = 2, 1, False
    fingerprint, lengths = 'of a test', {}
    class_names = ('0', '1')

    def __len__(self):
      return 2

    def __getitem__(self, index):
      return {'image': b'no jpeg', 'label': index}

    def describe(self, index):
      return f'example {index}'

  data = config_lib.default().data
  with contextlib.closing(Rows(Damaged(), data)) as rows:
    with pytest.raises(UserError, match='example 1 is corrupt'):
      rows(np.array([1]))


def test_examples_are_from_all_over_the_split(image_folder, make_data):
  data = make_data(name='folder', dir=str(image_folder), image_size=16)
  source = open_source(data, 'train')
  images, labels = examples(source, data, 4)
  assert images.shape == (4, 16, 16, 3) and images.dtype == np.uint8
  assert labels.tolist() == [source[i]['label'] for i in range(0, 20, 5)]
  with contextlib.closing(Rows(source, data)) as rows:
    np.testing.assert_array_equal(images, rows(np.arange(0, 20, 5))['image'])
  assert len(examples(source, data, 99)[1]) == len(source)


def test_examples_lack_what_is_skipped(image_folder, make_data):
  (image_folder / 'test' / 'dog' / '0.jpg').write_bytes(b'no jpeg')
  data = make_data(name='folder', dir=str(image_folder), on_corrupt='skip')
  images, labels = examples(open_source(data, 'test'), data, 6)
  assert sorted(labels.tolist()) == [0, 0, 1, 3, 3] and len(images) == 5
  data.on_corrupt = 'error'
  with pytest.raises(UserError, match='0.jpg is corrupt'):
    examples(open_source(data, 'test'), data, 6)


@pytest.mark.parametrize('count', [0, -1])
def test_no_examples_cannot_be_asked_for(count):
  data = config_lib.default().data
  with pytest.raises(UserError, match=f'count={count}'):
    examples(open_source(data, 'test'), data, count)
