"""Attacks: pure functions of a loss, images and keys. None sees a model."""

import functools

from vmoe_robust.attacks.interface import Attack, Images, Keys, Loss
from vmoe_robust.attacks.norms import check, distance
from vmoe_robust.attacks.paper import paper
from vmoe_robust.attacks.pgd import pgd
from vmoe_robust.config import ATTACKS, ConfigDict, UserError

__all__ = ['Attack', 'Images', 'Keys', 'Loss', 'build', 'check', 'distance']


def build(attack: ConfigDict) -> Attack:
  """The attack that `config.attack` describes.

  Raises:
    UserError: the attack is unknown, or fields contradict each other.
  """
  if attack.name == 'paper':
    fixed = dict(norm='linf', step_size=0, restarts=1, momentum=0)
    for field, value in fixed.items():
      if attack[field] != value:
        raise UserError(
          f'config.attack.{field}={attack[field]!r} does not fit '
          f"config.attack.name='paper', which fixes it; use {value!r}, or "
          "config.attack.name='pgd'"
        )
    return functools.partial(paper, steps=attack.steps)
  if attack.name == 'pgd':
    if attack.restarts > 1 and not attack.random_start:
      raise UserError(
        f'config.attack.restarts={attack.restarts} would all be the same '
        'with config.attack.random_start=False; use restarts=1 or '
        'random_start=True'
      )
    return functools.partial(
      pgd,
      norm=attack.norm,
      steps=attack.steps,
      step_size=attack.step_size,
      random_start=attack.random_start,
      restarts=attack.restarts,
      momentum=attack.momentum,
    )
  raise UserError(
    f'config.attack.name={attack.name!r} is not known; use one of '
    + ', '.join(repr(name) for name in ATTACKS)
  )
