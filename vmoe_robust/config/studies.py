"""What a study needs, and which values of `config.study` are refused."""

import math

from ml_collections import ConfigDict

from vmoe_robust.config.fields import default
from vmoe_robust.config.judging import ATTACKS, NORMS
from vmoe_robust.config.limits import (
  at_least,
  between,
  choose,
  numbers,
  positive,
  radius,
  several,
)
from vmoe_robust.config.study_fields import CORRUPTIONS
from vmoe_robust.errors import UserError

# Studies that attack, as `config.attack` says.
ATTACKING = (
  'batch_dependence',
  'forced_expert',
  'frozen_routing',
  'knobs',
  'lipschitz',
  'load',
  'losses',
  'margin',
  'norm_union',
  'pruning',
  'router_controls',
  'routing_attacks',
  'routing_change',
  'substitution',
  'transfer',
)
# Of those, the ones that attack the model as it is, by whatever loss
# `config.attack` says. Others change its routing, of which the routers' loss
# knows nothing, or raise something of their own.
_OF_ANY_LOSS = (
  'margin',
  'norm_union',
  'routing_change',
  'substitution',
  'transfer',
)
# Fields of `config.attack` that attacks of mode 'attack' alone have, and what
# they are where nobody sets them.
_OF_MODE_ATTACK = {
  name: default().attack[name]
  for name in (
    *('experts', 'compute_dtype', 'save_images', 'every_steps', 'at_end'),
    *('queries', 'batch_size'),
  )
}
# Of those, what `routing_attacks` reads, which first attacks as that mode does.
OF_FIRST = ('queries', 'batch_size')
# Studies of images that share the experts' slots.
_SHARING = ('batch_dependence', 'load')
# Studies that make their own data and models.
_ALONE = ('theory',)


def attacks(config: ConfigDict) -> bool:
  """Whether `config.attack` is asked for."""
  return config.mode != 'study' or config.study.name in ATTACKING


def needs_checkpoint(config: ConfigDict) -> bool:
  """Whether `config.checkpoint` has to name what is judged."""
  return config.mode != 'study' or config.study.name not in _ALONE


def shares_slots(config: ConfigDict) -> bool:
  """Whether the study judges by capacity; the others are dropless."""
  return config.study.name in _SHARING


def validate_its_attack(config: ConfigDict) -> None:
  """Refuses what a study that attacks does not read, or does not raise.

  Raises:
    UserError: names the field, its value and the way out.
  """
  name = config.study.name
  if name not in ATTACKING:
    return
  attacks_twice = 'routing_attacks' in (name, *config.study.names)
  read = OF_FIRST if attacks_twice else ()
  for field, usual in _OF_MODE_ATTACK.items():
    if config.attack[field] != usual and field not in read:
      way = 'leave it out'
      if field == 'batch_size':
        way = f'set config.study.{name}.batch_size'
      raise UserError(
        f'config.attack.{field}={config.attack[field]!r} has no effect in a '
        'study, which chooses itself how experts are served, keeps no x_adv '
        f'and has a batch size of its own; {way}'
      )
  if name in _OF_ANY_LOSS:
    return
  for field, usual in (('class_weight', 1.0), ('auxiliary_weight', 0.0)):
    if config.attack[field] != usual:
      way = 'leave it out'
      if name == 'losses':
        way = 'set config.study.losses.auxiliary_weight, or leave it out'
      raise UserError(
        f'config.attack.{field}={config.attack[field]} does not fit '
        f'config.study.name={name!r}, which changes the routing or raises '
        f'losses of its own; {way}'
      )


def unread(config: ConfigDict) -> tuple[str, ...]:
  """Fields, and groups of them, that what is asked for does not read.

  Whatever they are, no number is another.
  """
  if config.mode != 'study':
    return ('config.study.',)
  asked = (config.study.name, *config.study.names)
  groups = [
    f'config.study.{name}.'
    for name in studies(config.study)
    if name not in asked
  ]
  if 'routing_attacks' not in asked:
    groups.append('config.attack.batch_size')
  return tuple(groups)


def studies(study: ConfigDict) -> list[str]:
  """Those that `config.study` has a group of fields for."""
  return [name for name in study if name not in ('name', 'names')]


def validate_study(study: ConfigDict) -> None:
  """Refuses a `config.study` that makes no sense.

  Raises:
    UserError: names the field, its value and the way out.
  """
  groups = studies(study)
  choose('config.study.name', study.name, groups)
  for name in study.names:
    choose('config.study.names', name, groups)
  if len(set(study.names)) < len(study.names):
    raise UserError(
      f'config.study.names={study.names!r} has one twice; name each once'
    )
  for name in ('corruptions', 'misrouting'):
    _validate_corruptions(f'config.study.{name}', study[name])
  _validate_frost(study.corruptions)
  _validate_certificates(study.certificates)
  for name in ('jacobian', 'lipschitz'):
    positive(f'config.study.{name}.iterations', study[name].iterations)
  positive('config.study.lipschitz.pairs', study.lipschitz.pairs)
  at_least('config.study.margin.tokens', study.margin.tokens, 0)
  lambdas = 'config.study.routing_attacks.lambdas'
  several(lambdas, study.routing_attacks.lambdas, '(0.1, 1.0)')
  numbers(lambdas, study.routing_attacks.lambdas)
  for value in study.routing_attacks.lambdas:
    if not 0 < value < math.inf:
      raise UserError(
        f'{lambdas}={value} weighs no routing; use more than 0, such as 1.0 '
        '(the control without is there anyway)'
      )
  _validate_theory(study.theory)
  _validate_experts(study)
  _validate_attacking(study)
  for name in groups:
    size = study[name].get('batch_size', 0)
    at_least(f'config.study.{name}.batch_size', size, 0)


