"""What makes a robust accuracy hard to believe.

After the checks of AutoAttack (Croce & Hein 2020; `checks.py` of their code).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from vmoe_robust.attacks import LOSSES, Images
from vmoe_robust.config import UserError
from vmoe_robust.evaluate.victim import Victim, predict

# Relative to the largest logit.
_SAME = 1e-4
# Accuracy that Square may gain before it is suspicious.
_SQUARE = 0.002


def before(
  victim: Victim,
  images: Images,
  label: Int[Array, 'batch'],
  mask: Bool[Array, 'batch'],
) -> list[str]:
  """What a batch of clean images shows.

  Raises:
    UserError: images change each other's predictions.
  """
  out = []
  key = jax.random.key(0)
  forward = jax.jit(
    lambda params, x, key: predict(
      dataclasses.replace(victim, params=params),
      victim.forward,
      x,
      mask,
      key,
      1,
    )
  )
  logits = forward(victim.params, images, key)
  if victim.random:
    again = forward(victim.params, images, jax.random.key(1))
    if not _close(logits, again):
      out.append(
        'outputs are random: they are judged by their mean over draws; attack '
        'with autoattack_rand, whose gradients are means too'
      )
  else:
    _require_independence(forward, victim, images, mask, logits)
  if (logits.min() >= 0) & (jnp.abs(logits.sum(-1) - 1) < 1e-5).all():
    out.append(
      'outputs look like probabilities: give logits, or gradients vanish'
    )
  lost = _without_gradient(victim, images, label, mask, key)
  if lost:
    out.append(
      f'{lost} of the first {int(mask.sum())} images have no gradient: attacks '
      'that follow it mislead'
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


def _require_independence(forward, victim, images, mask, logits):
  """Gives every second image other neighbours; its logits must stay."""
  stay = np.arange(len(images)) % 2 == 0
  others = jnp.where(stay[:, None, None, None], images, 1 - images)
  again = forward(victim.params, others, jax.random.key(0))
  keep = stay & np.asarray(mask)
  if not _close(np.asarray(logits)[keep], np.asarray(again)[keep]):
    raise UserError(
      'images change the predictions of others in their batch (capacity shared '
      'between images, batch normalisation in training mode), so that no image '
      'has a robustness of its own; evaluate with experts dropless, or in '
      'inference mode'
    )


def _without_gradient(victim, images, label, mask, key) -> int:
  def size(params, x):
    def total(x):
      logits = predict(
        dataclasses.replace(victim, params=params),
        victim.attacked,
        x,
        mask,
        key,
        1,
      )
      return LOSSES['margin'](logits, label, label).sum()

    slope = jax.grad(total)(x)
    return jnp.abs(jnp.where(jnp.isnan(slope), 0, slope)).max((1, 2, 3))

  steep = jax.jit(size)(victim.params, images)
  return int(((steep < 1e-12) & mask).sum())


def _close(a, b) -> bool:
  a, b = np.asarray(a), np.asarray(b)
  return np.allclose(a, b, rtol=0, atol=_SAME * max(np.abs(a).max(), 1))
