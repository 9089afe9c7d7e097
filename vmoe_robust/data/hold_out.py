"""A part of the training examples that is kept for selection."""

import numpy as np

from vmoe_robust.config import UserError
from vmoe_robust.data.source import Part, Source


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
  count = round(share * len(source))
  if not 0 < count < len(source):
    raise UserError(
      f'config.data.validation={share} of {len(source)} training examples is '
      f'{count}; both parts need one, so choose another share, such as 0.1'
    )
  order = np.random.default_rng(0).permutation(len(source))
  return Part(source, np.sort(order[count:])), Part(
    source, np.sort(order[:count])
  )
