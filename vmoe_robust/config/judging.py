"""Refusing attacks that make no sense."""

import itertools
import math

from vmoe_robust.config.fields import ConfigDict, default, moe_blocks
from vmoe_robust.config.limits import (
  MOST_COUNT,
  at_least,
  between,
  choose,
  numbers,
  positive,
  radius,
)
from vmoe_robust.errors import UserError

_QUERIES, _RADII = default().attack.queries, tuple(default().attack.eps)
EXPERT_MODES = ('capacity', 'dropless')
DTYPES = ('float32', 'bfloat16')
# Attacks on every image to the end, with all the settings of `config.attack`;
# the others are parts of ensembles, which images leave as they fall.
WHOLE_ATTACKS = ('pgd', 'paper')
ATTACKS = WHOLE_ATTACKS + (
  *('autoattack', 'autoattack_standard', 'autoattack_plus', 'autoattack_rand'),
  *('fgsm', 'mim', 'apgd_ce', 'apgd_dlr', 'apgd_t', 'fab', 'fab_t', 'square'),
)
# Those with Square among their parts, which alone asks queries.
QUERYING = ('autoattack', 'autoattack_standard', 'autoattack_plus', 'square')
_VERSIONS = tuple(name for name in ATTACKS if name.startswith('autoattack'))
NORMS = ('linf', 'l2', 'l1')
TARGETS = ('', 'runner_up', 'least_likely', 'random')
# Weights of the losses that routers have in evaluation, where nothing is drawn
# and so no loss of the load defined; other routers have none.
_ROUTERS_LOSSES = dict(
  top_k=('gshard_weight', 'importance_weight', 'z_weight'),
  expert_choice=('z_weight',),
)


def validate_attack(attack: ConfigDict) -> None:
  """Refuses a `config.attack` that makes no sense.

  Raises:
    UserError: names the field, its value and the way out.
  """
  parts = attack.name.split('+')
  for part in parts:
    choose('config.attack.name', part, ATTACKS)
  if len(parts) > 1 and {'paper', *_VERSIONS} & {*parts}:
    raise UserError(
      f'config.attack.name={attack.name!r} has a part that stands alone; join '
      "single attacks, as in 'apgd_ce+square'"
    )
  choose('config.attack.norm', attack.norm, NORMS)
  choose('config.attack.target', attack.target, TARGETS)
  choose('config.attack.experts', attack.experts, EXPERT_MODES)
  positive('config.attack.steps', attack.steps, MOST_COUNT)
  between('config.attack.restarts', attack.restarts, 0, MOST_COUNT)
  for name in (
    'step_size',
    'momentum',
    'class_weight',
    'auxiliary_weight',
    'batch_size',
    'every_steps',
  ):
    at_least(f'config.attack.{name}', attack[name], 0)
  if not attack.class_weight and not attack.auxiliary_weight:
    raise UserError(
      'config.attack.class_weight=0 leaves nothing to attack, for '
      'config.attack.auxiliary_weight is 0 too; use class_weight=1.0'
    )
  if isinstance(attack.eps, str) or not attack.eps:
    raise UserError(
      f'config.attack.eps={attack.eps!r} is no sweep; use a tuple such as '
      '(0.01, 0.02)'
    )
  if attack.norm != 'linf' and tuple(attack.eps) == _RADII:
    raise UserError(
      f'config.attack.norm={attack.norm!r}, and config.attack.eps is left at '
      'radii of linf; set it, to (0.5,) in l2 or (12.0,) in l1 for example'
    )
  numbers('config.attack.eps', attack.eps)
  for eps in attack.eps:
    radius('config.attack.eps', eps, attack.norm)
  # Names of radii have five digits.
  ascending = itertools.pairwise(sorted(attack.eps))
  if any(math.isclose(*pair, rel_tol=1e-4) for pair in ascending):
    raise UserError(
      f'config.attack.eps={attack.eps} has a radius twice; leave one out'
    )
  if attack.restarts > 1 and not attack.random_start:
    raise UserError(
      f'config.attack.restarts={attack.restarts} would all be the same with '
      'config.attack.random_start=False; use restarts=1 or random_start=True'
    )
  if attack.compute_dtype:
    choose('config.attack.compute_dtype', attack.compute_dtype, DTYPES)
  positive('config.attack.queries', attack.queries, MOST_COUNT)
  if attack.name == 'paper':
    _fixed(attack, dict(norm='linf', step_size=0.0, restarts=0, momentum=0.0))
  if attack.name not in WHOLE_ATTACKS:
    _fixed(attack, dict(step_size=0.0, momentum=0.0))
    _fixed(attack, dict(random_start=True, target='', class_weight=1.0))
    _fixed(attack, dict(auxiliary_weight=0.0))


def require_queries(attack: ConfigDict) -> None:
  """Refuses queries for an attack that asks none.

  Raises:
    UserError: `config.attack.queries` would have no effect.
  """
  if attack.queries != _QUERIES and not {*attack.name.split('+')} & {*QUERYING}:
    raise UserError(
      f'config.attack.queries={attack.queries} has no effect with '
      f'config.attack.name={attack.name!r}, which has no Square; leave it out, '
      "or add Square, as in 'apgd_ce+square'"
    )


def require_routers_loss(model: ConfigDict, field: str) -> None:
  """Refuses a model whose routers have no loss that an attack could raise.

  Args:
    model: `config.model`.
    field: which asks for the attack, with its value.

  Raises:
    UserError: it has none; names the fields.
  """
  router = model.router
  what = f"{field} attacks the routers' auxiliary loss, and the model "
  if not moe_blocks(model):
    raise UserError(f'{what}is dense; leave it out, or use a V-MoE')
  weights = _ROUTERS_LOSSES.get(router.name)
  if weights is None:
    raise UserError(
      f'{what}has none: config.model.router.name={router.name!r}; leave it '
      "out, or use a model of 'top_k'"
    )
  if not any(router[name] for name in weights):
    names = ', '.join(f'config.model.router.{name}' for name in weights)
    raise UserError(
      f'{what}has none: {names} are 0; use a model that was trained with one'
    )


def _fixed(attack: ConfigDict, fields: dict):
  for name, value in fields.items():
    if attack[name] != value:
      raise UserError(
        f'config.attack.{name}={attack[name]!r} does not fit '
        f'config.attack.name={attack.name!r}, which has {value!r}; use that, '
        "or config.attack.name='pgd'"
      )
