import numpy as np
import pytest

from vmoe_robust.report.examples import ExamplePictures
from vmoe_robust.report.tokens import TokenExperts, marks, trimmed


def experts(before, after, class_token=False):
  """Of one image and block: a list of experts for each token."""
  arrays = (np.array([[found]], np.int16) for found in (before, after))
  return TokenExperts(('encoderblock_3',), *arrays, class_token)


def test_a_token_changed_if_its_set_of_experts_did():
  found = experts(
    [[0, 1], [0, 1], [2, -1], [-1, -1]], [[1, 0], [0, 3], [2, 0], [-1, -1]]
  )
  assert found.changed.tolist() == [[[False, True, True, False]]]
  assert found.patches(0, 0).tolist() == [[False, True], [True, False]]
  assert [found.move(0, 0, t) for t in (1, 2, 3)] == [
    '0, 1 to 0, 3', '2 to 0, 2', 'none to none'
  ]  # fmt: skip
  assert found.count(0, 0) == '2 of 4 patches'


def test_images_may_have_other_numbers_of_choices():
  found = experts([[0], [1], [2], [-1]], [[0, 5], [1, -1], [-1, -1], [3, 4]])
  assert found.changed.tolist() == [[[True, False, True, True]]]
  assert found.moves(0, 0) == '1 x 0 to 0, 5; 1 x 2 to none; 1 x none to 3, 4'


def test_the_class_token_is_no_patch():
  found = experts([[7], [0], [0], [0], [0]], [[6], [1], [0], [0], [1]], True)
  assert found.grid == (2, 2)
  assert found.patches(0, 0).tolist() == [[True, False], [False, True]]
  assert found.count(0, 0) == '2 of 4 patches and the class token'
  assert found.moves(0, 0) == '2 x 0 to 1; 1 x 7 to 6'


def test_the_commonest_moves_are_named_and_the_others_counted():
  after = [*range(1, 7), *3 * [7]]
  found = experts(9 * [[0]], [[e] for e in after])
  assert found.moves(0, 0) == (
    '3 x 0 to 7; 1 x 0 to 1; 1 x 0 to 2; 1 x 0 to 3; 1 x 0 to 4; 2 x otherwise'
  )


@pytest.mark.parametrize('tokens', [3, 5])
def test_tokens_that_are_no_grid_are_refused(tokens):
  with pytest.raises(ValueError, match=f'{tokens} tokens are not'):
    experts(tokens * [[0]], tokens * [[0]])


def test_choices_that_no_token_made_are_left_out():
  given = np.array([[[[-1, 4, -1], [-1, -1, -1]]]])
  found = trimmed(given)
  assert found.tolist() == [[[[4], [-1]]]] and found.dtype == np.int16


def test_a_region_is_framed_as_one_and_each_patch_of_it_hatched():
  lines = marks(np.array([[False, True], [False, True]]))
  across = [((1, 1), (2, 0)), ((1, 2), (2, 1))]
  around = [((1, 0), (2, 0)), ((1, 2), (2, 2))]
  around += [((x, y), (x, y + 1)) for x in (1, 2) for y in (0, 1)]
  assert sorted(lines) == sorted(across + around)


def test_changed_patches_are_hatched_in_the_picture(tmp_path):
  """The first patch of four is: its frame is white, the others stay grey."""
  images = np.full((1, 8, 8, 1), 0.5, np.float32)
  made = []
  for name, after in (('same', 0), ('changed', 1)):
    shown = ExamplePictures(
      name, 'one', images, images, ['3'], ['3'],
      experts=experts(4 * [[0]], [[after], [0], [0], [0]]),
    )  # fmt: skip
    shown.draw(tmp_path / f'{name}.png')
    shown.write_data(tmp_path / shown.data_name)
    made.append((tmp_path / f'{name}.svg').read_text())
  same, changed = (text.count('stroke: #ffffff') for text in made)
  assert changed == same + 1
  assert '1 of 4 patches' in made[1] and '0 of 4 patches' in made[0]
  with np.load(tmp_path / 'changed.npz') as file:
    assert file['blocks'].tolist() == ['encoderblock_3']
    assert file['experts_after'].tolist() == [[[[1], [0], [0], [0]]]]
