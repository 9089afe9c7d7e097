"""What makes a robust accuracy hard to believe.

After the checks of AutoAttack (Croce & Hein 2020; `checks.py` of their code),
and the test of `independence.py`.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from vmoe_robust.attacks import Ensemble, Stage
from vmoe_robust.attacks.ensembles import StageLoss
from vmoe_robust.report.verdicts import NO_CLASS
from vmoe_robust.robustness.independence import close, require_independent
from vmoe_robust.robustness.measure import without_own
from vmoe_robust.robustness.slots import Goal, objective
from vmoe_robust.robustness.target import Target, as_floats, predict

Images = Float[np.ndarray, 'batch height width channels']

# Accuracy that Square may gain before it is suspicious.
_SQUARE = 0.002
# Below it, radii in l2 and l1 are taken to be meant in linf.
_LEAST = 0.1
# FAB follows differences of logits; these losses are the largest of them.
_SINGLE: dict[StageLoss, StageLoss] = {
  'rivals': 'margin',
  'target_rival': 'targeted_margin',
}


class Checks:
  """Looks at a batch of clean images; its programs are compiled once."""

  def __init__(self, target: Target, ensemble: Ensemble):
    """Compiles nothing yet."""
    self._target, self._ensemble = target, ensemble

    def logits(forward, params, x, mask, key):
      subject = dataclasses.replace(target, params=params)
      return predict(subject, forward, x, mask, key)[0]

    whole = NamedSharding(target.mesh, PartitionSpec())
    self._logits, self._attacked = (
      jax.jit(partial(logits, forward), out_shardings=whole)
      for forward in (target.judge, target.attacked)
    )
    self._whole = jax.jit(lambda x: x, out_shardings=whole)

  def slopes(self, params: PyTree, batch: dict[str, Array]) -> bytes:
    """By which the function that is attacked is known again.

    Its logits, and the largest entries of gradients that attacks follow.
    """
    stages = {
      _SINGLE.get(stage.loss, stage.loss): stage
      for stage in self._ensemble.stages
      if stage.needs_gradient
    }
    found = [
      self._steepness(dataclasses.replace(stage, loss=loss))(params, batch)
      for loss, stage in stages.items()
    ]
    images = as_floats(batch['image'])
    key = jax.random.key(0)
    found.append(self._attacked(params, images, batch['mask'], key))
    return b''.join(np.asarray(one).tobytes() for one in found)

  def __call__(self, params: PyTree, batch: dict[str, Array]) -> list[str]:
    """What a batch shows.

    Args:
      params: the weights.
      batch: 'image', 'label' and 'mask'.

    Raises:
      UserError: images change each other's predictions.
    """
    target, out = self._target, []
    if target.together > 1:
      out.append(
        f'{target.together} images at a time share capacity and change each '
        "other's predictions: these numbers are of groups, not of images, and "
        'the last group, if it is smaller, has more room'
      )
    if not target.is_known:
      images, there = map(
        np.asarray, self._whole((as_floats(batch['image']), batch['mask']))
      )
      out += self._foreign(params, images, there)
    return out

  def _foreign(self, params, images, there) -> list[str]:
    """What is known of our own models by how they are built."""
    out = []
    key, other = jax.random.key(0), jax.random.key(1)
    ask = lambda x, key=key: np.asarray(
      self._logits(params, x, np.ones(len(x), bool), key)
    )
    logits = ask(images)
    again = ask(images, other) if self._target.random else logits
    # What is drawn may depend on an image's place in the batch.
    draws = not np.array_equal(logits, again, equal_nan=True)
    require_independent(ask, images, logits, in_place=draws)
    if not close(logits, again).all():
      out.append(
        'outputs are random: they are judged by their mean over draws; attack '
        'with autoattack_rand, whose gradients are means too'
      )
    finite = there & np.isfinite(logits).all(-1)
    sums = np.abs(logits[finite].sum(-1) - 1) < 0.02  # also in bfloat16
    if finite.any() and sums.all() and (logits[finite] >= 0).all():
      out.append(
        'outputs look like probabilities: give logits, or gradients vanish'
      )
    return out

  def _steepness(self, stage: Stage):
    """The largest entry of the gradient of a loss, of each image."""

    def steepness(params, batch):
      target = dataclasses.replace(self._target, params=params)
      key, label, mask = jax.random.key(0), batch['label'], batch['mask']
      clean, context = as_floats(batch['image']), ()
      if target.context is not None:
        context = target.context(params, clean, mask)

      def total(x):
        logits, more = predict(target, target.attacked, x, mask, key)
        rival = without_own(logits, label).argmax(-1)
        return objective(stage)(logits, more, Goal(label, rival, context)).sum()

      slope = jax.grad(total)(clean)
      # As attacks do, which have no use for what is not finite.
      return jnp.abs(jnp.where(jnp.isfinite(slope), slope, 0)).max((1, 2, 3))

    whole = NamedSharding(self._target.mesh, PartitionSpec())
    return jax.jit(steepness, out_shardings=whole)


def before(predictions: Int[np.ndarray, 'examples']) -> list[str]:
  """What the predictions of clean images show, of those that count."""
  count = int((predictions == NO_CLASS).sum())
  if not count:
    return []
  return [
    f'{count} of {len(predictions)} images have outputs that are not finite: '
    'they count as misclassified; give classes that are not used a low logit '
    'such as -1e9, not -inf'
  ]


def of_radii(norm: str, radii: Sequence[float]) -> list[str]:
  """Radii that are usual in another norm, and next to nothing in this one."""
  largest = max(radii, default=0.0)
  if norm == 'linf' or not 0 < largest < _LEAST:
    return []
  return [
    f'radii up to {largest:.4g} are those of linf; in {norm} images hardly '
    'change: 0.5 is usual in l2, 12 in l1'
  ]


def after(
  robust_after: dict[str, float],
  not_finite: int,
  easier: int,
  blind: Mapping[str, int],
) -> list[str]:
  """What the attacks showed.

  Args:
    robust_after: accuracy after each attack, in their order.
    not_finite: attacked images with logits that are not finite.
    easier: images that are right under the attack and wrong without it.
    blind: of the images that stand, those on which an attack had no gradient to
      follow in most of its steps.
  """
  out, names = [], list(robust_after)
  if not_finite:
    out.append(
      f'{not_finite} attacked images have logits that are not finite: they '
      'count as misclassified'
    )
  if easier:
    out.append(
      f'{easier} images are right under the attack and wrong without it, so '
      'that this is no worst case: a target may lead through the right class'
    )
  if any(blind.values()):
    told = ', '.join(f'{name} on {n}' for name, n in blind.items() if n)
    out.append(
      'attacks had no gradient to follow in most of their steps on images that '
      f'stand ({told}): the accuracy may be too high'
    )
  for before, name in itertools.pairwise(names):
    gain = robust_after[before] - robust_after[name]
    if name.split('#')[0] == 'square' and gain > _SQUARE:
      out.append(
        f'{name}, which needs no gradient, took {100 * gain:.1f} percentage '
        'points more: gradients may mislead; attack with more iterations and '
        'restarts, or adaptively'
      )
  return out
