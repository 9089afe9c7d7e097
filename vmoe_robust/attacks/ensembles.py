"""Attacks one after another, each on the images that still stand.

AutoAttack (Croce & Hein 2020, arXiv:2003.01690) in its versions, single
attacks, and lists of one's own.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

from jaxtyping import Array

from vmoe_robust.attacks.apgd import Apgd
from vmoe_robust.attacks.fab import Fab
from vmoe_robust.attacks.interface import Attack
from vmoe_robust.attacks.pgd import Pgd
from vmoe_robust.attacks.square import Square
from vmoe_robust.config import UserError, choose

# Draws of a random model for each gradient in `rand`.
RAND_DRAWS = 20
_VERSIONS = {
  'standard': ('apgd_ce', 'apgd_t', 'fab_t', 'square'),
  'plus': ('apgd_ce', 'apgd_dlr', 'fab', 'square', 'apgd_t', 'fab_t'),
  'rand': ('apgd_ce', 'apgd_dlr'),
}
_RESTARTED = ('apgd_ce', 'apgd_dlr', 'fab')  # five times in `plus`


# What a stage raises: a name of `losses.LOSSES`, or a function of the logits,
# of what else the model returned and of the goal (`robustness/slots.py`).
StageLoss = str | Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Stage:
  """One attack of an ensemble: which loss, and how often on an image.

  Args:
    name: of the attack.
    attack: the state machine.
    loss: what it raises.
    targets: runner-up classes that are tried in turn; 0: untargeted.
    restarts: runs for each target.
    stays: an image stays to the end of the attack, though it may be broken;
      else it leaves as soon as it is, and what was misclassified before is not
      attacked.
    until: an image counts as broken when its class is 'wrong', or when it is
      taken for its 'target'.
  """

  name: str
  attack: Attack
  loss: StageLoss
  targets: int = 0
  restarts: int = 1
  stays: bool = False
  until: Literal['wrong', 'target'] = 'wrong'

  @property
  def attempts(self) -> int:
    """Runs on an image that stands to the end."""
    return max(self.targets, 1) * self.restarts

  @property
  def needs_gradient(self) -> bool:
    """Whether it follows a gradient by the image."""
    return not isinstance(self.attack, Square)


@dataclasses.dataclass(frozen=True)
class Ensemble:
  """Stages in order, and what had to be changed for this model.

  Args:
    stages: in their order.
    notes: what readers of the result should know.
    draws: of a random model, over which the loss is a mean.
    aim: which class comes first as a target: 'runner_up', 'least_likely' or
      'random'.
    is_bounded: x_adv stays in the ball and in [0, 1].
  """

  stages: tuple[Stage, ...]
  notes: tuple[str, ...] = ()
  draws: int = 1
  aim: str = 'runner_up'
  is_bounded: bool = True


@dataclasses.dataclass(frozen=True)
class Budget:
  """How long the attacks are; the authors' numbers by default."""

  iterations: int = 100  # of APGD, FAB and PGD
  queries: int = 5000  # of Square
  restarts: int = 0  # of what has no target; 0: the ensemble's own
  targets: int = 0  # 0: the ensemble's own, nine at most


def label(
  name: str | tuple[str, ...], norm: str, budget: Budget = Budget()
) -> str:
  """The name of an attack in results: AutoAttack with less is not AutoAttack.

  Args:
    name: as for `ensemble`; several attacks also joined, 'apgd_ce+square'.
    norm: in which it attacks.
    budget: of the attack.

  Returns:
    The name, and each length that is not that of AutoAttack's authors, as in
    'autoattack, 20 steps, 1 restart'. Attacks that AutoAttack does not have,
    such as 'pgd', have no such length, and their name alone is returned.
  """
  name = name if isinstance(name, str) else '+'.join(name)
  version, attacks = '', tuple(name.split('+'))
  if name.startswith('autoattack'):
    version = _version(name)
    attacks = _VERSIONS[version]
    name = name.removesuffix('_standard')
  others = {
    field
    for one in attacks
    for field, own in _lengths(one, version, norm).items()
    if getattr(budget, field) not in (0, own)
  }
  words = {'iterations': 'step', 'queries': 'query'}
  parts = [name]
  for field in dataclasses.fields(Budget):
    value = getattr(budget, field.name)
    if field.name in others:
      word = words.get(field.name, field.name.removesuffix('s'))
      plural = 'queries' if word == 'query' else f'{word}s'
      parts.append(f'{value} {word if value == 1 else plural}')
  return ', '.join(parts)


def _lengths(name: str, version: str, norm: str) -> dict[str, int]:
  """The fields of `Budget` on which a part of AutoAttack depends.

  With the authors' numbers; none of another attack.
  """
  if name != 'square' and not name.startswith(('apgd', 'fab')):
    return {}
  restarts, targets = _repeated(version, name, norm)
  steps = 'queries' if name == 'square' else 'iterations'
  again = {'restarts': restarts}
  if _ATTACKS[name][2]:
    again = {'targets': targets}
  return {steps: getattr(Budget(), steps)} | again


def _require_restarts(attacks: Sequence[str], budget: Budget):
  """Refuses restarts that none of the attacks has, or that were all alike."""
  has = any(
    one == 'pgd' or 'restarts' in _lengths(one, '', '') for one in attacks
  )
  if budget.restarts > 1 and not has:
    raise UserError(
      f'restarts={budget.restarts} has no effect on the attack '
      f'{"+".join(attacks)!r}, which draws nothing or has targets instead; '
      'leave it out'
    )


