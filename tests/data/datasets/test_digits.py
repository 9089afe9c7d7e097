import numpy as np

from vmoe_robust.data import open_source


def test_splits_are_complete_disjoint_and_stratified(make_data):
  train = open_source(make_data(), 'train')
  test = open_source(make_data(), 'test')
  assert (len(train), len(test)) == (1437, 360)
  counts = np.bincount([test[i]['label'] for i in range(360)])
  assert counts.min() >= 34 and counts.max() <= 38
  images = [
    s[i]['image'].tobytes() for s in (train, test) for i in range(len(s))
  ]
  assert len(set(images)) == 1797  # the file has no two equal images


def test_pixels_span_a_byte(make_data):
  image = open_source(make_data(), 'train')[0]['image']
  assert image.shape == (8, 8, 1) and image.dtype == np.uint8
  assert image.max() == 255 or image.max() in np.round(np.arange(17) * 255 / 16)


def test_a_part_keeps_names_and_order(make_data):
  part = open_source(make_data(), 'test[10:12]+train[:1]')
  whole = open_source(make_data(), 'test')
  assert [part.describe(i) for i in range(3)] == [
    'digits test example 10',
    'digits test example 11',
    'digits train example 0',
  ]
  assert np.array_equal(part[1]['image'], whole[11]['image'])
  assert (part.num_classes, part.channels, part.multi_label) == (10, 1, False)
