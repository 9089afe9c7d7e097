"""Attacks: pure functions of a loss, images and keys. None sees a model."""

import functools

from vmoe_robust.attacks.interface import Attack, Images, Keys, Loss
from vmoe_robust.attacks.norms import check, distance
from vmoe_robust.attacks.paper import paper
from vmoe_robust.attacks.pgd import pgd
from vmoe_robust.config import ConfigDict

__all__ = ['Attack', 'Images', 'Keys', 'Loss', 'build', 'check', 'distance']


def build(attack: ConfigDict) -> Attack:
  """The attack that `config.attack`, which is valid, describes."""
  if attack.name == 'paper':
    return functools.partial(paper, steps=attack.steps)
  return functools.partial(
    pgd,
    norm=attack.norm,
    steps=attack.steps,
    step_size=attack.step_size,
    random_start=attack.random_start,
    restarts=attack.restarts,
    momentum=attack.momentum,
  )
