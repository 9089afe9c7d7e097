"""What a training step minimises, by `config.train.objective.name`.

An objective has two pure functions: `attack` finds x_adv of a microbatch with
frozen weights, so that nothing is kept for their gradient; `loss` is what is
differentiated. Of AdvMoE a third one is the loss of the routers, which take a
step of their own. Sources stand beside each one; docs/training.md compares
them.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from vmoe_robust.attacks import LOSSES, norms
from vmoe_robust.attacks.interface import Images
from vmoe_robust.models import Aux, losses
from vmoe_robust.models.divergence import (
  divergence,
  route_divergence,
  route_scores,
)

Logits = Float[Array, 'batch classes']
Values = Float[Array, 'batch']
# Images to logits and what the routers decided.
Answers = Callable[[Images], tuple[Logits, Aux]]

# Standard deviation of the start of TRADES, MART and AdvMoE, in pixels of
# [0, 1], by their authors' code.
_START = 0.001
# Of the steps of `fast` and `nfgsm`, and of the latter's noise, in radii.
_FAST_STEP, _NFGSM_STEP, _NFGSM_NOISE = 1.25, 1.0, 2.0


@flax.struct.dataclass
class Given:
  """A microbatch as an objective sees it."""

  images: Images  # in [0, 1], augmented and mixed
  wanted: Float[Array, 'batch classes']  # smoothed and mixed
  mask: Bool[Array, 'batch']
  index: Int[Array, 'batch']  # place in the whole batch
  keys: Key[Array, 'batch']  # for what an attack draws
  eps: Float[Array, '']  # radius of this step
  kind: str = flax.struct.field(pytree_node=False)  # 'softmax' or 'sigmoid'
  # Whether the loss is the softmax's of one class an image, however smoothed.
  one_class: bool = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Found:
  """Of each image what is minimised, and what the model answered."""

  loss: Values
  clean: Logits | None  # of the images as they are, where that was asked
  adversarial: Logits | None  # of x_adv
  aux: Aux  # of x_adv, or of the images without an attack
  router_loss: Float[Array, '']  # the auxiliary loss, mean over the passes


Attack = Callable[[Answers, Given, ConfigDict], Images]
Loss = Callable[[Answers, Given, Images, ConfigDict], Found]


@dataclasses.dataclass(frozen=True)
class Objective:
  """See the module.

  Args:
    loss: of the weights, or of all but the routers if they have their own.
    passes: forward passes of a step for a number of steps of the attack; a
      gradient by the images counts as two, one by the weights as three.
    attack: finds x_adv; None: there is none.
    router_loss: of the routers alone, in a step of their own.
  """

  loss: Loss
  passes: Callable[[int], int]
  attack: Attack | None = None
  router_loss: Loss | None = None


def eps_at(
  settings: ConfigDict, step: Int[Array, ''], steps: int
) -> Float[Array, '']:
  """The radius of a step: it rises linearly over the first `ramp` of all."""
  eps = jnp.float32(settings.eps)
  if not settings.ramp:
    return eps
  share = (step + 1) / (settings.ramp * steps)
  return eps * jnp.minimum(share, 1).astype(jnp.float32)


def forward_passes(settings: ConfigDict) -> int:
  """Forward passes of a training step, an image, as FLOPs are counted."""
  return OBJECTIVES[settings.name].passes(settings.steps)


# --- attacks ------------------------------------------------------------------


def _ascended(
  value: Callable[[Images], Values],
  given: Given,
  x: Images,
  settings: ConfigDict,
) -> Images:
  """The last point of projected gradient ascent from `x`.

  The last, not the worst one that was seen (arXiv:1706.06083): so a step costs
  one gradient, and nothing is looked at besides.
  """
  size = _step_size(given, settings, 2.5 / settings.steps)

  def move(_, x):
    x += size * _steepest(value, x, settings.norm)
    return norms.project(x, given.images, given.eps, settings.norm)

  return jax.lax.fori_loop(0, settings.steps, move, x)


def _step_size(
  given: Given, settings: ConfigDict, radii: float
) -> Float[Array, '']:
  """The length of a step, by default in radii; it rises as the radius does."""
  usual = settings.step_size / settings.eps or radii
  return usual * given.eps


def _steepest(value, x: Images, norm: str) -> Images:
  """The step of length 1 along which the value of each image rises."""
  slope = jax.grad(lambda x: value(x).sum())(x)
  slope = jnp.where(jnp.isfinite(slope), slope, 0)
  if norm == 'l1':  # the few pixels of a step must be free to move
    slope = norms.inward(slope, x)
  return norms.direction(slope, norm)


def _class_loss(answers: Answers, given: Given) -> Callable[[Images], Values]:
  """What an attack raises: the loss of the class.

  Of one class an image it is the logarithm of cross-entropy, which rises where
  that does, and whose gradient does not round to zero where a model is sure.
  """
  label = given.wanted.argmax(-1)

  def value(x):
    logits, _ = answers(x)
    if given.one_class:
      return LOSSES['log_cross_entropy'](logits, label, label)
    return losses.classification(logits, given.wanted, given.kind)

  return value


def _near(given: Given) -> Images:
  """A start next to the image, where a divergence from it has a gradient."""
  noise = norms.noise(given.images, given.keys, 'l2')  # normal
  return jnp.clip(given.images + _START * noise, 0, 1)


def _uniform(given: Given, settings: ConfigDict, radii: float = 1.0) -> Images:
  x = norms.random_point(
    given.images, given.keys, radii * given.eps, settings.norm
  )
  return jnp.clip(x, 0, 1)


def _pgd(answers, given, settings):
  value = _class_loss(answers, given)
  return _ascended(value, given, _uniform(given, settings), settings)


def _fast(answers, given, settings):
  """One step from a random point (arXiv:2001.03994)."""
  value, x = _class_loss(answers, given), _uniform(given, settings)
  size = _step_size(given, settings, _FAST_STEP)
  x += size * _steepest(value, x, settings.norm)
  return norms.project(x, given.images, given.eps, settings.norm)


def _nfgsm(answers, given, settings):
  """One step from stronger noise, without a projection (arXiv:2202.01181)."""
  value = _class_loss(answers, given)
  x = _uniform(given, settings, _NFGSM_NOISE)
  size = _step_size(given, settings, _NFGSM_STEP)
  return jnp.clip(x + size * _steepest(value, x, settings.norm), 0, 1)


def _trades(answers, given, settings):
  """Raises the divergence from the answer to the image (arXiv:1901.08573)."""
  clean = jax.lax.stop_gradient(answers(given.images)[0])
  value = lambda x: divergence(clean, answers(x)[0])
  return _ascended(value, given, _near(given), settings)


def _mart(answers, given, settings):
  value = _class_loss(answers, given)
  return _ascended(value, given, _near(given), settings)


def _advmoe(answers, given, settings):
  """Raises the divergence of classes and of routes (arXiv:2308.10110)."""
  clean, aux = jax.lax.stop_gradient(answers(given.images))
  before = route_scores(aux.records, len(clean))

  def value(x):
    logits, aux = answers(x)
    after = route_scores(aux.records, len(x))
    return divergence(clean, logits) + route_divergence(before, after)

  return _ascended(value, given, _near(given), settings)


# --- losses -------------------------------------------------------------------


def _natural(answers, given, x_adv, settings):
  logits, aux = answers(given.images)
  loss = losses.classification(logits, given.wanted, given.kind)
  return Found(loss, logits, None, aux, aux.loss)


def _adversarial(answers, given, x_adv, settings):
  """The loss of the class at x_adv."""
  logits, aux = answers(x_adv)
  loss = losses.classification(logits, given.wanted, given.kind)
  return Found(loss, None, logits, aux, aux.loss)


def _both(answers, given, x_adv):
  """What the model answers to the images and to x_adv."""
  (clean, aux), (adversarial, aux_adv) = answers(given.images), answers(x_adv)
  return clean, adversarial, aux, aux_adv, (aux.loss + aux_adv.loss) / 2


def _trades_loss(answers, given, x_adv, settings):
  clean, adversarial, _, aux, router = _both(answers, given, x_adv)
  loss = losses.classification(clean, given.wanted, given.kind)
  loss += settings.beta * divergence(clean, adversarial)
  return Found(loss, clean, adversarial, aux, router)


def _mart_loss(answers, given, x_adv, settings):
  """Boosted cross-entropy and weighted divergence (ICLR 2020, equation 7).

  The small constants are those of the authors' code.
  """
  clean, adversarial, _, aux, router = _both(answers, given, x_adv)
  label = jax.nn.one_hot(given.wanted.argmax(-1), clean.shape[-1])
  natural, attacked = jax.nn.softmax(clean), jax.nn.softmax(adversarial)
  rival = jnp.where(label > 0, -jnp.inf, attacked).max(-1)
  boosted = losses.classification(adversarial, given.wanted, given.kind)
  boosted -= jnp.log(1.0001 - rival + 1e-12)
  kept = natural * (jnp.log(natural + 1e-12) - jnp.log(attacked + 1e-12))
  weight = 1.0000001 - (natural * label).sum(-1)
  loss = boosted + settings.beta * weight * kept.sum(-1)
  return Found(loss, clean, adversarial, aux, router)


def _router_loss(answers, given, x_adv, settings):
  """AdvMoE's loss of the routers: routes stay as they are.

  With `route_by_class` the mean route of an image is taught its class modulo
  the number of experts too, as the released code does for routes of images.
  """
  clean, adversarial, aux, aux_adv, router = _both(answers, given, x_adv)
  before = route_scores(aux.records, len(clean))
  after = route_scores(aux_adv.records, len(clean))
  loss = settings.beta * route_divergence(before, after)
  if settings.route_by_class:
    for scores in before.values():
      mean = jax.nn.softmax(scores).mean(1)
      wanted = given.wanted.argmax(-1) % mean.shape[-1]
      own = (mean * jax.nn.one_hot(wanted, mean.shape[-1])).sum(-1)
      loss -= settings.beta * jnp.log(own + 1e-12)
  return Found(loss, clean, adversarial, aux_adv, router)


# By the names that `config.train.objective.name` may have.
OBJECTIVES = {
  'natural': Objective(_natural, lambda steps: 3),
  'pgd': Objective(_adversarial, lambda steps: 3 + 2 * steps, _pgd),
  'fast': Objective(_adversarial, lambda steps: 5, _fast),
  'nfgsm': Objective(_adversarial, lambda steps: 5, _nfgsm),
  'trades': Objective(_trades_loss, lambda steps: 7 + 2 * steps, _trades),
  'mart': Objective(_mart_loss, lambda steps: 6 + 2 * steps, _mart),
  'advmoe': Objective(
    _trades_loss,
    # The routers' step has no gradient by the other weights.
    lambda steps: 7 + 2 * steps + 5 + 2 * steps,
    _advmoe,
    _router_loss,
  ),
}
