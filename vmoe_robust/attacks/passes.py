"""What an attack costs, in forward passes."""

from vmoe_robust.attacks.ensembles import Stage
from vmoe_robust.attacks.fab import Fab
from vmoe_robust.attacks.square import Square


def forward_passes(stage: Stage, classes: int, judged: int) -> int:
  """What a run of a stage and its judgement compute, in passes of the batch.

  A gradient by the image costs one more pass than the loss.

  Args:
    stage: of an attack.
    classes: of the model.
    judged: passes of the judge.
  """
  attack = stage.attack
  if isinstance(attack, Square):
    each = 1
  elif isinstance(attack, Fab):  # a gradient a rival, then a look
    each = 2 + (1 if stage.targets else classes)
  else:
    each = 2
  if stage.stays and isinstance(attack, Fab):
    return each * attack.steps + judged
  if stage.stays:  # the clean image is looked at first, the last x at the end
    return 1 + each * (attack.steps - 1) + 1 + judged
  # Claims are judged as they are made, here once.
  return each * attack.steps + 1 + judged
