"""Which patches changed their experts: marks over pictures, and words."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool
from markupsafe import Markup

from vmoe_robust.report.tokens import TokenExperts, marks, short

_MOST_LISTED = 20  # patches of a block; a table of all would fill the page


@dataclasses.dataclass(frozen=True)
class Changes:
  """What changed in one sparse block of one image."""

  block: str  # such as 'block 3'
  count: str  # such as '3 of 16 patches'
  moves: str  # from which experts to which; '' if none changed
  listed: Sequence[str]  # the patches one by one
  more: int  # that are not listed
  path: Markup  # that marks the patches, which have side 1


def token_experts(found: Mapping[str, np.ndarray]) -> TokenExperts | None:
  """The experts that a file of pictures has; None of most older ones.

  Raises:
    LookupError, TypeError, ValueError: it is damaged.
  """
  if 'blocks' not in found:
    return None
  blocks = tuple(str(block) for block in found['blocks'])
  arrays = found['experts_before'], found['experts_after']
  experts = TokenExperts(blocks, *arrays, bool(found['class_token']))
  if len(arrays[0]) != len(found['images']):
    raise ValueError(
      f'experts of {len(arrays[0])} images of {len(found["images"])}'
    )
  return experts


def changes(experts: TokenExperts | None, image: int) -> list[Changes]:
  """What changed in each sparse block of an image."""
  if experts is None:
    return []
  return [_changes(experts, image, b) for b in range(len(experts.blocks))]


def _changes(experts: TokenExperts, image: int, block: int) -> Changes:
  marked = experts.patches(image, block)
  places = np.argwhere(marked).tolist()
  front, columns = int(experts.class_token), marked.shape[1]
  listed = []
  for row, column in places[:_MOST_LISTED]:
    move = experts.move(image, block, front + row * columns + column)
    listed.append(f'row {row + 1}, column {column + 1}: {move}')
  return Changes(
    short(experts.blocks[block]),
    experts.count(image, block),
    experts.moves(image, block),
    listed,
    len(places) - len(listed),
    _path(marked),
  )


def words(found: Sequence[Changes]) -> str:
  """What changed, for those who do not see it; '' where nothing is known."""
  texts = [
    f'{one.block}: {one.count} ({one.moves})'
    if one.moves
    else f'{one.block}: none'
    for one in found
  ]
  return 'changed experts: ' + '; '.join(texts) if texts else ''


def grid(experts: TokenExperts | None) -> str:
  """The window of the marks, in patches."""
  return '0 0 {} {}'.format(*experts.grid[::-1]) if experts else ''


def _path(marked: Bool[np.ndarray, 'rows columns']) -> Markup:
  """The lines of `marks`, in patches."""
  return Markup('').join(
    Markup('M{} {}L{} {}').format(*begin, *end) for begin, end in marks(marked)
  )
