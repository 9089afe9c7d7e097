"""Which tokens of an image changed their experts, and from which to which.

A token has changed if the set of its experts is another one; their order and
their gates do not count. So an image has a changed token exactly where its
`routing_change` in the records is above zero.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

_MOST_MOVES = 5  # that are named one by one


@dataclasses.dataclass(frozen=True)
class TokenExperts:
  """The experts of each token of some images, before and after an attack.

  Args:
    blocks: names of the sparse blocks.
    before: experts on the clean images; -1 is none.
    after: the same on x_adv.
    class_token: the first token is none of the patches.
  """

  blocks: Sequence[str]
  before: Int[np.ndarray, 'images blocks tokens choices']
  after: Int[np.ndarray, 'images blocks tokens choices_after']
  class_token: bool

  def __post_init__(self):
    shapes = {np.shape(self.before)[:3], np.shape(self.after)[:3]}
    if len(shapes) > 1 or np.shape(self.before)[1:2] != (len(self.blocks),):
      raise ValueError(f'experts of {self.blocks} have shapes {shapes}')
    rows, columns = self.grid
    if rows * columns != self.before.shape[2] - self.class_token:
      raise ValueError(f'{self.before.shape[2]} tokens are not those of a grid')

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of patches; images are square."""
    side = round((np.shape(self.before)[2] - self.class_token) ** 0.5)
    return side, side

  @functools.cached_property
  def changed(self) -> Bool[np.ndarray, 'images blocks tokens']:
    """The tokens whose set of experts is another one."""
    before, after = self.before[..., None], self.after[..., None, :]
    # An expert that the other image's token has not; -1 is no expert.
    gone = (self.before >= 0) & ~(before == after).any(-1)
    come = (self.after >= 0) & ~(before == after).any(-2)
    return gone.any(-1) | come.any(-1)

  def patches(self, image: int, block: int) -> Bool[np.ndarray, 'rows columns']:
    """The patches of an image that changed."""
    changed = self.changed[image, block, int(self.class_token) :]
    return changed.reshape(self.grid)

  def move(self, image: int, block: int, token: int) -> str:
    """From which experts to which a token went, such as '1, 4 to 1, 6'."""
    sides = (x[image, block, token] for x in (self.before, self.after))
    return ' to '.join(map(_named, sides))

  def count(self, image: int, block: int) -> str:
    """How many patches changed, such as '3 of 16 patches'."""
    marked = self.patches(image, block)
    text = f'{marked.sum()} of {marked.size} patches'
    if self.class_token and self.changed[image, block, 0]:
      text += ' and the class token'
    return text

  def moves(self, image: int, block: int) -> str:
    """The commonest moves with how many tokens made them."""
    tokens = np.flatnonzero(self.changed[image, block]).tolist()
    moves = collections.Counter(self.move(image, block, t) for t in tokens)
    common = moves.most_common(_MOST_MOVES)
    named = [f'{n} x {move}' for move, n in common]
    if rest := len(tokens) - sum(n for _, n in common):
      named.append(f'{rest} x otherwise')
    return '; '.join(named)


def marks(
  marked: Bool[np.ndarray, 'rows columns'],
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
  """Lines that mark patches: around each region, and across each patch.

  Returns:
    Two ends (x, y) of each line, in patches from the upper left.
  """
  wide = np.pad(marked, 1)
  lines = []
  for y, x in np.argwhere(marked).tolist():
    above, below = wide[y, x + 1], wide[y + 2, x + 1]
    left, right = wide[y + 1, x], wide[y + 1, x + 2]
    lines.append(((x, y + 1), (x + 1, y)))
    lines += [] if above else [((x, y), (x + 1, y))]
    lines += [] if below else [((x, y + 1), (x + 1, y + 1))]
    lines += [] if left else [((x, y), (x, y + 1))]
    lines += [] if right else [((x + 1, y), (x + 1, y + 1))]
  return lines


def trimmed(
  experts: Int[np.ndarray, 'images blocks tokens choices'],
) -> Int[np.ndarray, 'images blocks tokens made']:
  """The same without choices that no token made, as small numbers.

  Of images that are shown alone. 50,000 images of 197 tokens, two experts
  each, in 6 sparse blocks would be 473 MB a radius before compression; 24
  images are 0.2 MB, and 3.3 MB at 384 pixels if a token has ten experts.
  """
  first = np.argsort(experts < 0, axis=-1, kind='stable')
  made = int((experts >= 0).sum(-1).max(initial=1))
  experts = np.take_along_axis(experts, first[..., :made], axis=-1)
  return experts.astype(np.int16)


def _named(experts: Int[np.ndarray, 'choices']) -> str:
  return ', '.join(str(e) for e in sorted(set(experts[experts >= 0]))) or 'none'


def short(block: str) -> str:
  """A block as people call it: 'encoderblock_3' is 'block 3'."""
  return block.replace('encoderblock_', 'block ')
