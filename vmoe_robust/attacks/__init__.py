"""Attacks: pure functions of a loss, images and keys. None sees a model."""

import functools
from collections.abc import Callable

from vmoe_robust.attacks.ensembles import (
  Budget,
  Ensemble,
  Stage,
  ensemble,
  label,
)
from vmoe_robust.attacks.interface import (
  Attack,
  Images,
  Keys,
  Loss,
  State,
  complete,
)
from vmoe_robust.attacks.losses import LOSSES
from vmoe_robust.attacks.luck import Luck
from vmoe_robust.attacks.norms import check, distance
from vmoe_robust.attacks.paper import Paper
from vmoe_robust.attacks.pgd import Pgd
from vmoe_robust.config import ConfigDict

__all__ = [
  'LOSSES',
  'Attack',
  'Budget',
  'Ensemble',
  'Images',
  'Keys',
  'Loss',
  'Luck',
  'Stage',
  'State',
  'build',
  'check',
  'complete',
  'distance',
  'ensemble',
  'label',
]


def build(
  attack: ConfigDict,
) -> Callable[..., Images]:
  """The attack on whole batches that `config.attack`, which is valid, says.

  It maps (loss, images, keys, eps) to x_adv, as `complete` does, whose `first`
  may be given too. The radius eps is traced, so that
  a sweep compiles once.
  """
  if attack.name == 'paper':
    return functools.partial(complete, Paper(attack.steps))
  pgd = Pgd(
    norm=attack.norm,
    iterations=attack.steps,
    step_size=attack.step_size,
    random_start=attack.random_start,
    momentum=attack.momentum,
  )
  # One run, if no number is asked for.
  return functools.partial(complete, pgd, restarts=max(attack.restarts, 1))
