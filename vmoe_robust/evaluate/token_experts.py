"""The experts of each token of the few images that are shown."""

import dataclasses
import io

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from vmoe_robust.distributed import shared
from vmoe_robust.evaluate.classifier import Classifier
from vmoe_robust.report.tokens import TokenExperts, trimmed
from vmoe_robust.robustness.sweep import Shown, Swept

_Pictures = Float[np.ndarray, 'images height width channels']


def token_experts(
  classifier: Classifier, images: _Pictures, x_adv: _Pictures
) -> TokenExperts | None:
  """The experts of each token before and after; None of a dense model.

  Args:
    classifier: whose experts; dropless.
    images: the same on every process.
    x_adv: of the same shape; some attacks leave [0, 1].
  """
  before, after = (classifier.outputs(x)[1] for x in (images, x_adv))
  if not before:
    return None
  return TokenExperts(
    tuple(before),
    trimmed(np.stack(list(before.values()), 1)),
    trimmed(np.stack(list(after.values()), 1)),
    classifier.config.model.head == 'token',
  )


def of_shown(
  classifier: Classifier, config: ConfigDict, swept: Swept
) -> tuple[Swept, TokenExperts | None]:
  """The experts of what an attack shows, which all processes then show.

  None where images share slots: there the experts of a token depend on the
  other images of its group, which need not be among those that are shown.

  Args:
    classifier: what was attacked.
    config: `config.attack` says how.
    swept: each process has images of its own; the results are written by the
      first.
  """
  if not config.model.experts or config.attack.experts != 'dropless':
    return swept, None
  shown = _of_first(swept.shown)
  if shown is None:
    return swept, None
  experts = token_experts(classifier, shown.images, shown.x_adv)
  return dataclasses.replace(swept, shown=shown), experts


def _of_first(shown: Shown | None) -> Shown | None:
  """The first process's images, on every process."""

  def read() -> bytes | None:
    if shown is None:
      return None
    with io.BytesIO() as file:
      np.savez(file, **dataclasses.asdict(shown))
      return file.getvalue()

  content = shared(read)
  if content is None:
    return None
  with np.load(io.BytesIO(content), allow_pickle=False) as found:
    arrays = dict(found)
  return Shown(float(arrays.pop('eps')), **arrays)
