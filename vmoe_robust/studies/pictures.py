"""A few images of a study that attacks, for people to look at."""

import contextlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from vmoe_robust.data.rows import Rows
from vmoe_robust.distributed import fetch
from vmoe_robust.evaluate.adversarial import Attack
from vmoe_robust.evaluate.job import Job
from vmoe_robust.evaluate.token_experts import token_experts
from vmoe_robust.mesh import batch_sharding, batch_shards
from vmoe_robust.mesh.batch import BatchRows
from vmoe_robust.report.examples import ExamplePictures
from vmoe_robust.report.findings import Columns
from vmoe_robust.robustness.findings import class_texts
from vmoe_robust.robustness.target import as_floats
from vmoe_robust.studies import conditions as under

_MOST = 8


def examples(
  job: Job,
  attack: Attack,
  columns: Columns,
  radii: Sequence[float],
  shown: Sequence[under.Condition],
) -> ExamplePictures:
  """Images and x_adv with the tokens whose experts changed.

  Of the least radius at which any image fell: the first that fell. If all
  stand, the first images at the largest radius. An attack is a function of the
  seed and the example's number, so that it finds again what the study judged.

  Args:
    job: what is judged.
    attack: as the study attacked, not yet jitted.
    columns: of `conditions.measured`.
    radii: of the attack.
    shown: the conditions, of which the first is the clean image.
  """
  conditions = dict(zip(radii, shown[1:], strict=True))
  clean = under.of(columns, shown[0])
  eps, here = max(radii), np.arange(len(clean['index']))
  for radius in sorted(radii):
    fell = under.right(clean)
    fell &= ~under.right(under.of(columns, conditions[radius]))
    if fell.any():
      eps, here = radius, np.flatnonzero(fell)
      break
  here = here[:_MOST]
  after, numbers = under.of(columns, conditions[eps]), clean['index'][here]
  images, x_adv = _attacked(job, attack, numbers, eps)
  names = job.source.class_names
  return ExamplePictures(
    'examples',
    'Images, x_adv and the tokens that changed experts',
    images,
    x_adv,
    class_texts(clean['prediction_after'][here], names),
    class_texts(after['prediction_after'][here], names),
    numbers.tolist(),
    conditions[eps].name,
    token_experts(job.classifier, images, x_adv),
  )


def _attacked(
  job: Job, attack: Attack, numbers: Int[np.ndarray, 'images'], eps: float
) -> tuple[np.ndarray, np.ndarray]:
  """Some examples with pixels in [0, 1], and their x_adv, on each process."""
  mesh = job.classifier.mesh
  shards = batch_shards(mesh)
  size = -(-len(numbers) // shards) * shards
  indices = np.pad(numbers, (0, size - len(numbers)), constant_values=-1)
  rows = BatchRows(batch_sharding(mesh), size)
  with contextlib.closing(Rows(job.source, job.config.data)) as read:
    found = read(indices[rows.mine])
  batch = {name: rows.put(found[name]) for name in ('image', 'label', 'mask')}
  batch['index'] = rows.spread(indices)

  def both(params, batch):
    images = as_floats(batch['image'])
    return images, attack(params, images, batch, jnp.float32(eps))

  found = fetch(jax.jit(both)(job.classifier.params, batch))
  images, x_adv = (x[: len(numbers)] for x in found)
  return images, x_adv
