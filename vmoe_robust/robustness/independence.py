"""That no image changes another's prediction.

The test asks the model about batches that share some of their images, at other
places, while all others change: to images of the data, to their negatives, to
noise, to flat images and to images of the highest contrast. What no sample can
see: a dependence on images of a kind that the test does not show, on batches
larger than the one that is tested, or weaker than 1e-4 of the logits' size; of
the batch's size, weaker than a twentieth.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from vmoe_robust.config import UserError

Images = Float[np.ndarray, 'batch height width channels']

# Relative to the largest finite logit of an image or, if that is larger, to
# what is usual in the batch.
_SAME = 1e-4
# The same between batches of two sizes: other kernels add in another order, and
# in bfloat16 that shows.
_SAME_SIZES = 0.05
# exp of less than the negative of it is 0 in float32.
_NO_PROBABILITY = 104
# Pairs of batches; in each, either half of the images stays once.
_PAIRS = 4
_FEWEST = 4  # images of a batch that is tested

_DEPENDENT = (
  'images change the predictions of others in their batch (capacity shared '
  'between images, batch normalisation in training mode), so that no image has '
  'a robustness of its own; evaluate with experts dropless, or in inference '
  'mode'
)


def require_independent(
  ask: Callable[[Images], Float[np.ndarray, 'batch classes']],
  images: Images,
  logits: Float[np.ndarray, 'batch classes'],
  in_place: bool = False,
) -> None:
  """Refuses a function in which an image changes another's logits.

  Args:
    ask: from images to logits, for batches of at least one image.
    images: of the data.
    logits: of these.
    in_place: whether logits may depend on the size of the batch and the place
      in it, as those of a function that draws at random do.

  Raises:
    UserError: it does.
  """
  rng = np.random.default_rng(0)
  if len(images) < _FEWEST:
    # A batch of its own has no neighbours; and normalising over it would not
    # be seen.
    more = _others(rng, images, _FEWEST - len(images))
    alone, images = logits, np.concatenate([images, more])
    logits = ask(images)
    both = logits[: len(alone)]
    if not in_place and not close(alone, both, _SAME_SIZES).all():
      raise UserError(_DEPENDENT)
  few = len(images) // 2  # a batch of another size
  if not in_place:
    if not close(logits[:few], ask(images[:few]), _SAME_SIZES).all():
      raise UserError(_DEPENDENT)
  for pair in range(_PAIRS):
    if pair:  # also away from the data
      images = _moved(rng, images)
      logits = ask(images)
    half = rng.permutation(len(images)) % 2 == 0
    for stays in (half, ~half):
      others = _others(rng, images, len(images))
      batch = np.where(stays[:, None, None, None], images, others)
      # In their own places, then at others.
      if not close(logits, ask(batch))[stays].all():
        raise UserError(_DEPENDENT)
      if in_place:
        continue
      order = rng.permutation(len(images))
      again = np.empty_like(logits)
      again[order] = ask(batch[order])
      if not close(logits, again)[stays].all():
        raise UserError(_DEPENDENT)


def _others(
  rng, images: Images, count: int
) -> Float[np.ndarray, 'count height width channels']:
  """Images of several kinds, each of another kind than the one before."""
  shape = (count, *images.shape[1:])
  source = images[rng.integers(len(images), size=count)]
  kinds = (
    source,
    1 - source,
    rng.uniform(size=shape),
    rng.integers(0, 2, shape),  # of the highest contrast
    np.broadcast_to(rng.uniform(size=(count, 1, 1, 1)), shape),  # of the lowest
  )
  kind = (np.arange(count) + rng.integers(len(kinds))) % len(kinds)
  out = np.stack([np.asarray(k, np.float32) for k in kinds])
  return out[kind, np.arange(count)]


def _moved(rng, images: Images) -> Images:
  """Half of the images perturbed as attacks do, half of other kinds."""
  step = rng.choice([0.03, 0.3], size=(len(images), 1, 1, 1))
  signs = rng.choice([-1, 1], size=images.shape)
  near = np.clip(images + step * signs, 0, 1).astype(np.float32)
  far = _others(rng, images, len(images))
  return np.where(rng.permutation(len(images)) % 2, near.T, far.T).T


def close(
  a: Float[np.ndarray, 'batch classes'],
  b: Float[np.ndarray, 'batch classes'],
  tolerance: float = _SAME,
) -> Bool[np.ndarray, 'batch']:
  """Which images have the same logits.

  Finite ones are compared by their own scale, others by place and kind. A class
  that has no probability in any image, such as one with -1e9 for a mask, is
  compared by a scale of its own.
  """
  finite = np.isfinite(a)
  with np.errstate(invalid='ignore', over='ignore'):
    behind = np.where(finite, a, -np.inf).max(-1, keepdims=True) - a
    counts = (behind < _NO_PROBABILITY).any(0)
  size = np.where(finite & counts, np.abs(a), 0).max(-1)
  size = np.maximum(size, np.median(size))[:, None]
  size = np.where(counts, size, np.maximum(size, np.abs(a)))
  with np.errstate(invalid='ignore', over='ignore'):
    near = np.abs(a - b) <= tolerance * size
  alike = (a == b) | (np.isnan(a) & np.isnan(b))
  return np.where(finite, near, alike).all(-1)
