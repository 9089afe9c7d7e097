"""A part of the training examples that is kept for selection."""

import numpy as np
from jaxtyping import Int

from vmoe_robust.config import UserError
from vmoe_robust.data.source import Part, Source

# Examples whose labels are looked at before a run.
_MOST_READ = 2000


def hold_out(source: Source, share: float) -> tuple[Source, Source | None]:
  """What is trained on, and what is held out of it.

  The same examples are held out whatever the seed of the run, so that models of
  several seeds are selected on the same images.

  Args:
    source: the training split.
    share: of its examples that are held out, drawn at random; 0: none.

  Returns:
    Both parts, each in the order of the split; None without a second part.

  Raises:
    UserError: one of the parts would be empty.
  """
  if not share:
    return source, None
  kept, held = places(len(source), share)
  if not min(len(kept), len(held)):
    raise UserError(
      f'config.data.validation={share} of {len(source)} training examples is '
      f'{len(held)}; both parts need one, so choose another share, such as 0.1'
    )
  return Part(source, kept), Part(source, held)


def lost_classes(kept: Source, held: Source) -> list[int]:
  """Classes of which all images are held out; of large data it is not asked.

  There it is next to impossible, and labels are read with their images.
  """
  if len(kept) + len(held) > _MOST_READ:
    return []
  return sorted(_classes(held) - _classes(kept))


def _classes(source: Source) -> set[int]:
  found = set[int]()
  for index in range(len(source)):
    try:
      label = np.asarray(source[index]['label'])
    except (OSError, RuntimeError, ValueError):  # said where it is loaded
      continue
    found |= {*map(int, np.flatnonzero(label) if label.ndim else [label])}
  return {one for one in found if one >= 0}  # not of what has no class


def places(
  length: int, share: float
) -> tuple[Int[np.ndarray, 'kept'], Int[np.ndarray, 'held']]:
  """Which of so many examples are trained on, and which are held out."""
  order = np.random.default_rng(0).permutation(length)
  count = round(share * length)
  return np.sort(order[count:]), np.sort(order[:count])
