"""Labels that are no class stop a run, or are masked, counted and named."""

import contextlib

import jax
import numpy as np
import pytest

from vmoe_robust.config import UserError
from vmoe_robust.data import (
  eval_batches,
  examples,
  open_source,
  train_batches,
)
from vmoe_robust.data.rows import Rows
from vmoe_robust.data.source import NoClass

# Of the 12 examples, those whose labels are none of the classes 0, 1 and 2.
UNLABELLED = {3: -1, 7: 3}


class Labelled:
  """Images that say which example they are, of three classes."""

  num_classes, class_names = 3, ('a', 'b', 'c')
  fingerprint, lengths = 'of a test', {}
  multi_label, channels = False, 1

  def __len__(self):
    return 12

  def __getitem__(self, i):
    label = UNLABELLED.get(i, i % 3)
    return dict(image=np.full((8, 8, 1), i, np.uint8), label=label)

  def describe(self, i):
    return f'flowers test example {i}'


class SeveralLabels(Labelled):
  """Example 5 has no label at all."""

  multi_label = True

  def __getitem__(self, i):
    label = np.zeros(3, np.float32)
    label[i % 3] = i != 5
    return dict(image=np.full((8, 8, 1), i, np.uint8), label=label)


def ways_to_read(data, source, sharding):
  """All batches of an epoch, read in each of the ways."""

  def batches(open_them, **options):
    opened = open_them(data, source, batch_size=8, sharding=sharding, **options)
    with contextlib.closing(opened):
      found = [jax.device_get(next(opened)) for _ in range(3)]
    return found, opened.corrupt

  def rows():
    with contextlib.closing(Rows(source, data)) as by_number:
      return by_number(np.arange(12)), [by_number.describe(i) for i in (3, 7)]

  return {
    'training': lambda: batches(train_batches, seed=0),
    'evaluation': lambda: batches(eval_batches),
    'rows': rows,
    'examples': lambda: examples(source, data, 12),
  }


@pytest.mark.parametrize(
  ('way', 'workers'),
  [
    ('training', 0),
    pytest.param('training', 1, marks=pytest.mark.slow),
    ('evaluation', 0),
    ('rows', 0),
    ('examples', 0),
  ],
)
def test_a_label_that_is_no_class_stops_a_run(
  make_data, sharding, way, workers
):
  read = ways_to_read(make_data(workers=workers), Labelled(), sharding)[way]
  with pytest.raises(UserError) as stop:
    read()
  message = str(stop.value)
  known = {
    f'flowers test example {i} cannot be used: its label {label} is none of '
    'the 3 classes 0 to 2'
    for i, label in UNLABELLED.items()
  }
  assert message.split(';')[0] in known
  assert "config.data.on_unlabelled='skip'" in message


NAMES = [
  'flowers test example 3: its label -1 is none of the 3 classes 0 to 2',
  'flowers test example 7: its label 3 is none of the 3 classes 0 to 2',
]


def test_training_masks_and_names_them(make_data, sharding):
  data = make_data(on_unlabelled='skip')
  found, named = ways_to_read(data, Labelled(), sharding)['training']()
  shown = {
    name: np.concatenate([batch[name] for batch in found]) for name in found[0]
  }
  # 24 rows are two epochs.
  assert (~shown['mask']).sum() == 4 and sorted(named) == NAMES
  images = shown['image'][shown['mask']][:, 0, 0, 0]
  assert sorted(images) == sorted(2 * [i for i in range(12) if i not in (3, 7)])
  assert shown['label'][shown['mask']].tolist() == (images % 3).tolist()
  assert not shown['image'][~shown['mask']].any()
  assert not shown['label'][~shown['mask']].any()


def test_evaluation_masks_and_names_them(make_data, sharding):
  data = make_data(on_unlabelled='skip')
  batches = eval_batches(data, Labelled(), batch_size=8, sharding=sharding)
  with contextlib.closing(batches):
    found = [jax.device_get(batch) for batch in batches]
  mask = np.concatenate([batch['mask'] for batch in found])
  index = np.concatenate([batch['index'] for batch in found])
  assert index[~mask].tolist() == [3, 7, -1, -1, -1, -1]
  assert batches.corrupt == NAMES


def test_rows_mask_and_name_them(make_data, sharding):
  data = make_data(on_unlabelled='skip')
  ways = ways_to_read(data, Labelled(), sharding)
  found, named = ways['rows']()
  assert np.flatnonzero(~found['mask']).tolist() == [3, 7] and named == NAMES
  labels = ways['examples']()[1]
  assert labels.tolist() == [0, 1, 2, 1, 2, 0, 2, 0, 1, 2]


def test_none_of_several_labels_can_teach_and_not_be_judged(
  make_data, sharding
):
  data, source = make_data(on_unlabelled='skip'), SeveralLabels()
  ways = ways_to_read(data, source, sharding)
  found, named = ways['training']()
  assert not named and all(batch['mask'].all() for batch in found)
  images, labels = ways['examples']()
  assert len(images) == 11 and (labels.sum(1) == 1).all()
  with pytest.raises(UserError, match='example 5 cannot be .*has no label'):
    ways_to_read(make_data(), source, sharding)['rows']()


def test_a_tag_that_is_no_class_is_not_the_last_one(
  make_data, multi_label_root, monkeypatch
):
  data = make_data(name='tagged', dir=str(multi_label_root), image_size=16)
  source = open_source(data, 'test')
  example = dict(source._examples[0], tags=[1, -1])
  monkeypatch.setattr(source, '_examples', [example])
  with pytest.raises(NoClass, match='label -1 is none of the 4 classes'):
    source[0]
