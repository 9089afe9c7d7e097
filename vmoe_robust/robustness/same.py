"""Whether what is in a folder is of the same images and the same model."""

import hashlib
import os

import numpy as np

from vmoe_robust.config import UserError
from vmoe_robust.mesh import batch_shards
from vmoe_robust.robustness.measure import Arrays, Columns, Measure
from vmoe_robust.robustness.programs import Programs

_ASKED = 16  # images by whose logits a model is known again
# Images of which a digest is taken at once: 154 MB of 224 x 224 x 3 floats.
_AT_ONCE = 256
# So many images, or a thousandth, may be judged otherwise when judged again:
# where a router chooses between experts, rounding alone can decide.
_ODD = 1


def digests(rows: Arrays) -> dict[str, str]:
  """Of images and labels; of uint8 that of the floats that they stand for."""
  digest = hashlib.sha256()
  for first in range(0, len(rows), _AT_ONCE):
    part = slice(first, first + _AT_ONCE)
    some = Arrays(rows.images[part], rows.labels[part]).floats()
    digest.update(some.astype(np.float32).tobytes())
  labels = hashlib.sha256(rows.labels.astype(np.int64).tobytes())
  return {
    'the digest of the images': digest.hexdigest()[:16],
    'the digest of the labels': labels.hexdigest()[:16],
  }


def identity(programs: Programs, rows: Arrays, eps: float) -> dict[str, str]:
  """What makes an attack the same one, besides its settings and images.

  The model's answers on some images, and on points between these and the edge
  of the ball.
  """
  some, target = rows.some(_ASKED), programs.target
  near = some.floats()
  near += eps * np.random.default_rng(0).uniform(-1, 1, near.shape)
  beside = Arrays(np.clip(near, 0, 1).astype(np.float32), some.labels)
  # In a batch of a size of its own, for another size rounds otherwise.
  shards = batch_shards(target.mesh)
  measure = Measure(
    target, norm='linf', seed=0, batch_size=-(-_ASKED // shards) * shards
  )
  answers = [
    measure.clean(target.params, asked).columns[name]
    for asked in (some, beside)
    for name in ('prediction_before', 'loss_before')
  ]
  slopes = programs.checks.slopes(
    target.params, next(iter(measure.batches(some)))[1]
  )
  digest = lambda data: hashlib.sha256(data).hexdigest()[:16]
  return {
    "the digest of the model's answers": digest(
      b''.join(np.asarray(answer).tobytes() for answer in answers)
    ),
    'the digest of what is followed': digest(slopes),
  }


def require_same_verdict(
  programs: Programs,
  rows: Arrays,
  x_adv: np.ndarray,
  columns: Columns,
  folder: str | os.PathLike,
) -> None:
  """Judges again what was read from a folder, by the model as it is now.

  A model is known again by few images; one that differs on others only, or on
  attacked ones, would get the numbers of the other. Of a random model losses
  are not compared, which depend on what it draws.

  Raises:
    UserError: x_adv left its ball, or the model judges it otherwise.
  """
  target, measure = programs.target, programs.measure
  eps = float(columns['eps'][0])
  wrong = 0
  for indices, batch in measure.batches(rows):
    mine = measure.batch_rows.mine
    here = x_adv[np.maximum(indices, 0)][mine]
    out = measure.score(target.params, batch, measure.batch_rows.put(here), eps)
    own = indices >= 0
    fits = out['in_ball'] & out['in_range']
    if not target.random:
      before = columns['loss_after'][indices[own]]
      # Rounding differs with what else is in a batch.
      fits[own] &= np.isclose(
        out['loss_after'][own], before, rtol=1e-3, atol=1e-3, equal_nan=True
      )
    wrong += int((~fits[own]).sum())
  if wrong > max(_ODD, len(rows) // 1000):
    raise UserError(
      f'folder={folder}: of {len(rows)} attacked images {wrong} are not as '
      'they were stored, or this model judges them otherwise: it is another '
      'model, or the files are damaged; choose another folder'
    )
