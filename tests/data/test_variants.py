"""Corruptions in the pipeline: every example under each, whoever loads it."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.slow import all_slow_but
from vmoe_robust.data import Corruption, Part, eval_batches, open_source

SHOWN = (Corruption(), Corruption('gaussian_noise', 5), Corruption('fog', 2))


def rows_of(data, source, batch_size, devices=1, corruptions=SHOWN):
  mesh = Mesh(np.array(jax.devices()[:devices]), ('data',))
  batches = eval_batches(
    data,
    source,
    batch_size=batch_size,
    sharding=NamedSharding(mesh, PartitionSpec('data')),
    corruptions=corruptions,
  )
  rows = [jax.device_get(batch) for batch in batches]
  batches.close()
  rows = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
  return {name: column[rows['mask']] for name, column in rows.items()}


@pytest.fixture
def digits(make_data):
  data = make_data(split='test[:21]', threads=2)
  return data, open_source(data, data.split)


def test_every_example_under_each(digits):
  rows = rows_of(*digits, batch_size=8)
  np.testing.assert_array_equal(rows['variant'], np.repeat([0, 1, 2], 21))
  np.testing.assert_array_equal(rows['index'], np.tile(np.arange(21), 3))
  clean = rows_of(*digits, batch_size=8, corruptions=())
  assert 'variant' not in clean
  for i, corruption in enumerate(SHOWN):
    here = rows['variant'] == i
    np.testing.assert_array_equal(rows['label'][here], clean['label'])
    for index, image in enumerate(rows['image'][here]):
      expected = corruption(clean['image'][index], index)
      np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
  'way', all_slow_but(['batch', 'devices'], ['batch', 'devices', 'workers'])
)
def test_nothing_depends_on_who_loads_it(digits, way):
  data, source = digits
  expected = rows_of(data, source, batch_size=8)
  if way == 'workers':
    data.workers = 2
  size = 24 if way == 'batch' else 8
  found = rows_of(data, source, size, devices=8 if way == 'devices' else 1)
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name])


def test_every_kth(digits):
  _, source = digits
  few = Part(source, np.arange(0, len(source), 5))
  assert len(few) == 5 and few.describe(4) == source.describe(20)
  assert few.num_classes == source.num_classes
  for i in range(5):
    np.testing.assert_array_equal(few[i]['image'], source[5 * i]['image'])