def _is_less(name: str, norm: str, budget: Budget, classes: int) -> bool:
  """Whether some attack is shorter than the authors' of that name."""
  less = False
  for one in _VERSIONS[_version(name)]:
    for field, own in _lengths(one, _version(name), norm).items():
      own = min(own, classes - 1) if field == 'targets' else own
      less |= 0 < getattr(budget, field) < own
  return less


def names() -> tuple[str, ...]:
  """The attacks and ensembles that `ensemble` knows."""
  versions = ('autoattack', *(f'autoattack_{v}' for v in _VERSIONS))
  return (*_ATTACKS, *versions)


def ensemble(
  name: str | tuple[str, ...],
  norm: str,
  classes: int,
  budget: Budget = Budget(),
) -> Ensemble:
  """The attack of a name, or a list of attacks, for a number of classes.

  `autoattack` is `autoattack_standard`. With few classes the losses that need
  more become simpler ones, and targets fewer, which `notes` says.

  Args:
    name: an attack, an ensemble, or several attacks in their order.
    norm: 'linf', 'l2' or 'l1'.
    classes: of the model.
    budget: lengths of the attacks.

  Raises:
    UserError: there is no such attack, or not in this norm, or it has no
      restarts and `budget` has.
  """
  version, attacks = '', (name,) if isinstance(name, str) else tuple(name)
  notes = []
  if isinstance(name, str) and name.startswith('autoattack'):
    choose('attack', name, names())
    version = _version(name)
    attacks = _VERSIONS[version]
    if _is_less(name, norm, budget, classes):
      notes.append(
        f'{label(name, norm, budget)} is weaker than AutoAttack: robust '
        'accuracies of AutoAttack are lower'
      )
  if classes < 2:
    raise UserError(f'the model has {classes} class; an attack needs two')
  stages = []
  for one in attacks:
    choose('attack', one, _ATTACKS if len(attacks) > 1 else names())
    restarts, targets = _repeated(version, one, norm)
    budget_here = dataclasses.replace(
      budget,
      restarts=budget.restarts or restarts,
      targets=min(budget.targets or targets, classes - 1),
    )
    stage = _simpler(_stage(one, norm, budget_here), classes, notes)
    # A mean of logarithms is another loss.
    if version == 'rand' and isinstance(stage.loss, str):
      stage = dataclasses.replace(stage, loss=stage.loss.removeprefix('log_'))
    stages.append(stage)
  _require_restarts(attacks, budget)
  draws = RAND_DRAWS if version == 'rand' else 1
  return Ensemble(tuple(stages), tuple(notes), draws)


def _version(name: str) -> str:
  return name.removeprefix('autoattack').removeprefix('_') or 'standard'


def _repeated(version: str, name: str, norm: str) -> tuple[int, int]:
  """Restarts and targets of an attack, as the authors have them."""
  short = version == 'standard' and norm == 'l1'
  restarts = 5 if version == 'plus' and name in _RESTARTED else 1
  if short and name == 'apgd_ce':
    restarts = 5
  return restarts, 5 if short and name != 'fab_t' else 9


def _stage(name: str, norm: str, budget: Budget) -> Stage:
  if norm == 'l1' and name.startswith('apgd') and budget.iterations < 2:
    raise UserError(
      f'{name} in l1 begins in larger balls and takes 2 steps at least, not '
      f'{budget.iterations}; set more steps (iterations, config.attack.steps)'
    )
  make, loss, targeted = _ATTACKS[name]
  targets, restarts = (budget.targets, 1) if targeted else (0, budget.restarts)
  return Stage(name, make(norm, budget), loss, targets, restarts)


def _simpler(stage: Stage, classes: int, notes: list[str]) -> Stage:
  """Replaces a loss that needs more classes than there are."""
  if not isinstance(stage.loss, str):
    return stage
  needed = {'dlr': 3, 'targeted_dlr': 4}.get(stage.loss, 2)
  if classes < needed:
    simple = stage.loss.replace('dlr', 'margin')
    notes.append(
      f'{stage.name}: the {stage.loss} loss needs {needed} classes, there are '
      f'{classes}; the {simple} loss is used'
    )
    stage = dataclasses.replace(stage, loss=simple)
  return stage


_apgd = lambda norm, budget: Apgd(norm, budget.iterations)
_apgd_ce = lambda norm, budget: Apgd(norm, budget.iterations, -math.inf)
_fab = lambda norm, budget: Fab(norm, budget.iterations)
# How an attack is made, what it raises, and whether it has targets.
_ATTACKS: dict[str, tuple[Callable[[str, Budget], Attack], str, bool]] = {
  'fgsm': (
    lambda norm, budget: Pgd(norm, 1, random_start=False),
    'log_cross_entropy',
    False,
  ),
  'mim': (
    lambda norm, budget: Pgd(
      norm, budget.iterations, random_start=False, momentum=1.0
    ),
    'log_cross_entropy',
    False,
  ),
  'pgd': (
    lambda norm, budget: Pgd(norm, budget.iterations),
    'log_cross_entropy',
    False,
  ),
  'apgd_ce': (_apgd_ce, 'log_cross_entropy', False),
  'apgd_dlr': (_apgd, 'dlr', False),
  'apgd_t': (_apgd, 'targeted_dlr', True),
  'fab': (_fab, 'rivals', False),
  'fab_t': (_fab, 'target_rival', True),
  'square': (
    lambda norm, budget: Square(norm, budget.queries),
    'margin',
    False,
  ),
}
