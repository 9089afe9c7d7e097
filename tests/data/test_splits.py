import functools

import pytest

from vmoe_robust.config import UserError
from vmoe_robust.data import splits
from vmoe_robust.data.hold_out import places

LENGTHS = {'train': 1005, 'test': 10}


@pytest.mark.parametrize(
  ('split', 'expected'),
  [
    ('train', [('train', 0, 1005)]),
    ('train[:10%]', [('train', 0, 100)]),
    ('train[100:200]', [('train', 100, 200)]),
    ('train[-5%:]', [('train', 955, 1005)]),
    ('train[:-5]', [('train', 0, 1000)]),
    ('test[5:]+train[:2]', [('test', 5, 10), ('train', 0, 2)]),
    ('test + train[:0]', [('test', 0, 10)]),
    ('all', [('train', 0, 1005), ('test', 0, 10)]),
  ],
)
def test_ranges_are_those_of_tfds(make_data, split, expected):
  assert list(splits.ranges(make_data(), split, LENGTHS)) == expected


@pytest.mark.parametrize(
  ('split', 'what'),
  [
    ('test+test', "the examples 0 to 9 of 'test' twice"),
    ('train[:60%]+train[600:]', "the examples 600 to 602 of 'train' twice"),
    ('train[7:]+test+train[2:8]', "the examples 7 to 7 of 'train' twice"),
    ('train[:9]+train[3:4]', "the examples 3 to 3 of 'train' twice"),
  ],
)
def test_no_example_is_there_twice(make_data, split, what):
  with pytest.raises(UserError, match=what):
    splits.ranges(make_data(split=split), split, LENGTHS)


def test_an_unknown_split_names_those_there_are(make_data):
  data = make_data(split='valid')
  with pytest.raises(UserError) as error:
    splits.ranges(data, 'valid', LENGTHS)
  text = str(error.value)
  assert text.startswith("config.data.split='valid'")
  assert "'train' (1005 examples)" in text and "'test'" in text
  assert '\n' not in text


def test_the_field_is_the_one_that_is_wrong(make_data):
  with pytest.raises(UserError, match=r'^config.data.eval_split='):
    splits.ranges(make_data(eval_split='x'), 'x', LENGTHS)


@pytest.mark.parametrize('split', ['train[:0]', 'train[9:5]'])
def test_a_split_of_no_examples_is_refused(make_data, split):
  with pytest.raises(UserError, match='holds no examples'):
    splits.ranges(make_data(split=split), split, LENGTHS)


@pytest.mark.parametrize('split', ['train[', 'test[:11]', 'all[:5]', ''])
def test_what_is_no_split_is_refused_in_one_line(make_data, split):
  with pytest.raises(UserError) as error:
    splits.ranges(make_data(split=split), split, LENGTHS)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('split', 'trained', 'shared'),
  [
    ('test', 'train', ''),
    ('train[:10]', 'train[10:]', ''),
    ('test', 'train+test', "10 of the 10 examples of 'test'"),
    ('test+train[:20]', 'train[10:]', '10 of the 30 examples'),
    ('all', 'all', '1,015 of the 1,015 examples'),
  ],
)
def test_examples_that_are_trained_on_are_counted(
  make_data, split, trained, shared
):
  found = splits.seen_in_training(make_data(), split, trained, 0.0, LENGTHS)
  assert shared in found and bool(found) == bool(shared)


def test_examples_that_were_held_out_are_not_trained_on(make_data):
  seen = functools.partial(splits.seen_in_training, make_data())
  assert '804 of the 1,005 examples' in seen('train', 'train', 0.2, LENGTHS)
  kept, held = places(1005, 0.2)
  for numbers, is_seen in (kept, True), (held, False):
    for i in numbers[:5]:
      assert is_seen == bool(seen(f'train[{i}:{i + 1}]', 'train', 0.2, LENGTHS))
      assert seen(f'train[{i}:{i + 1}]', 'train', 0.0, LENGTHS)
