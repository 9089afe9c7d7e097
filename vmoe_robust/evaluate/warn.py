"""What makes a robust accuracy hard to believe.

After the checks of AutoAttack (Croce & Hein 2020; `checks.py` of their code).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from vmoe_robust.attacks import LOSSES, Images
from vmoe_robust.config import UserError
from vmoe_robust.evaluate.victim import Victim, predict

# Relative to the largest logit.
_SAME = 1e-4
# Accuracy that Square may gain before it is suspicious.
_SQUARE = 0.002


class Checks:
  """Looks at a batch of clean images; compiled once."""

  def __init__(self, victim: Victim):
    """Compiles nothing yet."""
    self._random = victim.random

    def logits(params, x, mask, key, forward=victim.forward):
      subject = dataclasses.replace(victim, params=params)
      return predict(subject, forward, x, mask, key, 1)

    def steepness(params, x, label, mask, key):
      def total(x):
        found = logits(params, x, mask, key, victim.attacked)
        return LOSSES['margin'](found, label, label).sum()

      slope = jax.grad(total)(x)
      return jnp.abs(jnp.where(jnp.isnan(slope), 0, slope)).max((1, 2, 3))

    whole = NamedSharding(victim.mesh, PartitionSpec())
    self._logits = jax.jit(logits, out_shardings=whole)
    self._steepness = jax.jit(steepness, out_shardings=whole)
    self._whole = jax.jit(lambda x: x, out_shardings=whole)

  def __call__(
    self,
    params: PyTree,
    images: Images,
    label: Int[Array, 'batch'],
    mask: Bool[Array, 'batch'],
  ) -> list[str]:
    """What a batch shows.

    Raises:
      UserError: images change each other's predictions.
    """
    out, key = [], jax.random.key(0)
    there = np.asarray(self._whole(mask))
    ask = lambda x, key: np.asarray(self._logits(params, x, mask, key))
    logits = ask(images, key)
    if self._random:
      if not _close(logits, ask(images, jax.random.key(1))):
        out.append(
          'outputs are random: they are judged by their mean over draws; '
          'attack with autoattack_rand, whose gradients are means too'
        )
    else:
      # Every second image gets other neighbours; its logits must stay.
      stay = np.arange(len(images)) % 2 == 0
      others = jnp.where(stay[:, None, None, None], images, 1 - images)
      keep = stay & there
      if not _close(logits[keep], ask(others, key)[keep]):
        raise UserError(
          'images change the predictions of others in their batch (capacity '
          'shared between images, batch normalisation in training mode), so '
          'that no image has a robustness of its own; evaluate with experts '
          'dropless, or in inference mode'
        )
    if (logits >= 0).all() and (np.abs(logits.sum(-1) - 1) < 1e-5).all():
      out.append(
        'outputs look like probabilities: give logits, or gradients vanish'
      )
    steep = np.asarray(self._steepness(params, images, label, mask, key))
    lost = int(((steep < 1e-12) & there).sum())
    if lost:
      out.append(
        f'{lost} of the first {there.sum()} images have no gradient: '
        'attacks that follow it mislead'
      )
    return out


def after(robust_after: dict[str, float], nan: int) -> list[str]:
  """What the attacks showed.

  Args:
    robust_after: accuracy after each attack, in their order.
    nan: images whose logits were no numbers.
  """
  out, names = [], list(robust_after)
  if nan:
    out.append(f'{nan} images have logits that are no numbers; they are broken')
  if 'square' in names and names.index('square'):
    place = names.index('square')
    gain = robust_after[names[place - 1]] - robust_after['square']
    if gain > _SQUARE:
      out.append(
        f'square, which needs no gradient, took {100 * gain:.1f} percentage '
        'points more: gradients may mislead; attack with more iterations and '
        'restarts, or adaptively'
      )
  return out


def _close(a, b) -> bool:
  a, b = np.asarray(a), np.asarray(b)
  return np.allclose(a, b, rtol=0, atol=_SAME * max(np.abs(a).max(), 1))
