"""The gallery of the report: what became of images, and of their tokens."""

import re

import numpy as np

from tests.report.test_page import Reader, made
from vmoe_robust.report import examples
from vmoe_robust.report.tokens import TokenExperts


def test_the_gallery_knows_what_became_of_an_image(save_run):
  folder = save_run(
    'a', [0, 1, 8, 9],
    more={'routing_change/encoderblock_1': np.array([0, 0.5, 0.5, 0])},
    files__figures=[{'name': 'e', 'title': 'e', 'data': 'e.npz'}],
  )  # fmt: skip
  images = np.zeros((4, 2, 2, 1), np.float32)
  examples.ExamplePictures(
    'e', 'e', images, images + 0.01, list('0123'), list('0189'), range(4),
    'pgd linf 16/255',
  ).write_data(folder / 'e.npz')  # fmt: skip
  text, lines = made(folder)
  assert lines == []
  assert re.findall(r'data-kinds="([^"]*)" data-run', text) == [
    'stands', 'stands routing-right', 'fell', 'fell routing-wrong'
  ]  # fmt: skip


def gallery_of(save_run, experts, **more):
  folder = save_run(
    'a', [9, 1, 2, 3],
    files__figures=[{'name': 'e', 'title': 'e', 'data': 'e.npz'}],
  )  # fmt: skip
  images = np.zeros((2, 8, 8, 1), np.float32)
  examples.ExamplePictures(
    'e', 'e', images, images + 0.01, ['0', '1'], ['9', '1'], range(2),
    'pgd linf 16/255', experts,
  ).write_data(folder / 'e.npz')  # fmt: skip
  if more:
    with np.load(folder / 'e.npz') as found:
      arrays = dict(found) | more
    np.savez(folder / 'e.npz', **arrays)
  return made(folder)


def test_the_gallery_draws_the_tokens_that_changed(save_run):
  """Of a router by hand: in the first image patch (1, 2) of block 1 goes

  from expert 3 to 5, and so does (2, 1); in block 3 and the second image all
  is as before.
  """
  before = np.full((2, 2, 4, 1), 3)
  after = before.copy()
  after[0, 0, 1:3] = 5
  text, lines = gallery_of(
    save_run,
    TokenExperts(('encoderblock_1', 'encoderblock_3'), before, after, False),
  )
  assert lines == [] and Reader(text).wrong == []
  # A line across, and then the four sides.
  upper_right = 'M1 1L2 0M1 0L2 0M1 1L2 1M1 0L1 1M2 0L2 1'
  lower_left = 'M0 2L1 1M0 1L1 1M0 2L1 2M0 1L0 2M1 1L1 2'
  paths = re.findall(r'<path id="(marks-[0-9-]*)" .* d="([^"]*)"', text)
  assert paths == [
    ('marks-1-1', upper_right + lower_left),
    *((name, '') for name in ('marks-1-2', 'marks-2-1', 'marks-2-2')),
  ]
  # On both pictures, as a black line and a white one within it.
  uses = re.findall(r'<use href="#([^"]*)" data-block="([^"]*)"', text)
  assert uses.count(('marks-1-1', 'block 1')) == 4
  assert text.count('<svg viewBox="0 0 2 2"') == 4
  told = 'changed experts: block 1: 2 of 4 patches (2 x 3 to 5); block 3: none'
  assert f'alt="attacked, predicted 9; {told}"' in text
  assert 'predicted 1; changed experts: block 1: none; block 3: none"' in text
  assert re.findall(r'<li>(row [^<]*)</li>', text) == [
    'row 1, column 2: 3 to 5', 'row 2, column 1: 3 to 5'
  ]  # fmt: skip
  options = text[text.index('id="of-block"') :].split('</select>')[0]
  assert re.findall(r'<option[^>]*>([^<]*)<', options) == [
    'any block', 'block 1', 'block 3', 'no block: unmarked'
  ]  # fmt: skip


def test_of_many_blocks_one_is_drawn_at_first(save_run):
  names = tuple(f'encoderblock_{i}' for i in (7, 9, 11))
  experts = TokenExperts(names, *2 * [np.zeros((2, 3, 4, 1), int)], False)
  text, _ = gallery_of(save_run, experts)
  assert '<option selected>block 11</option>' in text
  uses = re.findall(r'<use [^>]*data-block="([^"]*)"( hidden)?', text)
  assert {name for name, hidden in uses if not hidden} == {'block 11'}


def test_a_gallery_of_dense_models_marks_nothing(save_run):
  text, lines = gallery_of(save_run, None)
  assert lines == [] and 'id="of-block"' not in text
  assert '<use' not in text and 'hanged experts' not in text
  assert 'alt="attacked, predicted 9"' in text


def test_damaged_experts_are_one_line(save_run):
  experts = TokenExperts(('b',), *2 * [np.zeros((2, 1, 4, 1), int)], False)
  _, lines = gallery_of(save_run, experts, experts_after=np.zeros((1, 1, 4, 1)))
  (line,) = lines
  assert line.startswith('the gallery of a: ')
