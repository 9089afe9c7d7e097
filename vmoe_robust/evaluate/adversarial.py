"""x_adv of whole batches in one program, for studies that look at them."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from vmoe_robust import attacks
from vmoe_robust.attacks import Images
from vmoe_robust.config import UserError
from vmoe_robust.config.judging import WHOLE_ATTACKS
from vmoe_robust.evaluate import target
from vmoe_robust.models import Aux, Model
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.measure import classes
from vmoe_robust.robustness.slots import Goal

Batch = dict[str, Array]
# (params, images, mask, context) to logits and what else the model returned.
Forward = Callable[[PyTree, Images, Array, PyTree], tuple[Array, Aux]]
# (logits, what else the model returned, goal) to what the attack raises.
Value = Callable[[Array, Aux, Goal], Float[Array, 'batch']]
Attack = Callable[..., Images]


def plain(model: Model) -> Forward:
  """The model as it is: dropless, so that each image is predicted alone."""

  def forward(params, images, mask, context):
    del context
    return model.apply(params, images, experts='dropless', mask=mask)

  return forward


def without_classes(forward: Forward) -> Forward:
  """The same with logits that say nothing.

  Of the points that it passes an attack keeps one that breaks the image. Where
  no point breaks it more than another, it keeps the one of the highest value.
  """

  def silent(params, images, mask, context):
    logits, aux = forward(params, images, mask, context)
    return jnp.zeros_like(logits), aux

  return silent


def attack(
  forward: Forward,
  config: ConfigDict,
  value: Value | None = None,
  luck: bool = False,
) -> Attack:
  """`(params, images, batch, eps, context=(), first=0) -> x_adv`, not jitted.

  It draws as `config.mode='attack'` does, and so finds the same x_adv for the
  same settings.

  Args:
    forward: what is attacked.
    config: `config.attack` says how, `config.seed` what is drawn.
    value: what is raised; None: the loss that `config.attack` says. `context`
      reaches it as `goal.context`; `first` is the number of the first start.
    luck: whether as many random points take the place of the attack's.

  Raises:
    UserError: `config.attack` names an attack that images leave as they fall.
  """
  settings = config.attack
  if settings.name not in WHOLE_ATTACKS or settings.target:
    field = 'target' if settings.target else 'name'
    raise UserError(
      f'config.attack.{field}={settings[field]!r} does not fit a study, which '
      "attacks every image to the end; use config.attack.name='pgd' without a "
      'target'
    )
  if settings.name == 'paper' and value is not None:
    raise UserError(
      "config.attack.name='paper' begins at the image and keeps its last "
      f'point; the study {config.study.name!r} attacks with a loss of its own, '
      'which takes a random start and the best point; use '
      "config.attack.name='pgd'"
    )
  run = attacks.build(settings)
  if luck:
    points = attacks.Luck(settings.norm, settings.steps)
    restarts = max(settings.restarts, 1)
    run = partial(attacks.complete, points, restarts=restarts)
  value = value or target.loss(settings, config.train.loss)

  def attacked(params, images, batch, eps, context=(), first=0) -> Images:
    label, mask = batch['label'], batch['mask']
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = fold(jax.random.key(config.seed), batch['index'])
    # Of several labels none is a target.
    one = label if label.ndim == 1 else jnp.zeros(len(label), jnp.int32)
    goal = Goal(label, one, context)

    def loss(x):
      logits, aux = forward(params, x, mask, context)
      wrong = ~is_right(classes(logits), label)
      return value(logits, aux, goal).astype(x.dtype), wrong

    return run(loss, images, keys, jnp.asarray(eps, images.dtype), first=first)

  return attacked
