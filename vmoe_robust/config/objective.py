"""Refusing what a training step cannot minimise."""

import math

from vmoe_robust.config.fields import ConfigDict, default
from vmoe_robust.config.judging import NORMS
from vmoe_robust.config.limits import at_least, choose, positive, radius
from vmoe_robust.errors import UserError

OBJECTIVES = ('natural', 'pgd', 'trades', 'mart', 'fast', 'nfgsm', 'advmoe')
# Of one class an image, and of the step alone.
_ONE_CLASS = ('trades', 'mart', 'advmoe')
_ONE_STEP = ('fast', 'nfgsm')
INNER = ('evaluation', 'training')


def validate_objective(config: ConfigDict) -> None:
  """Refuses a `config.train.objective` that makes no sense.

  Raises:
    UserError: names the field, its value and the way out.
  """
  objective, field = config.train.objective, 'config.train.objective'
  choose(f'{field}.name', objective.name, OBJECTIVES)
  choose(f'{field}.norm', objective.norm, NORMS)
  choose(f'{field}.inner', objective.inner, INNER)
  positive(f'{field}.steps', objective.steps)
  for name in ('step_size', 'beta'):
    at_least(f'{field}.{name}', objective[name], 0)
  radius(f'{field}.eps', objective.eps, objective.norm)
  if not objective.eps:
    raise UserError(
      f"{field}.eps=0 attacks nothing; use name='natural', or a radius such as "
      '0.0313725 for 8/255'
    )
  usual = default().train.objective.eps
  if objective.norm != 'linf' and objective.eps == usual:
    raise UserError(
      f'{field}.norm={objective.norm!r}, and {field}.eps is left at a radius '
      'of linf; set it, to 0.5 in l2 for example'
    )
  for name in ('ramp', 'clean_share'):
    if not 0 <= objective[name] < 1:
      raise UserError(
        f'{field}.{name}={objective[name]} is a share; use 0 or more and less '
        'than 1'
      )
  size = config.train.batch_size
  if (
    objective.clean_share
    and not 0 < clean_images(size, objective.clean_share) < size
  ):
    raise UserError(
      f'{field}.clean_share={objective.clean_share} of config.train.batch_size='
      f'{size} leaves no image clean, or none to attack; use a number from '
      f'{1 / size:.6g} to {1 - 1 / size:.6g}, or 0'
    )
  _validate_fit(config)


def clean_images(images: int, share: float) -> int:
  """How many of the first images of a batch stay clean, of a share of them."""
  return math.floor(images * share + 1e-9)  # 41 times 1 / 41 is 1


def idle_fields(objective: ConfigDict) -> list[str]:
  """Fields of `config.train.objective` that its name does not read."""
  name = objective.name
  idle = {
    'beta': name not in _ONE_CLASS,
    'steps': name in (*_ONE_STEP, 'natural'),
    'clean_share': name not in ('pgd', *_ONE_STEP),
    'route_by_class': name != 'advmoe',
  }
  for other in ('norm', 'eps', 'step_size', 'ramp', 'inner'):
    idle[other] = name == 'natural'
  return [field for field, is_idle in idle.items() if is_idle]


def _validate_fit(config: ConfigDict):
  """Refuses objectives that the model or the data do not fit."""
  name, router = config.train.objective.name, config.model.router
  asked = f'config.train.objective.name={name!r}'
  if name in _ONE_CLASS and config.train.loss != 'softmax':
    raise UserError(
      f'{asked} needs one class an image, but config.train.loss='
      f"{config.train.loss!r}; use 'pgd', 'fast' or 'nfgsm'"
    )
  if name in ('mart', 'advmoe') and config.data.mixup:
    raise UserError(
      f'{asked} needs the class of each image, and config.data.mixup='
      f"{config.data.mixup} mixes them; set it to 0, or use 'trades' or 'pgd'"
    )
  if name == 'advmoe' and not config.model.experts:
    raise UserError(
      f"{asked} trains routers, and the model is dense; use 'trades'"
    )
  if name == 'advmoe' and router.name != 'top_k':
    raise UserError(
      f"{asked} needs a router that scores experts for each token, 'top_k', "
      f"not config.model.router.name={router.name!r}; use 'trades'"
    )
  if name == 'advmoe' and router.gate == 'sigmoid':
    raise UserError(
      f"{asked} compares the softmax of routers' scores, and "
      f"config.model.router.gate={router.gate!r}; use 'softmax', or 'trades'"
    )
  if name == 'advmoe' and router.frozen:
    raise UserError(
      f'{asked} trains routers, and config.model.router.frozen=True; use '
      "'trades'"
    )
