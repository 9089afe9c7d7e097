import numpy as np
import pytest

from tests.evaluate.conftest import InMemory
from vmoe_robust.config import UserError
from vmoe_robust.data import hold_out, lost_classes
from vmoe_robust.data.decode import CorruptImage


def numbers(part):
  return [int(part.describe(i).split()[1]) for i in range(len(part))]


def test_every_example_is_in_one_part_in_its_order():
  source = InMemory(50)
  train, held_out = hold_out(source, 0.1)
  assert len(held_out) == 5
  assert sorted(numbers(train) + numbers(held_out)) == list(range(50))
  for part in (train, held_out):
    assert numbers(part) == sorted(numbers(part))
    for i, number in enumerate(numbers(part)):
      np.testing.assert_array_equal(part[i]['image'], source.images[number])
      assert part[i]['label'] == source.labels[number]
    assert part.class_names == source.class_names
  again, _ = hold_out(source, 0.1)
  assert numbers(again) == numbers(train)


def test_nothing_is_held_out_unless_asked():
  source = InMemory(5)
  assert hold_out(source, 0.0) == (source, None)


@pytest.mark.parametrize('share', [0.01, 0.99])
def test_a_part_without_examples_is_refused(share):
  with pytest.raises(UserError, match=f'config.data.validation={share}.*both'):
    hold_out(InMemory(5), share)


def test_classes_that_are_held_out_whole_are_known(monkeypatch):
  source = InMemory(12)
  source.labels[:] = np.arange(12) % 4
  train, held_out = hold_out(source, 0.5)
  for lost in ([], [2], [2, 3]):
    source.labels[:] = np.arange(12) % 2
    for place, number in zip(numbers(held_out), lost, strict=False):
      source.labels[place] = number
    assert lost_classes(train, held_out) == lost
  broken = numbers(train)[0]  # is said where it is loaded
  read = source.__getitem__

  def fails(_, i):
    if i == broken:
      raise CorruptImage('cut short')
    return read(i)

  monkeypatch.setattr(InMemory, '__getitem__', fails)

  source.labels[numbers(held_out)[0]] = -1  # an image without a class
  assert lost_classes(train, held_out) == [3]
