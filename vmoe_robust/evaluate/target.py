"""One of our models as what is attacked, by `config.attack`."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from vmoe_robust import attacks
from vmoe_robust.attacks.paper import Paper
from vmoe_robust.attacks.pgd import Pgd
from vmoe_robust.config import UserError
from vmoe_robust.evaluate import routing
from vmoe_robust.models import Aux, Model
from vmoe_robust.robustness.slots import Goal
from vmoe_robust.robustness.target import Compare, Target


def of_model(
  model: Model,
  params: PyTree,
  *,
  experts: str = 'dropless',
  attacked: Model | None = None,
  compares: bool = False,
) -> Target:
  """A model as what is attacked.

  Args:
    model: the model.
    params: its weights.
    experts: 'dropless', or 'capacity', where images share slots.
    attacked: the model whose gradients are followed, if it is another one.
    compares: whether results say how the routing changed.
  """

  def forward(model, params, images, mask, key):
    del key
    return model.apply(params, images, experts=experts, mask=mask)

  settings = model.module.config
  shared = shares_capacity(settings, experts)
  return Target(
    judge=partial(forward, model),
    attacked=partial(forward, attacked or model),
    params=params,
    mesh=model.module.mesh,
    classes=settings.num_classes,
    together=settings.router.group_images if shared else 1,
    is_known=True,
    compare=compare(settings) if compares and settings.experts else None,
  )


def shares_capacity(model: ConfigDict, experts: str) -> bool:
  """Whether images share the experts' slots, and so change each other.

  Args:
    model: `config.model`.
    experts: 'dropless' or 'capacity'.
  """
  return (
    experts == 'capacity' and model.experts > 0 and model.router.name != 'soft'
  )


def of_config(model: Model, params: PyTree, config: ConfigDict) -> Target:
  """What `config.attack` attacks."""
  attacked = None
  if config.attack.compute_dtype:
    attacked = model.changed({'compute_dtype': config.attack.compute_dtype})
  return of_model(
    model,
    params,
    experts=config.attack.experts,
    attacked=attacked,
    compares=True,
  )


def ensemble(config: ConfigDict) -> attacks.Ensemble:
  """The stages that `config.attack` names.

  Raises:
    UserError: the model has several labels an image, and the attack needs one.
  """
  settings, kind = config.attack, config.train.loss
  name, classes = settings.name, config.model.num_classes
  if name == 'paper':
    stage = _whole(name, Paper(settings.steps), config)
    aim = settings.target or 'runner_up'
    return attacks.Ensemble((stage,), aim=aim, is_bounded=False)
  if name == 'pgd':
    pgd = Pgd(
      norm=settings.norm,
      iterations=settings.steps,
      step_size=settings.step_size,
      random_start=settings.random_start,
      momentum=settings.momentum,
    )
    stage = _whole(name, pgd, config)
    return attacks.Ensemble((stage,), aim=settings.target or 'runner_up')
  if kind != 'softmax':
    raise UserError(
      f'config.attack.name={name!r} needs one label an image, but '
      f"config.train.loss={kind!r}; use config.attack.name='pgd'"
    )
  parts = tuple(name.split('+'))
  parts = parts[0] if len(parts) == 1 else parts
  return attacks.ensemble(parts, settings.norm, classes, budget(settings))


def budget(settings: ConfigDict) -> attacks.Budget:
  """How long the attacks of `config.attack` are."""
  return attacks.Budget(
    settings.steps, settings.queries, restarts=settings.restarts
  )


def _whole(name: str, attack: attacks.Attack, config: ConfigDict):
  """An attack on every image to the end."""
  settings = config.attack
  return attacks.Stage(
    name,
    attack,
    loss(
      settings,
      config.train.loss,
      shares_capacity(config.model, settings.experts),
    ),
    restarts=max(settings.restarts, 1),
    stays=True,
    until='target' if settings.target else 'wrong',
  )


def loss(
  settings: ConfigDict, kind: str, shared: bool = False
) -> Callable[[Array, Aux, Goal], Float[Array, 'batch']]:
  """What `pgd` and `paper` raise, by `config.attack`.

  class_weight * the loss of the class, or less that of the target, plus
  auxiliary_weight * the routers' losses. Without these, and without a target,
  it is the logarithm of the softmax cross-entropy, which rises where it does.

  Args:
    settings: `config.attack`.
    kind: 'softmax' or 'sigmoid', by which the model was trained.
    shared: images share experts' slots, see `shares_capacity`.
  """
  # Raising the loss of an image is raising its logarithm, which does not round
  # to 0. Where images change each other, it would weigh them in another way.
  alone = settings.class_weight > 0 and not settings.auxiliary_weight
  alone = alone and settings.name != 'paper' and not shared
  logarithm = kind == 'softmax' and alone and not settings.target
  softmax = attacks.LOSSES[
    'log_cross_entropy' if logarithm else 'cross_entropy'
  ]

  def of_class(logits, label):
    if kind == 'softmax':
      return softmax(logits, label, label)
    if label.ndim == 1:
      label = jnp.arange(logits.shape[1]) == label[:, None]
    return optax.sigmoid_binary_cross_entropy(logits, label).sum(-1)

  def value(logits, aux, goal):
    if settings.target:
      per_image = -settings.class_weight * of_class(logits, goal.target)
    else:
      per_image = settings.class_weight * of_class(logits, goal.label)
    if settings.auxiliary_weight:
      routers = auxiliary(aux, len(logits))
      per_image += settings.auxiliary_weight * routers
    return per_image

  return value


def auxiliary(aux: Aux, batch: int) -> Float[Array, 'batch']:
  """The routers' losses of each image, which are those of its group."""
  total = jnp.zeros(batch)
  for record in aux.records.values():
    each = record.routing.auxiliary_loss
    total += jnp.repeat(each, record.images)[:batch]
  return total


def compare(model: ConfigDict) -> Compare:
  """How the routing changed, of each image and sparse block.

  'routing_change/BLOCK' is by what tokens select, 'routing_change_kept' by what
  capacity left of it, and 'routing_change_official' the same as the paper's
  code has it, where a token without an expert before and after has changed.
  """

  def columns(before: Aux, after: Aux, mask):
    out, batch = {}, len(mask)
    for block in before.records:
      found = {}
      for when, aux in (('before', before), ('after', after)):
        wish, kept = routing.selected(aux.records[block], model, batch)
        found[when] = wish, kept
        out[f'dropped_{when}/{block}'] = routing.dropped(wish, kept)
        # One row an image: to be summed over the images that count.
        out[f'load_{when}/{block}'] = kept.sum(1).astype(jnp.int32)
      (wish, kept), (wish_adv, kept_adv) = found['before'], found['after']
      official = routing.change(kept, kept_adv, nothing=0.0)
      out[f'routing_change/{block}'] = routing.change(wish, wish_adv)
      out[f'routing_change_kept/{block}'] = routing.change(kept, kept_adv)
      out[f'routing_change_official/{block}'] = official
    return out

  return columns