def _validate_corruptions(path: str, corruptions: ConfigDict):
  names, severities = f'{path}.names', f'{path}.severities'
  several(names, corruptions.names, "('fog', 'snow')")
  for name in corruptions.names:
    choose(names, name, CORRUPTIONS)
  several(severities, corruptions.severities, '(1, 3, 5)')
  for severity in corruptions.severities:
    if severity not in (1, 2, 3, 4, 5):
      raise UserError(
        f'{severities}={severity!r} is not one of 1, 2, 3, 4 and 5; use those'
      )


def _validate_frost(corruptions: ConfigDict):
  if corruptions.frost_dir and 'frost' not in corruptions.names:
    raise UserError(
      f'config.study.corruptions.frost_dir={corruptions.frost_dir!r} has no '
      "effect without 'frost' in config.study.corruptions.names; leave it out"
    )


def _validate_certificates(certificates: ConfigDict):
  for name in ('n0', 'n', 'every'):
    positive(f'config.study.certificates.{name}', certificates[name])
  if not 0 < certificates.sigma < math.inf:
    raise UserError(
      f'config.study.certificates.sigma={certificates.sigma} is no noise; use '
      'a number above 0, such as 0.25'
    )
  if not 0 < certificates.alpha < 1:
    raise UserError(
      f'config.study.certificates.alpha={certificates.alpha} is the '
      'probability of a false certificate; use a number between 0 and 1, such '
      'as 0.001'
    )
  # Even if all n draws agree, the lower bound is alpha^(1/n).
  if certificates.alpha ** (1 / certificates.n) <= 0.5:
    least = math.floor(-math.log2(certificates.alpha)) + 1
    raise UserError(
      f'config.study.certificates.n={certificates.n} can certify nothing at '
      f'config.study.certificates.alpha={certificates.alpha}; use {least} or '
      'more, such as 10000'
    )
  several('config.study.certificates.radii', certificates.radii, '(0.0, 0.5)')
  numbers('config.study.certificates.radii', certificates.radii)
  for eps in certificates.radii:
    radius('config.study.certificates.radii', eps, 'l2')


def _validate_experts(study: ConfigDict):
  """Studies that remove, force or choose experts."""
  positive('config.study.pruning.draws', study.pruning.draws)
  if study.pruning.removed:
    removed = 'config.study.pruning.removed'
    several(removed, study.pruning.removed, '(1, 2, 4)')
    numbers(removed, study.pruning.removed)
  for name in ('attack_draws', 'verdict_draws'):
    positive(f'config.study.knobs.{name}', study.knobs[name])
  for name in ('selected', 'kept', 'noise', 'capacity'):
    field, values = f'config.study.knobs.{name}', study.knobs[name]
    if values:
      several(field, values, '(1, 2)')
      numbers(field, values)
  for name, least in (('noise', 0), ('capacity', 1e-6)):
    for value in study.knobs[name]:
      between(f'config.study.knobs.{name}', value, least, 1e6)
  for name in ('blocks', 'experts'):
    chosen = study.forced_expert[name]
    if chosen:
      several(f'config.study.forced_expert.{name}', chosen, '(1, 3)')
      numbers(f'config.study.forced_expert.{name}', chosen)


def _validate_attacking(study: ConfigDict):
  for name in ('batch_dependence', 'router_controls'):
    positive(f'config.study.{name}.draws', study[name].draws)
  for name in study.routing_attacks.left_by.split('+'):
    choose('config.study.routing_attacks.left_by', name, ATTACKS)
  others = study.transfer.others
  if isinstance(others, str) or not all(isinstance(o, str) for o in others):
    raise UserError(
      f'config.study.transfer.others={others!r} is no tuple of work '
      "directories; use one such as ('runs/vit',)"
    )
  weight = 'config.study.losses.auxiliary_weight'
  if not 0 < study.losses.auxiliary_weight < math.inf:
    raise UserError(
      f'{weight}={study.losses.auxiliary_weight} attacks no routers; use a '
      'number above 0, such as 1.0'
    )
  for norm in NORMS:
    radius(f'config.study.norm_union.{norm}', study.norm_union[norm], norm)


def _validate_theory(theory: ConfigDict):
  path = 'config.study.theory'
  for name in (
    'draws',
    'points',
    'mlp_dimension',
    'mlp_width',
    'blocks_dimension',
  ):
    positive(f'{path}.{name}', theory[name])
  at_least(f'{path}.dimension', theory.dimension, theory.points + 1)
  several(f'{path}.experts', theory.experts, '(2, 4, 8)')
  for experts in theory.experts:
    numbers(f'{path}.experts', [experts])
    at_least(f'{path}.experts', experts, 2)
    for name in ('points', 'blocks_dimension'):
      if theory[name] % experts:
        raise UserError(
          f'{path}.{name}={theory[name]} is not divisible by {experts} of '
          f'{path}.experts; use a multiple, or other experts'
        )
  for name in ('disagreements', 'misrouted'):
    several(f'{path}.{name}', theory[name], '(0.0, 0.5)')
    numbers(f'{path}.{name}', theory[name])
    for share in theory[name]:
      between(f'{path}.{name}', share, 0, 1)
  if not 0 < theory.blocks_noise < math.inf:
    raise UserError(
      f'{path}.blocks_noise={theory.blocks_noise} is no noise; use a number '
      'above 0, such as 0.5'
    )
